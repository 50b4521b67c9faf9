"""Start a run's model from a checkpoint: fit it to the config, then put its parts in place of the initial ones."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cp2_jax.convert.fitting import fit
from cp2_jax.options import ConfigError, from_section, one_of
from cp2_jax.runs.checkpoints import read_variables


class InitError(ConfigError):
    """A checkpoint does not fit the model; the message says where, and what to do."""


# Where head and projection of a run's model may come from.
ORIGINS = ("checkpoint", "random")


@dataclasses.dataclass(frozen=True)
class InitOptions:
    """The section `init` of a config, checked.

    Attributes:
      checkpoint: converted checkpoint or work directory to start from; empty: from scratch.
      head, projection: in `ORIGINS`. Finetuning has no projection.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    checkpoint: str = ""
    head: str = "checkpoint"
    projection: str = "random"

    from_config = from_section("init")

    def __post_init__(self):
        one_of("init.head", self.head, ORIGINS)
        one_of("init.projection", self.projection, ORIGINS)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A checkpoint that fits the backbone of a config.

    Attributes:
      variables: {'params', 'batch_stats'}, NumPy arrays.
      notes: what a user should know of them, a line each.
    """

    variables: Mapping
    notes: tuple[str, ...] = ()


def load(config: ConfigDict) -> Loaded:
    """Read `config.init.checkpoint` and fit it to the model; nothing is compiled.

    Raises:
      CheckpointError: there is no checkpoint, or it was made for other settings (see `convert.fitting.fit`).
    """
    variables, meta = read_variables(config.init.checkpoint)
    variables, notes = fit(variables, meta, config.model, image_size=config.image_size)
    return Loaded(variables, tuple(notes))


def start(config: ConfigDict, initial: Mapping, loaded: Loaded | None = None) -> tuple[dict, str]:
    """Return the variables of a run that starts from `config.init.checkpoint`, and the table of what came from where.

    Args:
      config: a pretraining or finetuning config; `init.head` and, if there is one, `init.projection` say whether these
        parts come from the "checkpoint" or stay "random". The backbone always comes from the checkpoint.
      initial: variables {'params', 'batch_stats'} of the run's model, initialised at random.
      loaded: of `load`; None: it is read here.

    Raises:
      InitError: a wanted part is not in the checkpoint, in part or whole, or has other shapes.
      CheckpointError: see `load`.
    """
    loaded = loaded or load(config)
    variables, table = merge(initial, loaded.variables, config.init.head, config.init.get("projection", "random"))
    return variables, "\n".join([f"{config.init.checkpoint}:", table, *(f"mind: {note}" for note in loaded.notes)])


def origin(config: ConfigDict, initial: Mapping) -> str:
    """Return one line on where the parts of a run's model come from, for a `start` that went well.

    Args:
      config, initial: see `start`.
    """
    wanted = _wanted(config.init.head, config.init.get("projection", "random"))
    loaded = [part for part in initial["params"] if part in wanted]
    fresh = [part for part in initial["params"] if part not in wanted]
    return f"{', '.join(loaded)} from {config.init.checkpoint}" + (f"; {', '.join(fresh)} at random" if fresh else "")


def _wanted(head: str, projection: str) -> set[str]:
    origins = {"backbone": "checkpoint", "head": head, "projection": projection}
    return {part for part, origin in origins.items() if origin == "checkpoint"}


def merge(initial: Mapping, loaded: Mapping, head: str, projection: str = "random") -> tuple[dict, str]:
    """Put a checkpoint's backbone, and its head and projection if wanted, in place of the initial ones.

    Args:
      initial: variables {'params', 'batch_stats'} of the run's model.
      loaded: variables of a pretraining, finetuning or converted checkpoint.
      head: "checkpoint" or "random" (Quick Tuning; the baselines of the paper; Table 3's ablation).
      projection: likewise; where the run's model has none, nothing is wanted.

    Returns:
      The variables as NumPy arrays of `initial`'s types, and a table that says for each part what was loaded, left out,
      or stays as it was initialised.

    Raises:
      InitError: if a wanted part is not in the checkpoint, in part or whole, or has other shapes.
    """
    wanted = _wanted(head, projection)
    ours, theirs = _by_part(initial), _by_part(loaded)
    problems, merged, rows = [], {}, []
    for part, leaves in ours.items():
        other = theirs.get(part, {})
        use = part in wanted
        if use and not other:
            advice = "" if part == "backbone" else f"; set init.{part}=random to start it afresh"
            problems.append(f"{part}: not in the checkpoint, which has {', '.join(theirs) or 'nothing'}{advice}")
        elif use:
            # Parameters before statistics, whose shapes follow from theirs.
            for name in sorted(leaves.keys() | other.keys(), key=lambda name: (name[0] != "params", name)):
                shapes = [tuple(x[name].shape) if name in x else "absent" for x in (other, leaves)]
                if shapes[0] != shapes[1]:
                    problems.append(f"{'/'.join(name)}: checkpoint {shapes[0]}, model {shapes[1]}")
        merged |= {name: other.get(name, value) if use else value for name, value in leaves.items()}
        rows.append((part, "loaded" if use else "initial", leaves))
    rows += [(part, "left out", leaves) for part, leaves in theirs.items() if part not in ours or part not in wanted]
    if problems:
        shown = problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise InitError("init.checkpoint does not fit config.model:\n  " + "\n  ".join(shown))
    lines = [f"{'part':12} {'from':10} {'arrays':>7} {'values':>12}"]
    lines += [
        f"{part:12} {origin:10} {len(leaves):7d} {sum(x.size for x in leaves.values()):12,d}"
        for part, origin, leaves in rows
    ]
    variables = {"batch_stats": {}} | traverse_util.unflatten_dict(merged)
    # The checkpoint's arrays may be of another precision. NumPy's, so that every process of a run may place them anywhere.
    return jax.tree.map(lambda new, old: np.asarray(new, old.dtype), variables, dict(initial)), "\n".join(lines)


def _by_part(variables: Mapping) -> dict[str, dict[tuple, Any]]:
    """Return {'backbone': {('params', 'backbone', …): array}, 'head': …} over parameters and statistics."""
    parts: dict[str, dict] = {}
    for name, value in traverse_util.flatten_dict(dict(variables)).items():
        parts.setdefault(name[1], {})[name] = value
    return parts
