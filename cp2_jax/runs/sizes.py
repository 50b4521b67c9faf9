"""Values that follow from the data and the machine: what a config leaves open, and how what is chosen is filled in.

A config leaves a key open by the value -1, as the variant `small` does with all of them. A job's own rule (such as
`pretraining.sizes.fit_to_data`) chooses; a value that the user gives is never changed.
"""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from cp2_jax.options import flatten
from cp2_jax.paths import AnyPath, at
from cp2_jax.runs import settings

OPEN = -1  # the value of a key that is chosen when the run starts
USABLE = 0.8  # share of a device's memory that a step may take
_AS_BEFORE = "as before"


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the rules have to know of the devices.

    Attributes:
      devices: of all processes.
      memory: bytes of each device.
      cores: of each process's host.
      accelerator: whether the devices are GPUs or TPUs.
    """

    devices: int
    memory: float
    cores: int
    accelerator: bool


@dataclasses.dataclass(frozen=True)
class Choice:
    """A value that was chosen, and why, in words that follow "key = value: "."""

    value: Any
    reason: str


class Choices:
    """What is chosen, key after key. A value that is given goes before what would be chosen.

    Attributes:
      chosen: the choice by key, for the keys that are not given.
    """

    def __init__(self, fixed: Mapping[str, Any] | None):
        self.chosen: dict[str, Choice] = {}
        self._fixed = dict(fixed or {})

    def take(self, key: str, choice: Choice) -> Any:
        """Return the value of a key: the given one, or else the choice, which is kept in `chosen`."""
        if key in self._fixed:
            return self._fixed[key]
        self.chosen[key] = choice
        return choice.value


def this_machine() -> Machine:
    """Return the devices of this run. Processes take the numbers of the first one, so that all choose alike."""
    device = jax.local_devices()[0]
    accelerator = device.platform != "cpu"
    memory = (device.memory_stats() or {}).get("bytes_limit") if accelerator else None
    if not memory:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / jax.local_device_count()
    numbers = np.array([memory, os.cpu_count() or 1])
    if jax.process_count() > 1:
        numbers = multihost_utils.broadcast_one_to_all(numbers)
    return Machine(jax.device_count(), float(numbers[0]), int(numbers[1]), accelerator)


def is_open(config: ConfigDict, keys: tuple[str, ...]) -> bool:
    """Say whether a config leaves one of these keys open."""
    flat = flatten(config)
    return any(flat.get(key) == OPEN for key in keys)


def fixed(config: ConfigDict, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of those keys that a config does not leave open."""
    flat = flatten(config)
    return {key: flat[key] for key in keys if flat[key] != OPEN}


def earlier(workdir: str | AnyPath) -> dict[str, Any]:
    """Return the values that a run which is going to be resumed has, by key; {} where there is none.

    A run that goes on keeps what was chosen at its start, also on another machine.

    Raises:
      ConfigError: see `settings.saved_config`.
    """
    return flatten(settings.saved_config(at(workdir), warn=False) or {})  # `settings.save_config` says what is wrong


def fill(config: ConfigDict, choices: Mapping[str, Choice], before: Mapping[str, Any]) -> str:
    """Put what was chosen where a config leaves it open.

    Args:
      config: changed in place.
      choices: by key.
      before: values of a run that is resumed, which go before what is chosen now; see `earlier`.

    Returns:
      Lines "key = value: reason".
    """
    lines = []
    for key, choice in choices.items():
        kept = key in before and before[key] != OPEN
        value, reason = (before[key], _AS_BEFORE) if kept else (choice.value, choice.reason)
        config.update_from_flattened_dict({key: value})
        lines.append(f"{key} = {value:g}: {reason}" if isinstance(value, float) else f"{key} = {value}: {reason}")
    return "\n".join(lines)


def say(text: str, reasons: str, workdir: str | AnyPath) -> None:
    """Print what was chosen, in a line or two, and write the reasons into `workdir/sizes.txt`.

    A run that goes on leaves the file of its start as it is.
    """
    if jax.process_index():
        return
    path = at(workdir) / "sizes.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or f": {_AS_BEFORE}" not in reasons:
        path.write_text(reasons + "\n", encoding="utf-8")
    print(text, flush=True)


def batch_limits(machine: Machine, *, paper: int, on_cpu: int, image_bytes: float, fixed_bytes: float) -> dict[int, str]:
    """Return the numbers of images that a batch may have at most, each with its reason.

    Args:
      paper: the paper's batch.
      on_cpu: the largest batch without an accelerator.
      image_bytes, fixed_bytes: memory of a device that each of its images takes, and that all else takes.
    """
    room = max(0, int((USABLE * machine.memory - fixed_bytes) / image_bytes)) * machine.devices
    limits = {room: f"what {machine.memory / 1e9:.0f} GB a device hold", paper: "the paper's"}
    return limits if machine.accelerator else limits | {on_cpu: "a step on a CPU is to end within seconds"}


def looking(total: int) -> dict[str, Choice]:
    """Return how often a run of `total` steps logs, saves, draws and measures: seldom enough to cost nothing."""
    shares = {"log_every": (100, 5, 50), "save_every": (20, 25, 1000)}
    shares |= {"picture_every": (4, 25, 5000), "probe_every": (10, 25, 1000)}
    return {
        key: Choice(
            min(most, max(1, total // times, min(total, least))),
            f"{times} times in {total:,d} steps, {least:,d} to {most:,d} steps apart",
        )
        for key, (times, least, most) in shares.items()
    }


def workers(machine: Machine) -> Choice:
    """Return how many processes decode images."""
    if not machine.accelerator:
        return Choice(0, "training itself needs the cores: images are decoded by threads")
    count = min(16, max(1, machine.cores - 2))
    return Choice(count, f"{machine.cores} cores, two left for training and for the system")
