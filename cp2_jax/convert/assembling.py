"""A file's tensors as the network's: fused from their parts, complete, of the right shapes, nothing left over unnoticed."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped

from cp2_jax.convert import networks
from cp2_jax.convert.containers import files
from cp2_jax.convert.containers.values import Refused
from cp2_jax.convert.detection import Match


@dataclasses.dataclass
class Lazy:
    """A canonical tensor whose parts are still in the file: shape now, values later.

    Attributes:
      parts: (array in the file, how to turn it), joined along the first axis.
    """

    parts: list[tuple[Any, Any]]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parts, turned and joined; nothing is read."""
        shapes = [turn(np.broadcast_to(np.zeros((), bool), array.shape)).shape for array, turn in self.parts]
        return (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else tuple(shapes[0])

    def numpy_value(self) -> Shaped[np.ndarray, "*shape"]:
        """Return the values."""
        turned = [turn(files.to_numpy(array)) for array, turn in self.parts]
        return np.concatenate(turned) if len(turned) > 1 else turned[0]


def merge(match: Match) -> tuple[dict[str, Lazy], dict[str, list[str]]]:
    """Return the canonical tensors, fused where they come in parts, and the source names of each.

    Raises:
      Refused: two tensors are the same one of the network, a part is missing, or one has other axes.
    """
    found: dict[str, dict[str, tuple[str, Any]]] = {}
    for source, (canonical, turn) in match.assigned.items():
        name, _, part = canonical.partition("#")
        if part in found.setdefault(name, {}):
            raise Refused(f"{source} and {found[name][part][0]} are both {name}")
        found[name][part] = (source, turn)
    merged, sources = {}, {}
    for name, parts in found.items():
        if "" not in parts and sorted(parts) != ["0", "1", "2"]:
            have = ", ".join(source for source, _ in parts.values())
            raise Refused(f"{name}: of query, key and value only {have} is there")
        ordered = [parts[k] for k in sorted(parts)]
        sources[name] = [source for source, _ in ordered]
        try:
            merged[name] = Lazy([(match.tensors[source], turn) for source, turn in ordered])
            _ = merged[name].shape  # turns that do not fit fail here, where the name is known
        except ValueError as error:
            raise Refused(f"{sources[name][0]} has {len(match.tensors[sources[name][0]].shape)} axes") from error
    return merged, sources


def leave_out(match: Match) -> dict[str, str]:
    """Return {source name: why it is left out}.

    Raises:
      Refused: the tensors are of a network that only looks like ours.
    """
    reasons = {}
    for source in match.tensors:
        if source in match.assigned:
            continue
        if source.startswith(match.prefix):
            for pattern, reason in networks.NOT_OURS:
                if re.match(pattern, source[len(match.prefix) :]):
                    raise Refused(f"{source}: {reason}")
        known = (why for start, why in match.format.left_out if source.startswith(start))
        ended = (why for end, why in _BOOKKEEPING.items() if source.endswith(end))
        reasons[source] = next(known, next(ended, ""))
    return reasons


_BOOKKEEPING = {
    "_ema/hidden": "the average before Haiku's correction of its start",
    "_ema/counter": "Haiku's count of batches",
    "/Momentum": "the optimiser's",
    "/Momentum_1": "the optimiser's",
}
_ROOTS = r"(conv1|bn1|layer\d+|blocks|layers|patch_embed|cls_token|pos_embed|norm|ln1|embeddings|encoder)(\.|$)"


def in_order(expected: Mapping, shapes: Mapping) -> dict[str, tuple[int, ...]]:
    """Return the expected tensors in the file's order; what the file lacks comes last, kernels first."""
    there = [name for name in shapes if name in expected]
    missing = sorted(expected, key=lambda name: -len(expected[name]))
    return {name: expected[name] for name in dict.fromkeys([*there, *missing])}


def check(match: Match, shapes: Mapping, expected: Mapping, sources: Mapping, left_out: dict) -> None:
    """Require all tensors of the network, of the right shapes, and no others.

    Args:
      shapes: of the file's tensors. expected: of the network's. sources: names of those in the file.
      left_out: what `leave_out` gave; a reason is filled in where there is none.

    Raises:
      Refused: naming the tensors that are missing, have another shape, or are surplus.
    """
    spare = [name for name, reason in left_out.items() if not reason]
    problems = []
    for name, shape in expected.items():
        if name not in shapes:
            near = difflib.get_close_matches(name, spare, 2, 0.5) or difflib.get_close_matches(name, match.tensors, 2, 0.5)
            problems.append(f"{name} is missing (nearest: {', '.join(near) or 'nothing like it'})")
        elif tuple(shapes[name]) != tuple(shape):
            problems.append(f"{sources[name][0]} is {shapes[name]}, {name} takes {shape}")
    problems += [f"{sources[name][0]}: no such tensor in this network" for name in shapes if name not in expected]
    for name in spare:
        rest = name[len(match.prefix) :] if name.startswith(match.prefix) else ""
        if rest and (match.prefix or re.match(_ROOTS, rest)):
            problems.append(f"{name}: no such tensor in this network")
        left_out[name] = "no part of this project's models"
    if problems:
        shown = problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise Refused(
            f"read as {match.format.title} ({match.format.name}), {len(problems)} of its tensors do not fit:\n  "
            + "\n  ".join(shown)
        )
