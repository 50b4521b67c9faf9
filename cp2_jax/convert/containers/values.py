"""What all containers share: their error, and the inert objects that replace the names and objects of a pickle."""

import dataclasses
from typing import Any

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
    """Replaces an object of a harmless class. We use at most what lies in it.

    Attributes:
      name: the class. args: what it was made from. state: its attributes. items, elements: as a dict and as a list.
    """

    __slots__ = ("name", "args", "state", "items", "elements")

    def __init__(self, name: str, args: tuple = ()):
        self.name, self.args, self.state, self.items, self.elements = name, args, None, {}, []


def kind(value: Any) -> str:
    """Return what a value is, for messages."""
    return f"a {value.name} object" if isinstance(value, Inert) else f"a {type(value).__name__}"


def key(value: Any) -> Any:
    """Return a dictionary key or set member if it is a plain one.

    Nested tuples are refused: hashing them takes exponential time (and endless recursion) if a file wants it to.

    Raises:
      Refused: for any other value.
    """
    scalars = str | int | float | bytes | None | Name
    flat = isinstance(value, tuple) and all(isinstance(part, scalars) for part in value)
    if not flat and not isinstance(value, scalars):
        raise Refused(f"{kind(value)} as a dictionary key")
    return value


def make_set(machine: Any, elements: Any = ()) -> set:
    """Return the set of a list's elements, which the machine's budget pays for.

    Raises:
      Refused: it is no list, or an element is no plain key.
    """
    if not isinstance(elements, list | tuple):
        raise Refused("a set made from something other than a list")
    machine.spend(100 * len(elements))
    return {key(e) for e in elements}
