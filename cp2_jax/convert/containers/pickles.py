"""Read a pickle without Python's `pickle`: a small machine that builds plain values and calls nothing that a file names.

`pickle.Unpickler` with a checked `find_class` still calls what it found, writes attributes and grows its memo as the file
tells it. Here every opcode is ours: names become tokens, tokens become values only through a list of builders, and any
other name is refused where the file mentions it. Memory is limited by the size of the file.
"""

import dataclasses
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

from cp2_jax.runs.checkpoints import CheckpointError


class CheckpointFormatError(CheckpointError):
    """A foreign checkpoint cannot be read; the message names the file and says why, in one line."""


class Refused(Exception):
    """A pickle asks for something that is not read; becomes a `CheckpointFormatError` where the file's name is known."""


def printable(text: str, newlines: bool = False) -> str:
    """Return a text that may hold names from a file, with what would move the cursor or break the line written out."""
    return "".join(c if c.isprintable() or (newlines and c == "\n") else repr(c)[1:-1] for c in text)


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle mentions. It is never imported."""

    module: str
    name: str

    def __str__(self):
        return f"{self.module}.{self.name}"


class Inert:
    """Stands for an object of a harmless class that we have no use for, or only for what lies in it.

    Attributes:
      name: the class. args: what it was made from. state: its attributes. items, elements: as a dict and as a list.
    """

    __slots__ = ("name", "args", "state", "items", "elements")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items, self.elements = name, args, None, {}, []


class Machine:
    """Runs one pickle.

    Args:
      stream: positioned at the pickle; left behind its end.
      budget: bytes that the pickle's calls may copy in all.
      builders: what may be built: name → function(machine, *args).
      is_inert: (module, name) → whether objects of that class may be stood for by `Inert`.
      values: names that stand for a value (dtypes).
      persistent: called with a persistent id's value.

    Raises:
      Refused: for a name that is not allowed, or an operation without meaning.
    """

    def __init__(
        self,
        stream: BinaryIO,
        budget: int,
        builders: dict[str, Callable],
        is_inert: Callable[[str, str], bool],
        values: Callable[[str], Any] = lambda name: None,
        persistent: Callable[[Any], Any] | None = None,
    ):
        self.stream, self.budget = stream, budget
        self.builders, self.is_inert = builders, is_inert
        self.values, self.persistent = values, persistent
        self.stack: list = []
        self.below: list[list] = []
        self.memo: dict[int, Any] = {}

    def spend(self, count: int) -> None:
        """Account for `count` bytes (or elements) that are about to be copied."""
        self.budget -= count
        if self.budget < 0:
            raise Refused("it expands to far more than its size: a bomb, not a checkpoint")

    def run(self) -> Any:
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.stream)):
            if count > _MOST_OPCODES:
                raise Refused(f"more than {_MOST_OPCODES} pickle opcodes: a bomb, not a checkpoint")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _CONSTANTS:
                if type(arg) is int and arg.bit_length() > 8192:
                    raise Refused(f"an integer of {arg.bit_length()} bits")
                self.stack.append(arg)
                continue
            operation = _OPERATIONS.get(opcode.name)
            if operation is None:
                raise Refused(f"pickle opcode {opcode.name}, which no known checkpoint uses")
            operation(self, arg)
        raise EOFError

    def slice(self) -> list:
        """Return what lies above the last mark, removing both."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: str, name: str) -> Any:
        """Return the token (or value) of a name that the pickle mentions, or refuse it."""
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        token = Name(module.replace("numpy._core", "numpy.core"), name)
        value = self.values(str(token))
        if value is not None:
            return value
        if str(token) in self.builders or self.is_inert(module, name):
            return token
        raise Refused(
            f"it asks for {module[:80]}.{name[:80]}, which is not on the list of what a checkpoint may hold. If you trust "
            "the file, open it with the library that wrote it and save its state_dict alone: "
            "torch.save(torch.load(file, weights_only=False)['state_dict'], 'weights.pth')"
        )

    def call(self, function: Any, args: Any) -> Any:
        if not isinstance(args, tuple):
            raise Refused("a call whose arguments are no tuple")
        if not isinstance(function, Name):
            raise Refused(f"a call of {_kind(function)}, which is no function")
        builder = self.builders.get(str(function))
        return builder(self, *args) if builder else Inert(str(function), args)


def _kind(value):
    return f"a {value.name} object" if isinstance(value, Inert) else f"a {type(value).__name__}"


def key(value: Any) -> Any:
    """Return a dictionary key or set member if it is a plain one.

    Nested tuples are refused: hashing them takes exponential time (and endless recursion) if a file wants it to.
    """
    scalars = str | int | float | bytes | None | Name
    flat = isinstance(value, tuple) and all(isinstance(part, scalars) for part in value)
    if not flat and not isinstance(value, scalars):
        raise Refused(f"{_kind(value)} as a dictionary key")
    return value


def _put_items(machine: Machine, target: Any, flat: list) -> None:
    if isinstance(target, Inert):
        target = target.items
    if not isinstance(target, dict) or len(flat) % 2:
        raise Refused(f"items put into {_kind(target)}")
    for k, v in zip(flat[::2], flat[1::2], strict=True):
        target[key(k)] = v


def _put_elements(machine: Machine, target: Any, elements: list) -> None:
    if isinstance(target, Inert):
        target = target.elements
    if isinstance(target, set):
        target.update(key(e) for e in elements)
    elif isinstance(target, list):
        target.extend(elements)
    else:
        raise Refused(f"elements put into {_kind(target)}")


def _build(machine: Machine, state: Any) -> None:
    target = machine.stack[-1]
    if hasattr(type(target), "set_state"):
        target.set_state(machine, state)
    elif isinstance(target, Inert):
        target.state = state
    elif not (isinstance(target, OrderedDict) and isinstance(state, dict)):
        # An OrderedDict's attributes are `_metadata` (PyTorch's version numbers): not needed.
        raise Refused(f"attributes set on {_kind(target)}")


def make_set(machine, elements=()):
    if not isinstance(elements, list | tuple):
        raise Refused("a set made from something other than a list")
    machine.spend(100 * len(elements))
    return {key(e) for e in elements}


# The largest known checkpoint has some tens of thousands. One byte of a pickle can become 200 of memory.
_MOST_OPCODES = 5_000_000

_CONSTANTS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip


def _push(make):
    def run(machine, _):
        value = make(machine)  # which may change what machine.stack is
        machine.stack.append(value)

    return run


def _mark(machine, _):
    machine.below.append(machine.stack)
    machine.stack = []


def _pop(machine, _):
    if machine.stack:
        machine.stack.pop()
    else:
        machine.slice()


def _dict(machine):
    made: dict = {}
    _put_items(machine, made, machine.slice())
    return made


def _tuple(count):
    def take(machine, _):
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return take


def _with_slice(action):
    def run(machine, _):
        items = machine.slice()
        action(machine, machine.stack[-1], items)

    return run


def _put(machine, index):
    machine.memo[len(machine.memo) if index is None else index] = machine.stack[-1]


def _reduce(machine, _):
    args = machine.stack.pop()
    machine.stack[-1] = machine.call(machine.stack[-1], args)


def _newobj_ex(machine, _):
    keywords = machine.stack.pop()
    if keywords:
        raise Refused("an object made with keyword arguments")
    _reduce(machine, _)


def _inst(machine, arg):
    module, name = arg.split(" ", 1)
    args = tuple(machine.slice())
    machine.stack.append(machine.call(machine.name(module, name), args))


def _obj(machine, _):
    function, *args = machine.slice()
    machine.stack.append(machine.call(function, tuple(args)))


def _stack_global(machine, _):
    name, module = machine.stack.pop(), machine.stack.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Refused("a name that is no text")
    machine.stack.append(machine.name(module, name))


def _persistent(machine, identity):
    if machine.persistent is None:
        raise Refused("a persistent id, which only PyTorch's files have")
    machine.stack.append(machine.persistent(identity))


def _two(machine, _):
    value, k = machine.stack.pop(), machine.stack.pop()
    _put_items(machine, machine.stack[-1], [k, value])


def _one(machine, _):
    value = machine.stack.pop()
    _put_elements(machine, machine.stack[-1], [value])


_OPERATIONS: dict[str, Callable[[Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": _push(lambda machine: None),
    "NEWTRUE": _push(lambda machine: True),
    "NEWFALSE": _push(lambda machine: False),
    "EMPTY_LIST": _push(lambda machine: []),
    "EMPTY_TUPLE": _push(lambda machine: ()),
    "EMPTY_DICT": _push(lambda machine: {}),
    "EMPTY_SET": _push(lambda machine: set()),
    "LIST": _push(Machine.slice),
    "TUPLE": _push(lambda machine: tuple(machine.slice())),
    "FROZENSET": _push(lambda machine: make_set(machine, machine.slice())),
    "DICT": _push(_dict),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.slice() and None,
    "DUP": _push(lambda machine: machine.stack[-1]),
    "APPEND": _one,
    "APPENDS": _with_slice(_put_elements),
    "ADDITEMS": _with_slice(_put_elements),
    "SETITEM": _two,
    "SETITEMS": _with_slice(_put_items),
    "PUT": _put,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "MEMOIZE": _put,
    "GET": lambda machine, arg: machine.stack.append(machine.memo[arg]),
    "BINGET": lambda machine, arg: machine.stack.append(machine.memo[arg]),
    "LONG_BINGET": lambda machine, arg: machine.stack.append(machine.memo[arg]),
    "GLOBAL": lambda machine, arg: machine.stack.append(machine.name(*arg.split(" ", 1))),
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "NEWOBJ_EX": _newobj_ex,
    "INST": _inst,
    "OBJ": _obj,
    "BUILD": lambda machine, _: _build(machine, machine.stack.pop()),
    "PERSID": _persistent,
    "BINPERSID": lambda machine, _: _persistent(machine, machine.stack.pop()),
}
