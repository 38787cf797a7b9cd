"""Reads a pickle as data: an interpreter of its opcodes that builds containers and nothing else.

Python's own unpickler calls whatever a file names. Here a name is looked up in a fixed table of
inert builders (`torch_globals.BUILDERS`); any other name, opcode or use ends the reading.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_OPCODES = 1_000_000
MAX_PICKLE_BYTES = 128 << 20
MAX_NODES = 1_000_000
MAX_DEPTH = 64
MAX_KEY_CHARACTERS = 1000

_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8".split()
)
_FIXED_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_MARK = object()


class Refused(Exception):
    """Why a pickle is not read; the caller adds the file's name and raises a `UserError`."""


@dataclass(frozen=True)
class Builder:
    """A name a pickle may use: `build(arguments)` for REDUCE and NEWOBJ, `restore` for BUILD."""

    name: str
    build: Callable[[tuple], Any]


@dataclass(eq=False)
class Inert:
    """An object of a known data class, kept as its name and state."""

    name: str
    state: Any = None


class Machine:
    """One reading: `read(stream)` gives the object of the first pickle in the stream.

    builders: (module, name) → Builder. persistent: what a persistent id stands for (a storage).
    """

    def __init__(
        self, builders: Mapping[tuple[str, str], Builder], persistent: Callable[[Any], Any]
    ):
        self._builders = builders
        self._persistent = persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self, stream: BinaryIO) -> Any:
        """The object up to the STOP opcode, the stream left right behind it; raises `Refused`."""
        self._stack, self._memo = [], {}
        try:
            for count, (name, argument) in enumerate(_opcodes(stream)):
                if count > MAX_OPCODES:
                    raise Refused(f"has more than {MAX_OPCODES} pickle operations")
                if name == "STOP":
                    return self._pop()
                self._step(name, argument)
        except (ValueError, IndexError, KeyError, TypeError, OverflowError, Warning) as error:
            raise Refused("holds a damaged pickle") from error
        raise Refused("holds a pickle without an end")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > 256:
                raise Refused("holds an integer of more than 256 bits")
            stack.append(argument)
        elif name in _PUTS:
            self._memo[len(self._memo) if argument is None else argument] = self._top()
        elif name in _GETS:
            stack.append(self._memo[argument])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _FIXED_TUPLES:
            stack.append(tuple(self._pop_many(_FIXED_TUPLES[name])))
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name == "GLOBAL":
            stack.append(self._find(*argument.split(" ", 1)))
        elif name not in ("PROTO", "FRAME"):
            raise Refused(f"uses the pickle operation {name}, which no weight file needs")

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise Refused("holds a damaged pickle")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self._stack.pop()
        return value

    def _pop_many(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while (value := self._stack.pop()) is not _MARK:
            values.append(value)
        return values[::-1]

    def _find(self, module: Any, name: Any) -> Builder:
        builder = self._builders.get((module, name)) if isinstance(module, str) else None
        if builder is None:
            raise Refused(
                f"asks for {f'{module}.{name}'[:80]!r}, which is not data; nothing was executed "
                "(only tensors and plain containers are read: save the state dict alone)"
            )
        return builder

    def _stack_global(self) -> None:
        self._stack.append(self._find(*self._pop_many(2)))

    def _reduce(self) -> None:
        builder, arguments = self._pop_many(2)
        if not isinstance(builder, Builder) or not isinstance(arguments, tuple):
            raise Refused("calls something that is not a known builder of data")
        self._stack.append(builder.build(arguments))

    def _build(self) -> None:
        state = self._pop()
        target = self._top()
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, OrderedDict):
            raise Refused("sets the attributes of something that is not data")

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise Refused("appends to something that is not a list")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict):
            raise Refused("sets items of something that is not a dictionary")
        _fill(target, values)

    def _dict(self) -> None:
        values = self._pop_to_mark()
        self._stack.append(_fill({}, values))


def _fill(target: dict, values: list[Any]) -> dict:
    if len(values) % 2:
        raise Refused("holds a damaged pickle")
    for key, value in zip(values[::2], values[1::2], strict=True):
        check_key(key)
        target[key] = value
    return target


def check_key(key: Any) -> None:
    """Raises `Refused` unless a key is text, a whole number of 64 bits, a truth value or None."""
    if isinstance(key, str):
        if len(key) > MAX_KEY_CHARACTERS:
            raise Refused(f"uses a name of {len(key)} characters")
    elif not (key is None or isinstance(key, int) and key.bit_length() < 64):
        raise Refused(f"uses a {type(key).__name__} as a dictionary key")


_ACTIONS: dict[str, Callable[[Machine], Any]] = {
    "MARK": lambda machine: machine._stack.append(_MARK),
    "POP": lambda machine: machine._stack.pop(),
    "POP_MARK": lambda machine: machine._pop_to_mark(),
    "EMPTY_LIST": lambda machine: machine._stack.append([]),
    "EMPTY_DICT": lambda machine: machine._stack.append({}),
    "LIST": lambda machine: machine._stack.append(machine._pop_to_mark()),
    "TUPLE": lambda machine: machine._stack.append(tuple(machine._pop_to_mark())),
    "DICT": lambda machine: machine._dict(),
    "APPEND": lambda machine: machine._append([machine._pop()]),
    "APPENDS": lambda machine: machine._append(machine._pop_to_mark()),
    "SETITEM": lambda machine: machine._set_items(machine._pop_many(2)),
    "SETITEMS": lambda machine: machine._set_items(machine._pop_to_mark()),
    "STACK_GLOBAL": lambda machine: machine._stack_global(),
    "REDUCE": lambda machine: machine._reduce(),
    "NEWOBJ": lambda machine: machine._reduce(),
    "BUILD": lambda machine: machine._build(),
    "BINPERSID": lambda machine: machine._stack.append(machine._persistent(machine._pop())),
}


def check_tree(tree: Any, leaves: tuple[type, ...]) -> None:
    """Raises `Refused` unless the tree is finite, shallow and made of containers and `leaves` only.

    Shared parts count as often as they are reached, and text by its length, so later walks over the
    tree and its written form are bounded too.
    """
    waiting, count = [(tree, 0)], 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise Refused(f"nests its objects deeper than {MAX_DEPTH} levels")
        if count > MAX_NODES:
            raise Refused(f"holds more than {MAX_NODES} objects")
        if isinstance(value, dict):
            waiting.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list | tuple):
            waiting.extend((item, depth + 1) for item in value)
        elif isinstance(value, Inert):
            waiting.append((value.state, depth + 1))
        elif isinstance(value, str | bytes):
            count += len(value) // 100
        elif not (value is None or isinstance(value, leaves)):
            raise Refused("keeps a reference to code or storage where data was expected")


class _BoundedStream:
    """Gives pickletools at most `MAX_PICKLE_BYTES` of a stream, and lines of at most 64 KiB."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._left = MAX_PICKLE_BYTES

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise Refused(f"holds a pickle of more than {MAX_PICKLE_BYTES >> 20} MiB")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline(1 << 16)
        self._left -= len(line)
        return line


def _opcodes(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    for opcode, argument, _ in pickletools.genops(_BoundedStream(stream)):  # type: ignore[arg-type]
        yield opcode.name, argument
