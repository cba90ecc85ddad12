"""Small files of every format that `ckptfs.formats` knows, and the bytes of the tensors in them."""

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
import safetensors.numpy
import torch

from ckptfs.formats import Tensor, parse


@dataclass(frozen=True)
class CheckpointFile:
    """A file, and what is in it: (name, shape, element width, dtype) and the bytes of every tensor."""

    data: bytes
    tensors: dict[tuple[str, tuple[int, ...], int, str], bytes]


def layout_of(data: bytes) -> list[Tensor] | None:
    """Return what `parse` finds in a file of these bytes."""
    return parse(lambda offset, size: data[offset : offset + size], len(data))


def described(array: np.ndarray, name: str) -> tuple[str, tuple[int, ...], int, str]:
    return name, array.shape, array.itemsize, array.dtype.name


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """Return a handful of arrays of different types and shapes."""
    random = np.random.default_rng(seed)
    return {
        "embed.weight": random.standard_normal((100, 200), dtype=np.float32),
        "half": random.standard_normal(700).astype(np.float16),
        "steps": np.arange(3, dtype=np.int64),
        "mask": np.zeros((2, 2), dtype=np.bool_),
        "scalar": np.array(1.5, dtype=np.float64),
    }


def from_arrays(data: bytes, content: dict[str, np.ndarray]) -> CheckpointFile:
    return CheckpointFile(data, {described(array, name): array.tobytes() for name, array in content.items()})


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def training_state() -> dict[str, object]:
    """Return what a training job saves: a model, its optimizer, and things that are no tensors."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(300, 150), torch.nn.LayerNorm(150)).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 300, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    return {
        "step": 7,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [0.5, (None, True, -1, 1 << 40)],
        "frozen": torch.nn.Parameter(torch.ones(3)),
        "small": torch.linspace(0, 1, 8).to(torch.float8_e4m3fn),
        "phase": torch.ones(2, dtype=torch.complex64),
    }


def torch_file(**options: object) -> CheckpointFile:
    """Return a `torch.save` of a training state."""
    state = training_state()
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    named = {f"model.{name}": tensor for name, tensor in state["model"].items()}
    for number, parameter in state["optimizer"]["state"].items():
        named |= {f"optimizer.state.{number}.{name}": tensor for name, tensor in parameter.items()}
    named |= {name: state[name] for name in ("frozen", "small", "phase")}
    tensors = {}
    for name, tensor in named.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        width = 4 if dtype == "complex64" else tensor.element_size()
        tensors[name, tuple(tensor.shape), width, dtype] = raw_bytes(tensor)
    return CheckpointFile(buffer.getvalue(), tensors)


def distributed_file() -> CheckpointFile:
    """Return the `.distcp` file of a distributed checkpoint: a zip file for every item."""
    import torch.distributed.checkpoint as dcp  # only now: it takes a second, and each worker imports this module

    state = {"a": torch.rand(100, 100), "b": torch.rand(9, dtype=torch.float64), "lr": 0.1}
    with TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.save(state, checkpoint_id=directory, no_dist=True)
        data = Path(directory, "__0_0.distcp").read_bytes()
    tensors = {
        ("1", (100, 100), 4, "float32"): raw_bytes(state["a"]),
        ("2", (9,), 8, "float64"): raw_bytes(state["b"]),
    }
    return CheckpointFile(data, tensors)


def safetensors_file() -> CheckpointFile:
    content = arrays() | {"empty": np.zeros((0, 5), dtype=np.float64)}
    return from_arrays(safetensors.numpy.save(content, metadata={"step": "7"}), content)


def npy_file() -> CheckpointFile:
    buffer = io.BytesIO()
    np.save(buffer, arrays()["embed.weight"])
    return from_arrays(buffer.getvalue(), {"": arrays()["embed.weight"]})


def npz_file() -> CheckpointFile:
    buffer = io.BytesIO()
    np.savez(buffer, settings=np.array({"lr": 0.1}), **arrays())
    return from_arrays(buffer.getvalue(), arrays())


def hdf5_file(libver: str) -> CheckpointFile:
    """Return an HDF5 file with groups, attributes and a dataset that is in pieces."""
    content = {name.replace(".", "/"): array for name, array in arrays().items() if array.dtype != np.bool_}
    content |= {f"many/{number}": np.full(4, number, dtype=np.int32) for number in range(40)}
    pieces = np.arange(1200.0).reshape(30, 40)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", libver=libver) as file:
        for name, array in content.items():
            file[name] = array
            file[name].attrs["about"] = "an attribute"
        file.create_dataset("in pieces", data=pieces, chunks=(10, 20))
        file.create_dataset("compressed", data=pieces, chunks=(10, 20), compression="gzip")
        file.create_dataset("nothing", shape=(5,), dtype="f4")
    if libver == "earliest":
        places = [(row, column) for row in (0, 10, 20) for column in (0, 20)]
        content |= {
            f"in pieces[{row}, {column}]": pieces[row : row + 10, column : column + 20] for row, column in places
        }
    return from_arrays(buffer.getvalue(), content)


def keras_file() -> CheckpointFile:
    """Return a file as Keras 3 writes it: a zip file of texts and an HDF5 file."""
    weights = hdf5_file("earliest")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("config.json", "{}" * 100)
        archive.writestr("model.weights.h5", weights.data)
        archive.writestr("assets/words.txt", "word\n")
    return CheckpointFile(buffer.getvalue(), weights.tensors)


def gguf_file() -> CheckpointFile:
    """Return a GGUF file, put together as its specification says."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    words = b"".join(text(b"word %d" % number) for number in range(500))
    values = [
        text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama"),
        text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 500) + words,
        text(b"tokenizer.ggml.scores") + struct.pack("<IIQ", 9, 6, 3) + bytes(12),
        text(b"general.alignment") + struct.pack("<II", 4, 64),
    ]
    embed = arrays()["embed.weight"]
    quantised = np.random.default_rng(1).bytes(144)
    table = text(b"embed") + struct.pack("<IQQIQ", 2, 200, 100, 0, 0)
    table += text(b"blk.0") + struct.pack("<IQIQ", 1, 256, 12, embed.nbytes)
    header = b"GGUF" + struct.pack("<IQQ", 3, 2, len(values)) + b"".join(values) + table
    data = header + bytes(-len(header) % 64) + embed.tobytes() + quantised
    tensors = {described(embed, "embed"): embed.tobytes(), ("blk.0", (256,), 0, "q4_k"): quantised}
    return CheckpointFile(data, tensors)


MAKERS: dict[str, Callable[[], CheckpointFile]] = {
    "torch": torch_file,
    "torch, protocol 4": lambda: torch_file(pickle_protocol=4),
    "torch, legacy": lambda: torch_file(_use_new_zipfile_serialization=False),
    "distributed": distributed_file,
    "safetensors": safetensors_file,
    "npy": npy_file,
    "npz": npz_file,
    "hdf5": lambda: hdf5_file("earliest"),
    "hdf5, latest": lambda: hdf5_file("latest"),
    "keras, hdf5 in zip": keras_file,
    "gguf": gguf_file,
}


@cache
def checkpoint_file(kind: str) -> CheckpointFile:
    """Return the file of a kind, made once."""
    return MAKERS[kind]()
