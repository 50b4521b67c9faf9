"""A config as the rest sees it: its keys, quantities derived from it, and its copy in the work directory."""

import json
import os
import pathlib

import jax
from absl import logging
from ml_collections import ConfigDict

from cp2_jax.options import ConfigError, flatten, nearest

# What may change between a run and its resumption: how it is watched, fed and kept, and how long it lasts.
_HARMLESS = (
    "steps", "epochs", "log_every", "save_every", "keep", "picture_every", "probe_every", "probe_images",
    "eval_every", "evaluation.batch_size", "data.workers", "data.prefetch", "data.path", "data.probe_path",
    "data.probe_split", "data.attention", "accumulate", "remat", "shard_state",
)  # fmt: skip


def check_override(config: ConfigDict, name: str) -> None:
    """Refuse an override of a key that the config does not have.

    Args:
      name: as typed, such as "optimizer.learning_rate".

    Raises:
      ConfigError: with the nearest key.
    """
    known = flatten(config)
    sections = {key.rpartition(".")[0] for key in known}
    if name not in known and name not in sections:
        raise ConfigError(f"--config.{name}: there is no such key{nearest(name, known)}")


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch (the remainder joins the next epoch), at least 1."""
    return max(1, num_images // batch_size)


def total_steps(config: ConfigDict, num_images: int) -> int:
    """Return the length of the run: `config.steps`, or else `config.epochs` epochs, at least 1."""
    return config.steps or max(1, int(config.epochs * steps_per_epoch(num_images, config.batch_size)))


def as_plain(config: ConfigDict) -> dict:
    """Return the config as plain JSON values."""
    return json.loads(config.to_json())


def save_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Write `config.json`. If the work directory holds checkpoints, refuse values that would make it another run.

    Values that do no harm, such as `log_every` or a longer run, are listed in the log and taken.

    Raises:
      ConfigError: naming the changed keys with old and new values, or a `config.json` that cannot be read.
    """
    workdir = pathlib.Path(workdir)
    path, new = workdir / "config.json", as_plain(config)
    started = any(step.name.isdecimal() for step in (workdir / "checkpoints").glob("*"))
    if path.exists() and started:
        try:
            old_flat, new_flat = flatten(json.loads(path.read_text())), flatten(new)
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}); put it right, or use another --workdir") from error
        changed = {
            key: f"{key}: was {old_flat.get(key, 'absent')}, now {new_flat.get(key, 'absent')}"
            for key in sorted(old_flat.keys() | new_flat.keys())
            if old_flat.get(key) != new_flat.get(key)
        }
        if changed.keys() - set(_HARMLESS):
            raise ConfigError(
                f"{workdir} holds a run with another config:\n"
                + "".join(f"  {line}\n" for key, line in changed.items() if key not in _HARMLESS)
                + "Resume with the same values, or use another --workdir"
            )
        for line in changed.values():
            logging.warning("resuming with another %s", line)
    workdir.mkdir(parents=True, exist_ok=True)
    # Every process of a run may write it, to the same end.
    temporary = path.with_name(f"config.json.{jax.process_index()}.{os.getpid()}")
    temporary.write_text(json.dumps(new, indent=2) + "\n")
    temporary.replace(path)
