"""Carries out the few instructions that pickles of tensors consist of; nothing is imported, and nothing is called.

A pickle is a program for a stack machine. Python's own machine imports whatever the program names and calls it with
whatever it says. Kept to a list of names by ``find_class`` it still calls what it is given, sets attributes, and makes
its memo as large as an instruction claims. So the instructions that ``torch.save`` writes are carried out here, on
values that can do nothing; any other instruction, and any name that is not listed, is refused. ``pickletools`` of the
standard library only takes the program apart, and no more is used of it.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

MAX_INSTRUCTIONS = 100_000  # an embedding takes some 200

# What torch calls the kinds of numbers, and NumPy; "bfloat16" NumPy does not have.
STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = "torch._utils._rebuild_parameter"
MAPPING = "collections.OrderedDict"
SETS = ("__builtin__.set", "builtins.set")
MODULE = "torch.nn.modules.container.ParameterDict"  # in which the first programs kept their vectors
NAMES = {*STORAGES, *TENSORS, PARAMETER, MAPPING, *SETS, MODULE}


class UnreadableError(Exception):
    """A file is damaged, or holds anything but tensors; the message says what, without the file's name."""


@dataclass(frozen=True)
class Name:
    """A name that the program mentions, one of ``NAMES``."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Numbers that the file holds beside its program."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, as the program claims it; nothing of it is checked yet.

    Attributes:
        storage: the numbers.
        offset: of the first one.
        size, stride: along each dimension, in numbers.
    """

    storage: Storage
    offset: Any
    size: Any
    stride: Any


@dataclass
class Module:
    """A torch module: what it holds by name, its parameters among it."""

    state: dict[Any, Any] = field(default_factory=dict)


class Machine:
    """Runs one program; the storages it mentions are collected in ``storages``."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def run(self, stream: IO[bytes]) -> Any:
        """What the program leaves; the stream is left behind its end.

        Raises:
            UnreadableError: as said.
        """
        try:
            for count, (instruction, argument, _) in enumerate(pickletools.genops(stream)):
                if count == MAX_INSTRUCTIONS:
                    raise UnreadableError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions")
                self.step(instruction.name, argument)
            return self.stack.pop()
        # Too few values on the stack, an argument of the wrong kind, a text that is none.
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise UnreadableError(f"its pickle is damaged ({' '.join(str(error).split())[:100]})") from error

    def step(self, instruction: str, argument: Any) -> None:
        if instruction in CONSTANTS:
            self.stack.append(CONSTANTS[instruction]())
        elif instruction in VALUES:
            self.stack.append(argument)
        elif instruction in ACTIONS:
            ACTIONS[instruction](self, argument)
        elif instruction not in NOTHING_TO_DO:
            raise UnreadableError(f"its pickle has the instruction {instruction}, which no tensor needs")

    def above_mark(self) -> list[Any]:
        begin = self.marks.pop()
        if begin > len(self.stack):
            raise IndexError("a mark above the stack")
        values = self.stack[begin:]
        del self.stack[begin:]
        return values

    def last(self, count: int) -> None:
        """A tuple of the last values in their place."""
        values = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(values)))

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("it adds to what is no list")
        target += values

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("it sets keys of what is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):  # others may be nested as deep as the file is long, and hashing recurses
                raise TypeError(f"a key is {type(key).__name__}")
            target[key] = value

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):  # tuples of themselves print without an end
            raise TypeError("a name is no text")
        full = f"{module}.{name}"
        if full not in NAMES:
            raise UnreadableError(f"it asks for {full[:100]!r}, and only tensors are read, since a pickle can run code")
        self.stack.append(Name(full))

    def stored(self) -> None:
        """What stands for something beside the program.

        ("storage", kind, key, device, count of numbers, and once: a view, or None); before 1.6 also ("module", name,
        and its source), which stands for the name.
        """
        kind, called, *rest = self.stack.pop()
        if kind == "module" and isinstance(called, Name):
            self.stack.append(called)
            return
        key, _, count, *view = rest
        if kind != "storage" or called.name not in STORAGES or not isinstance(key, str) or view not in ([], [None]):
            raise ValueError("a storage of an unknown kind")
        if not is_count(count):
            raise ValueError("a storage without a size")
        storage = Storage(key, STORAGES[called.name], count)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("one storage of two kinds")
        self.stack.append(storage)

    def rebuild(self) -> None:
        """What a call would have made, for the few calls that are known."""
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise TypeError("it calls what is no name")
        if called.name in TENSORS and len(arguments) >= 4 and isinstance(arguments[0], Storage):
            self.stack.append(Tensor(*arguments[:4]))
        elif called.name == PARAMETER and arguments and isinstance(arguments[0], Tensor):
            self.stack.append(arguments[0])
        elif called.name == MAPPING and not arguments:
            self.stack.append({})
        elif called.name in SETS:
            self.stack.append([])
        elif called.name == MODULE and not arguments:
            self.stack.append(Module())
        else:
            raise TypeError(f"it calls {called.name} in a way that is not known")

    def build(self) -> None:
        """Give an object its state; a mapping has none that matters."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Module) and isinstance(state, dict):
            target.state = state
        elif not isinstance(target, dict):
            raise TypeError(f"it gives a state to {type(target).__name__}")


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62


CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
VALUES |= {"BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
NOTHING_TO_DO = {"PROTO", "FRAME", "STOP"}
ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.above_mark())),
    "TUPLE1": lambda machine, _: machine.last(1),
    "TUPLE2": lambda machine, _: machine.last(2),
    "TUPLE3": lambda machine, _: machine.last(3),
    "APPEND": lambda machine, _: machine.extend([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.above_mark()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.above_mark()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.above_mark()),
    "BINPUT": lambda machine, place: machine.remember(place),
    "LONG_BINPUT": lambda machine, place: machine.remember(place),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
    "GLOBAL": lambda machine, name: machine.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.name(machine.stack.pop(-2), machine.stack.pop()),
    "BINPERSID": lambda machine, _: machine.stored(),
    "REDUCE": lambda machine, _: machine.rebuild(),
    "NEWOBJ": lambda machine, _: machine.rebuild(),
    "BUILD": lambda machine, _: machine.build(),
}
