"""What a format of checkpoints is: one entry of `formats.FORMATS`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from cp2_jax.convert.layouts import Layout
from cp2_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD

IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
UNIT = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
INPUTS = {"imagenet": IMAGENET, "half": HALF, "unit": UNIT}


# The last is a plain state_dict, and safetensors, which holds nothing else.
ANYWHERE = (("state_dict",), ("model",), ())

Names = frozenset[str]


def always(names: Names, tree: Mapping) -> bool:
    """Ask for no evidence: the names of the tensors are enough."""
    return True


def unknown(width: int) -> None:
    """Say that the format does not tell the number of attention heads."""


@dataclasses.dataclass(frozen=True)
class Format:
    """One source of checkpoints.

    Attributes:
      name: for --format. title: for people.
      at: where in the file its named tensors may lie. prefixes: whole prefixes of the backbone's names, in order.
      layouts: what follows the prefix.
      evidence: (names, file) → whether this source wrote it.
      head: prefix of a segmentation head that is loaded too, relative to where the backbone's prefix begins.
      left_out: ((start of the name, why), …).
      heads: attention heads by width of the network, or None if nobody knows.
      input: mean and standard deviation that the network's inputs are normalised with, on [0, 1].
      padding: of `models.resnet.ResNet`.
      rates: settings of a segmentation model's backbone and head that the weights do not tell, by the name of the part,
        where no config text does. rates_of: whose these are.
      notes: what a user should know.
    """

    name: str
    title: str
    prefixes: tuple[str, ...]
    layouts: tuple[Layout, ...]
    at: tuple[tuple[str, ...], ...] = ANYWHERE
    evidence: Callable[[Names, Mapping], bool] = always
    head: str | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    heads: Callable[[int], int | None] = unknown
    input: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    padding: str = "torch"
    rates: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    rates_of: str = "CP²'s code"
    notes: tuple[str, ...] = ()
    automatic: bool = True
