"""How images of more than 8 bits are scaled: as in the run that a model comes from, whose weights know nothing else."""

import os
from collections.abc import Collection, Mapping

from ml_collections import ConfigDict

from cp2_jax.runs.checkpoints import read_variables


def of_run(meta: Mapping) -> tuple[float, ...]:
    """Return `data.value_range` of the run that a checkpoint is of; () if it says none."""
    return tuple(meta.get("config", {}).get("data", {}).get("value_range", ()))


def of_checkpoint(checkpoint: str | os.PathLike) -> tuple[float, ...]:
    """Return `data.value_range` of a checkpoint's run; () if it says none.

    Raises:
      CheckpointError: there is no checkpoint.
    """
    return of_run(read_variables(checkpoint)[1])


def follow(
    config: ConfigDict, theirs: tuple[float, ...], source: str | os.PathLike, explicit: Collection[str] = ()
) -> None:
    """Give a config the `data.value_range` of the run that it starts from, unless it has one; either is printed.

    Args:
      config: of any job; changed in place.
      theirs: the other run's.
      source: the other run, for the message.
      explicit: names of keys that keep the config's value.
    """
    if not theirs or "value_range" not in config.data or tuple(config.data.value_range) == theirs:
        return
    ours = tuple(config.data.value_range)
    if ours or "data.value_range" in explicit:
        print(f"mind: data.value_range is {ours}, as asked for, not {theirs} as in {os.fspath(source)}", flush=True)
        return
    config.data.value_range = theirs
    print(f"images of more than 8 bits are scaled as in {os.fspath(source)}: data.value_range={theirs}", flush=True)
