"""The C kernels, built with address and undefined behaviour sanitizers, agree with the reference and stay in bounds.

A compiler is needed: without gcc this fails, because then nobody has looked.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "ckptfs" / "store").glob("*.c"))
SEED = 20240607

# Buffers of exactly the size of their data, on the heap, so that one byte too far is seen.
COMPARISON = """
import ctypes, itertools, random, struct, sys
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
import xxhash
from ckptfs.store import codec, records, reference, reference_coders, reference_differences, reference_records
from tests.unit.linked_chunks import SEED, linked_chunks

loader = ExtensionFileLoader("_kernels", sys.argv[1])
kernels = module_from_spec(ModuleSpec("_kernels", loader, origin=sys.argv[1]))
loader.exec_module(kernels)
generator = random.Random(int(sys.argv[2]))
passes_often = bytes([reference.PREFILTER_TARGET, 0, 0, 0])
compared = 0
for size in [*range(140), *(generator.randrange(140, 5000) for _ in range(60))]:
    noise = generator.randbytes(size)
    often = (passes_often * (size // 4 + 1))[:size]
    mixed = bytes(generator.choice((often[i], often[i], often[i], noise[i])) for i in range(size))
    for data in (noise, often, mixed, bytes(size)):
        exact = (ctypes.c_ubyte * size).from_buffer_copy(data)
        size_min = generator.randrange(16, 100)
        limits = size_min, generator.randrange(8, 13), size_min + generator.randrange(2000), generator.random() < 0.5
        expected = reference.cut(data, *limits)
        seed = generator.getrandbits(64)
        lengths, ids = hashed = reference.cut_and_hash(data, *limits, seed)
        spans = b"".join(struct.pack("<QQ", sum(lengths[:i]), length) for i, length in enumerate(lengths))
        wanted = bytearray(sum((48 + length + 7) // 8 * 8 for length in lengths))
        reference_records.raw_records(memoryview(wanted), 5, data, spans, b"".join(ids), seed >> 1)
        whole = reference.cut_and_hash(data, 6000, 16, 6000, True, seed)
        for name in kernels.cut_kernels():
            assert kernels.cut(name, exact, *limits) == expected, (name, size, limits)
            assert kernels.cut_and_hash(name, exact, *limits, seed) == hashed, (name, size, limits, seed)
            cut = (ctypes.c_ubyte * sum(lengths)).from_buffer_copy(data)
            assert kernels.hash_chunks(name, cut, lengths, seed) == ids, (name, size, seed)
            built = (ctypes.c_ubyte * len(wanted))()
            kernels.raw_records(built, 5, cut, spans, b"".join(ids), seed >> 1)
            assert bytes(built) == wanted, (name, size)
            assert kernels.cut_and_hash(name, exact, 6000, 16, 6000, True, seed) == whole, (name, size, seed)
            compared += 1
        for width, turned in itertools.product((2, 4, 8), (False, True)):
            planes = kernels.split_planes(exact, width, turned)
            assert planes == reference.split_planes(data, width, turned)
            assert kernels.join_planes((ctypes.c_ubyte * size).from_buffer_copy(planes), width, turned) == data
        bits, expected = (ctypes.c_ubyte * (size // 2 + 1))(), bytearray(size // 2 + 1)
        numbers = [generator.randrange(5 * size + 9) for _ in range(size // 8)]
        packed = b"".join(number.to_bytes(8, "little") for number in numbers)
        kernels.mark(bits, (ctypes.c_ubyte * len(packed)).from_buffer_copy(packed))
        reference.mark(expected, packed)
        assert bytes(bits) == expected
        shape = generator.randrange(1, 9), generator.random() < 0.5
        entropies = zip(kernels.plane_entropies(exact, *shape), reference.plane_entropies(data, *shape))
        assert all(abs(mine - theirs) < 1e-9 for mine, theirs in entropies)
def exactly(data):
    return (ctypes.c_ubyte * len(data)).from_buffer_copy(data)

def outcome(decode, *arguments):
    try:
        return decode(*arguments)
    except ValueError:
        return None

for size in [*range(24), *(generator.randrange(24, 12000) for _ in range(40))]:
    zeros = generator.choice((0.0, 0.5, 0.9, 0.99, 0.999))
    data = bytes(0 if generator.random() < zeros else generator.choice(b"abcdefgz") for _ in range(size))
    base = generator.randbytes(size)
    width = generator.choice((1, 2, 4, 8))
    phase = generator.randrange(width)
    shape = width, phase
    coded = kernels.encode_bytes("portable", exactly(data))
    assert coded == reference_coders.encode_bytes(data)
    difference = reference_differences.encode_difference(data, base, *shape)
    for name in kernels.cut_kernels():
        assert kernels.encode_bytes(name, exactly(data)) == coded
        assert kernels.encode_difference(name, exactly(data), exactly(base), *shape) == difference
        assert kernels.decode_bytes(name, exactly(coded), size) == data
        assert kernels.decode_difference(name, exactly(difference), exactly(base), *shape) == data
    for _ in range(4):
        hostile = [bytearray(coded), bytearray(difference)]
        for each in hostile:
            for _ in range(generator.randrange(3)):
                if each:
                    each[generator.randrange(min(len(each), 60))] = generator.randrange(256)
            del each[len(each) - generator.randrange(3) :]
        bytes_expected = outcome(reference_coders.decode_bytes, hostile[0], size)
        expected = outcome(reference_differences.decode_difference, hostile[1], base, *shape)
        for name in kernels.cut_kernels():
            mine = outcome(kernels.decode_bytes, name, exactly(hostile[0]), size)
            assert mine == bytes_expected, (name, hostile[0], size)
            mine = outcome(kernels.decode_difference, name, exactly(hostile[1]), exactly(base), *shape)
            assert mine == expected, (name, hostile[1], base, shape)
            compared += 1
for size in [*range(1, 60, 7), *(generator.randrange(60, 4000) for _ in range(40))]:
    exponents = generator.choices((0x3C, 0x3C, 0xBC, 0x3B, 0xBB, 0x3A), k=size)
    width = generator.choice((2, 4))
    data = bytes(exponents[i] if i % width == width - 1 else generator.randrange(256) for i in range(size))
    encoding, payload = codec.encode(data)
    for _ in range(8):
        damaged = bytearray(payload)
        for _ in range(generator.randrange(3)):
            damaged[generator.randrange(min(len(damaged), 60))] = generator.randrange(256)
        del damaged[len(damaged) - generator.randrange(3) :]
        built = records.build(2, 5, xxhash.xxh3_128_digest(data, 6), size, encoding, bytes(damaged))
        record = b"".join(built.buffers)[: built.size - generator.randrange(2)]
        place, wanted = exactly(reference_records.PLACE.pack(0, 5, size)), bytearray(size)
        theirs = reference_records.take_chunks(record, bytes(place), wanted, 6)
        for name in kernels.cut_kernels():
            mine = exactly(bytes(size))
            assert kernels.take_chunks(name, exactly(record), place, mine, 6) == theirs, (name, size, record)
            assert theirs == b"\\0" or bytes(mine) == bytes(wanted) == data
            compared += 1
for _ in range(200):
    stream = bytearray()
    for number in range(generator.randrange(6)):
        payload = generator.randbytes(generator.randrange(60))
        bases = generator.randbytes(8 * generator.choice((0, 0, 2)))
        built = records.build(2, number, payload[:16].ljust(16), len(payload), 3, payload, bases=bases)
        stream += b"".join(built.buffers)
    for _ in range(generator.randrange(2)):
        if stream:
            stream[generator.randrange(len(stream))] = generator.randrange(256)
    del stream[len(stream) - generator.randrange(9) :]
    arguments = generator.choice((40, 60)), generator.getrandbits(32), generator.getrandbits(62)
    mine = kernels.scan_chunks(exactly(stream), *arguments)
    assert mine == reference_records.scan_chunks(stream, *arguments), (stream, arguments)
    compared += 1
for _ in range(25):
    made = linked_chunks(generator, generator.randrange(9), 400)
    for attempt in range(6):
        if attempt:
            made.data[generator.randrange(len(made.data))] = generator.randrange(256)
            link = generator.choice(made.links)
            change = generator.randrange(3)
            if change == 0:
                link[generator.choice((0, 3, 4))] += generator.randrange(-2, 3)
            elif change == 1:
                link[5] = generator.randrange(9)
            elif made.bases:
                made.bases[generator.randrange(len(made.bases))] = generator.randrange(len(made.links))
        try:
            packed = [exactly(each) for each in made.packed]
        except struct.error:
            break
        rooms = made.room * 9, generator.randrange(4000)
        theirs_out = bytearray(made.out_size)
        theirs = outcome(reference_records.take_chains, *packed, theirs_out, memoryview(b""), SEED)
        for name, room in itertools.product(kernels.cut_kernels(), rooms):
            out, work = exactly(bytes(made.out_size)), exactly(bytes(room))
            mine = outcome(kernels.take_chains, name, *packed, out, work, SEED)
            assert mine == theirs or room != rooms[0], (name, mine, theirs)
            assert (mine is None) == (theirs is None)
            for index, raw in made.expected.items():
                place = made.links[index][2]
                assert not mine or not mine[index] or bytes(out)[place : place + len(raw)] == raw
            compared += 1
for bad in (("neon", b"", 16, 8, 16, True), ("portable", b"", 15, 8, 16, True), ("portable", b"", 16, 7, 16, True)):
    try:
        kernels.cut(*bad)
    except ValueError:
        compared += 1
print("compared", compared)
"""


def libasan() -> str:
    """Return the address sanitizer's library, which has to be loaded before Python."""
    return subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()


def sanitized_extension(directory: Path) -> Path:
    extension = directory / "_kernels.so"
    flags = ["-O1", "-g", "-fPIC", "-shared", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    warnings = ["-Wall", "-Wextra", "-Werror", "-isystem", sysconfig.get_path("include")]
    subprocess.run(["gcc", *flags, *warnings, *SOURCES, "-o", extension, "-lm"], check=True)
    return extension


def run_sanitized(program: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "LD_PRELOAD": libasan(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_sanitized_kernels_agree_with_the_reference(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    run = run_sanitized(COMPARISON, sanitized_extension(tmp_path), str(SEED))
    print(run.stdout, run.stderr)
    assert run.returncode == 0
    assert run.stdout.startswith("compared ")


def test_the_sanitizer_would_have_seen_a_read_behind_the_buffer(tmp_path: Path) -> None:
    source = tmp_path / "overread.c"
    source.write_text(
        "#include <stdlib.h>\nint overread(int at) { volatile char *p = malloc(8); return p[at]; }\n", encoding="ascii"
    )
    library = tmp_path / "overread.so"
    subprocess.run(["gcc", "-fPIC", "-shared", "-fsanitize=address", source, "-o", library], check=True)
    run = run_sanitized("import ctypes, sys; ctypes.CDLL(sys.argv[1]).overread(8)", library)
    assert run.returncode != 0
    assert "heap-buffer-overflow" in run.stderr
