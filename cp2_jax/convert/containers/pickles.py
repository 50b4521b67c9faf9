"""Read a pickle without Python's `pickle`: a small machine that builds plain values and calls nothing that a file names.

`pickle.Unpickler` with a checked `find_class` still calls what it found, writes attributes and grows its memo as the file
tells it. Here every opcode is ours: names become tokens, tokens become values only through a list of builders, and any
other name is refused where the file mentions it. Memory is limited by the size of the file.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO

from cp2_jax.convert.containers.opcodes import CONSTANTS, OPERATIONS
from cp2_jax.convert.containers.values import Inert, Name, Refused, kind

# The largest known checkpoint has some tens of thousands. One byte of a pickle can become 200 of memory.
_MOST_OPCODES = 5_000_000


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
        """Account for `count` bytes (or elements) that are about to be copied.

        Raises:
          Refused: the budget is used up.
        """
        self.budget -= count
        if self.budget < 0:
            raise Refused("it expands to far more than its size: a bomb, not a checkpoint")

    def run(self) -> Any:
        """Return the value of the pickle at the stream's position.

        Raises:
          Refused: see the class. EOFError: the stream ends first.
        """
        for count, (opcode, arg, _) in enumerate(pickletools.genops(self.stream)):
            if count > _MOST_OPCODES:
                raise Refused(f"more than {_MOST_OPCODES} pickle opcodes: a bomb, not a checkpoint")
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in CONSTANTS:
                if type(arg) is int and arg.bit_length() > 8192:
                    raise Refused(f"an integer of {arg.bit_length()} bits")
                self.stack.append(arg)
                continue
            operation = OPERATIONS.get(opcode.name)
            if operation is None:
                raise Refused(f"pickle opcode {opcode.name}, which no known checkpoint uses")
            operation(self, arg)
        raise EOFError

    def slice(self) -> list:
        """Return what lies above the last mark, removing both."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def name(self, module: str, name: str) -> Any:
        """Return the token (or value) of a name that the pickle mentions.

        Raises:
          Refused: the name is not on the list.
        """
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        token = Name(module.replace("numpy._core", "numpy.core"), name)
        value = self.values(str(token))
        if value is not None:
            return value
        if str(token) in self.builders or self.is_inert(module, name):
            return token
        raise Refused(
            f"it asks for {module[:80]}.{name[:80]}, which is not on the list of what a checkpoint may hold; if you trust "
            "it, save its state_dict alone: torch.save(torch.load(FILE, weights_only=False)['state_dict'], 'weights.pth')"
        )

    def call(self, function: Any, args: Any) -> Any:
        """Return what a call of a name stands for: its builder's value, or an inert object.

        Raises:
          Refused: the pickle calls something else than a listed name.
        """
        if not isinstance(args, tuple):
            raise Refused("a call whose arguments are no tuple")
        if not isinstance(function, Name):
            raise Refused(f"a call of {kind(function)}, which is no function")
        builder = self.builders.get(str(function))
        return builder(self, *args) if builder else Inert(str(function), args)
