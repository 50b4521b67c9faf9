"""What each opcode of a pickle does to the machine that runs it, see `pickles.Machine`."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from cp2_jax.convert.containers.values import Inert, Refused, key, kind, make_set

# Opcodes whose argument is the value.
CONSTANTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


def _put_items(machine: Any, target: Any, flat: list) -> None:
    if isinstance(target, Inert):
        target = target.items
    if not isinstance(target, dict) or len(flat) % 2:
        raise Refused(f"items put into {kind(target)}")
    for k, v in zip(flat[::2], flat[1::2], strict=True):
        target[key(k)] = v


def _put_elements(machine: Any, target: Any, elements: list) -> None:
    if isinstance(target, Inert):
        target = target.elements
    if isinstance(target, set):
        target.update(key(e) for e in elements)
    elif isinstance(target, list):
        target.extend(elements)
    else:
        raise Refused(f"elements put into {kind(target)}")


def _build(machine: Any, state: Any) -> None:
    target = machine.stack[-1]
    if hasattr(type(target), "set_state"):
        target.set_state(machine, state)
    elif isinstance(target, Inert):
        target.state = state
    elif not (isinstance(target, OrderedDict) and isinstance(state, dict)):
        # An OrderedDict's attributes are `_metadata` (PyTorch's version numbers): not needed.
        raise Refused(f"attributes set on {kind(target)}")


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


OPERATIONS: dict[str, Callable[[Any, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "NONE": _push(lambda machine: None),
    "NEWTRUE": _push(lambda machine: True),
    "NEWFALSE": _push(lambda machine: False),
    "EMPTY_LIST": _push(lambda machine: []),
    "EMPTY_TUPLE": _push(lambda machine: ()),
    "EMPTY_DICT": _push(lambda machine: {}),
    "EMPTY_SET": _push(lambda machine: set()),
    "LIST": _push(lambda machine: machine.slice()),
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
