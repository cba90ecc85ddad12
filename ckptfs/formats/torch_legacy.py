"""The layout of the files that `torch.save` wrote before it wrote zip files, and still writes when it is told to.

Five pickles lie one behind the other: a magic number, the version, the machine, the state, the keys of its storages.
Then come the storages in the order of the keys, the number of its items before each. The keys are addresses in memory,
so each save has the tensors in another order.
"""

from collections.abc import Generator

from ckptfs.formats.layout import HEADER_SIZE_MAX, MalformedError, Request, Walk, take
from ckptfs.formats.pickled import CutShortError, Node, Value, read_pickle
from ckptfs.formats.torch_state import read_storages

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"
"""How the pickle of the magic number begins."""
_PICKLES_BEFORE = 3
_COUNT_SIZE = 8
_SEARCH_SIZE = 256


def walk_torch_legacy() -> Walk:
    """Yield the storages in the order of their offsets, each before its bytes are passed."""
    offset = 0
    for _ in range(_PICKLES_BEFORE):
        _, offset = yield from _pickle(offset)
    state, offset = yield from _pickle(offset)
    storages = read_storages(state)
    keys, offset = yield from _pickle(offset)
    if not isinstance(keys, Node):
        raise MalformedError("no keys of storages")
    for _, key in keys.items:
        storage = storages.get(key) if isinstance(key, str) else None
        count = int.from_bytes((yield from take(offset, _COUNT_SIZE)), "little")
        if storage is None or storage.size % max(count, 1):
            raise MalformedError("another storage than the state has")
        yield storage.tensor(storage.name, offset + _COUNT_SIZE)
        offset += _COUNT_SIZE + storage.size


def _pickle(offset: int) -> Generator[Request, bytes, tuple[Value, int]]:
    """Return what the pickle at `offset` says, and where it ends."""
    size = _SEARCH_SIZE
    while True:
        data = yield Request(offset, size)
        try:
            value, pickle_size = read_pickle(data)
        except CutShortError:
            if len(data) < size or size >= HEADER_SIZE_MAX:
                raise
            size *= 2
        else:
            return value, offset + pickle_size
