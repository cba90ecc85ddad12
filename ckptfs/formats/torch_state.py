"""The storages that a `torch.save` pickle speaks of, and what the state calls them.

A storage's name is the path of dict keys and list indices to the first tensor that lies in it, like
`optimizer.state.0.exp_avg`. Knows torch's functions by name only.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ckptfs.formats.layout import HEADER_SIZE_MAX, ITEM_SIZES, LENGTH_MAX, MalformedError, Tensor, checked_shape, dense
from ckptfs.formats.pickled import Global, Node, Reference, Value

_TENSOR_FUNCTIONS = {
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
}
_SUBCLASS_FUNCTION = "torch._tensor _rebuild_from_type_v2"
_STORAGE_DTYPES = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}  # fmt: skip
_KEY_SIZE_MAX = 256
_DEPTH_MAX = 64
"""Values that lie deeper in the state are not looked at."""

Path = tuple["Path", Value] | None
"""Where in the state: the path above, and a key."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage's bytes, seen as the first tensor in it sees them; `dtype` "" where that is not known."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    def tensor(self, name: str, offset: int) -> Tensor:
        """Return the storage as the tensor of this name that lies at `offset` of the file."""
        if self.dtype:
            return dense(name, offset, self.shape, self.dtype)
        return Tensor(name, offset, self.size, 0, self.shape, "")


def read_storages(state: Value) -> dict[str, Storage]:
    """Return the storages of a state by their key; MalformedError for what torch does not write."""
    storages: dict[str, Storage] = {}
    names_size = 0
    for path, storage_id, dtype, shape in _tensors(state):
        match storage_id:
            case ("storage", Global(kind), str(key), _, int(count), *_) if 0 <= count < LENGTH_MAX:
                if key in storages:
                    continue
                storages[key] = _storage(_name(path), kind.partition(" ")[2], count, dtype, shape)
                names_size += len(storages[key].name)
                if names_size > HEADER_SIZE_MAX:
                    raise MalformedError("the names are too long")
            case _:
                raise MalformedError("no storage of torch")
    return storages


def _storage(name: str, kind: str, count: int, dtype: str, shape: Value) -> Storage:
    """Return a storage of `count` items of its kind; an untyped one has as many bytes, and the tensor's dtype."""
    if kind in _STORAGE_DTYPES:
        dtype = _STORAGE_DTYPES[kind]
        size = count * ITEM_SIZES[dtype]
    elif kind == "UntypedStorage":
        size = count
    else:
        raise MalformedError("a storage of no known type")
    item_size = ITEM_SIZES.get(dtype, 1)
    lengths = (size // item_size,) if shape is None else checked_shape(shape)
    if math.prod(lengths) * item_size != size:  # a view of a part
        lengths = (size // item_size,)
    return Storage(name, dtype if size % item_size == 0 and dtype in ITEM_SIZES else "", lengths, size)


def _tensors(state: Value) -> Iterator[tuple[Path, Value, str, Value]]:
    """Yield (path, storage id, dtype, shape) of whatever lies in a storage, depth first, every value once."""
    seen: dict[int, Value] = {}
    waiting: list[tuple[int, Path, Value]] = [(0, None, state)]
    while waiting:
        depth, path, value = waiting.pop()
        if id(value) in seen or depth > _DEPTH_MAX:
            continue
        below = depth + 1
        match value:
            case Reference(storage_id):
                yield path, storage_id, "", None
            case Node(Global(name), (Reference(storage_id), _, shape, *others)) if name in _TENSOR_FUNCTIONS:
                dtype = next((other.name for other in others if isinstance(other, Global)), "")
                yield path, storage_id, dtype.partition(" ")[2], shape
            case Node(Global(name), (function, _, arguments, *_)) if name == _SUBCLASS_FUNCTION:
                waiting.append((below, path, Node(function, arguments)))
            case Node():
                waiting.extend((below, (path, key), child) for key, child in reversed(value.items))
                if isinstance(value.arguments, tuple):
                    waiting.extend((below, path, argument) for argument in reversed(value.arguments))
            case tuple():
                waiting.extend((below, (path, index), child) for index, child in reversed(list(enumerate(value))))
            case _:
                continue
        seen[id(value)] = value


def _name(path: Path) -> str:
    keys: list[str] = []
    while path is not None:
        path, key = path
        if key != "":
            keys.append(str(key)[:_KEY_SIZE_MAX] if isinstance(key, str | int) else "?")
    return ".".join(reversed(keys))
