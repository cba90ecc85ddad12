"""What a pickle says, without doing any of it.

Owns a small machine for the opcodes of pickle protocols 2 to 5. It builds plain values of the classes below and
nothing else: no name is looked up, nothing is imported or called. What it costs is bounded by OPCODES_MAX and by the
pickle's own size, also for hostile ones: no opcode makes more than it takes off the stack, and nothing is hashed or
compared but memo numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ckptfs.formats.layout import MalformedError

OPCODES_MAX = 1 << 20
_GLOBAL_SIZE_MAX = 1024
_INTEGER_SIZE_MAX = 8

Value = object
"""None, a bool, an int, a str, a tuple of values, Global, Reference or Node. What nobody asks for (floats) is None."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, `module name`."""

    name: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A persistent id: for torch, a storage."""

    id: Value


@dataclass(slots=True, eq=False)
class Node:
    """A dict, list, set or object: the call that would make it, if any, and what is put into it, by key."""

    function: Value = None
    arguments: Value = ()
    items: list[tuple[Value, Value]] = field(default_factory=list)


class CutShortError(MalformedError):
    """The bytes end before the pickle does."""


class _Machine:
    """The stack, the marked stacks below it, and the memo."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0
        self._memo: dict[int, Value] = {}
        self._below: list[list[Value]] = []
        self.stack: list[Value] = []

    def run(self) -> tuple[Value, int]:
        """Return the value that the pickle ends with, and its size."""
        for _ in range(OPCODES_MAX):
            opcode = self.byte()
            if opcode == _STOP:
                return self.stack.pop(), self._position
            if opcode not in _OPERATIONS:
                raise MalformedError("an opcode that no checkpoint needs")
            _OPERATIONS[opcode](self)
        raise MalformedError("too many opcodes")

    def take(self, size: int) -> bytes:
        start = self._position
        self._position += size
        if self._position > len(self._data):
            raise CutShortError("the pickle is cut short")
        return self._data[start : self._position]

    def byte(self) -> int:
        return self.take(1)[0]

    def integer(self, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> str:
        end = self._data.find(b"\n", self._position)
        if end < 0:
            raise CutShortError("the pickle is cut short")
        line = self.take(end - self._position)
        self._position += 1
        return line.decode("utf-8", "replace")

    def push(self, value: Value) -> None:
        self.stack.append(value)

    def push_long(self, size: int) -> None:
        data = self.take(size)
        self.stack.append(int.from_bytes(data, "little", signed=True) if size <= _INTEGER_SIZE_MAX else None)

    def push_text(self, size: int) -> None:
        self.stack.append(self.take(size).decode("utf-8", "replace"))

    def push_other(self, size: int) -> None:
        self.take(size)
        self.stack.append(None)

    def mark(self) -> None:
        self._below.append(self.stack)
        self.stack = []

    def unmark(self) -> list[Value]:
        """Return what was pushed since the last mark."""
        values, self.stack = self.stack, self._below.pop()
        return values

    def pop_or_unmark(self) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.unmark()

    def push_tuple(self, size: int) -> None:
        values = [self.stack.pop() for _ in range(size)]
        self.stack.append(tuple(reversed(values)))

    def push_made(self) -> None:
        """Push what calling the second value with the first one as arguments would make."""
        arguments = self.stack.pop()
        self.stack.append(Node(self.stack.pop(), arguments))

    def push_made_with_keywords(self) -> None:
        keywords = self.stack.pop()
        self.push_made()
        self.node.items.append(("", keywords))

    def push_global(self, module: Value, name: Value) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) <= _GLOBAL_SIZE_MAX):
            raise MalformedError("a name that no checkpoint needs")
        self.stack.append(Global(f"{module} {name}"))

    @property
    def node(self) -> Node:
        """The value on top, which something is to be put into."""
        if not isinstance(node := self.stack[-1], Node):
            raise MalformedError("something is put into what holds nothing")
        return node

    def put_pairs(self, values: list[Value]) -> None:
        self.node.items += zip(values[::2], values[1::2], strict=False)

    def put_values(self, values: list[Value]) -> None:
        self.node.items += enumerate(values, len(self.node.items))

    def build(self) -> None:
        """Give the value below a state; a tensor's or a function's own state is of no use here."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Node):
            self.node.items.append(("", state))

    def memorise(self, number: int) -> None:
        self._memo[number] = self.stack[-1]

    def recall(self, number: int) -> None:
        self.stack.append(self._memo[number])

    def memorise_next(self) -> None:
        self.memorise(len(self._memo))


def _filled(fill: Callable[[_Machine, list[Value]], None]) -> Callable[[_Machine], None]:
    """Return the operation that makes a node of what was pushed since the last mark."""

    def push(machine: _Machine) -> None:
        values = machine.unmark()
        machine.stack.append(Node())
        fill(machine, values)

    return push


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    0x80: lambda m: m.take(1),  # PROTO
    0x95: lambda m: m.take(8),  # FRAME
    ord("("): _Machine.mark,
    ord("0"): _Machine.pop_or_unmark,
    ord("1"): _Machine.unmark,
    ord("2"): lambda m: m.push(m.stack[-1]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    ord("K"): lambda m: m.push(m.byte()),
    ord("M"): lambda m: m.push(m.integer(2)),
    ord("J"): lambda m: m.push(m.integer(4, signed=True)),
    0x8A: lambda m: m.push_long(m.byte()),
    0x8B: lambda m: m.push_long(m.integer(4)),
    ord("G"): lambda m: m.push_other(8),
    ord("U"): lambda m: m.push_other(m.byte()),
    ord("T"): lambda m: m.push_other(m.integer(4)),
    ord("C"): lambda m: m.push_other(m.byte()),
    ord("B"): lambda m: m.push_other(m.integer(4)),
    0x8E: lambda m: m.push_other(m.integer(8)),
    0x96: lambda m: m.push_other(m.integer(8)),
    0x8C: lambda m: m.push_text(m.byte()),
    ord("X"): lambda m: m.push_text(m.integer(4)),
    0x8D: lambda m: m.push_text(m.integer(8)),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.unmark())),
    0x85: lambda m: m.push_tuple(1),
    0x86: lambda m: m.push_tuple(2),
    0x87: lambda m: m.push_tuple(3),
    ord("]"): lambda m: m.push(Node()),
    ord("}"): lambda m: m.push(Node()),
    0x8F: lambda m: m.push(Node()),  # EMPTY_SET
    ord("l"): _filled(_Machine.put_values),
    0x91: _filled(_Machine.put_values),  # FROZENSET
    ord("d"): _filled(_Machine.put_pairs),
    ord("a"): lambda m: m.put_values([m.stack.pop()]),
    ord("e"): lambda m: m.put_values(m.unmark()),
    0x90: lambda m: m.put_values(m.unmark()),  # ADDITEMS
    ord("s"): lambda m: m.put_pairs([m.stack.pop(-2), m.stack.pop()]),
    ord("u"): lambda m: m.put_pairs(m.unmark()),
    ord("c"): lambda m: m.push_global(m.line(), m.line()),
    0x93: lambda m: m.push_global(m.stack.pop(-2), m.stack.pop()),
    ord("R"): _Machine.push_made,
    0x81: _Machine.push_made,  # NEWOBJ
    0x92: _Machine.push_made_with_keywords,
    ord("b"): _Machine.build,
    ord("Q"): lambda m: m.push(Reference(m.stack.pop())),
    ord("q"): lambda m: m.memorise(m.byte()),
    ord("r"): lambda m: m.memorise(m.integer(4)),
    0x94: _Machine.memorise_next,
    ord("h"): lambda m: m.recall(m.byte()),
    ord("j"): lambda m: m.recall(m.integer(4)),
}


def read_pickle(data: bytes) -> tuple[Value, int]:
    """Return what the pickle at the start of the data says, and its size.

    MalformedError when it cannot be followed to its end, CutShortError when that is behind the end of the data.
    """
    try:
        return _Machine(data).run()
    except (IndexError, KeyError) as error:  # the stack or the memo has no more
        raise MalformedError("the pickle does not hold") from error
