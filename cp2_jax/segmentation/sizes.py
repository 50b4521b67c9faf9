"""Sizes of a finetuning that fit the data: batch, length and how often to look, from the number of labelled images.

The paper's are made for PASCAL VOC's 10,582 images (docs/small_data.md). Values that a config leaves open by -1, as the
variant `small` does, are chosen when the run starts; see `runs.sizes`.
"""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError
from cp2_jax.runs import settings, sizes
from cp2_jax.runs.sizes import Choice, Machine

# The keys that a config may leave open.
KEYS = ("batch_size", "steps", "data.workers", "log_every", "save_every", "eval_every")

PAPER_BATCH, PAPER_EPOCHS = 16, 60  # PASCAL VOC: 40,000 steps of 16 crops are 60 epochs of 10,582 images
LEAST_STEPS, MOST_STEPS = 2_000, 80_000
# Bytes of a device's memory for each pixel of a crop, and for parameters and optimiser; see `pretraining.sizes`, whose step
# keeps as much for its backward pass.
PIXEL_BYTES, FIXED_BYTES = 85e6 / 224**2, 0.9e9
CPU_BATCH = 4


def fit_to_data(
    num_images: int, machine: Machine, crop_bytes: float, fixed: Mapping[str, Any] | None = None, epochs: float = 0
) -> dict[str, Choice]:
    """Choose the sizes of a finetuning.

    The rule:
      batch_size: the paper's 16, or as many as there are images, the memory holds, or 4 without an accelerator; 2 at
        least, which batch norm needs; divisible by the devices.
      steps: 60 epochs, as the paper has on PASCAL VOC, between 2,000 and 80,000 steps.
      data.workers, log_every, save_every: see `runs.sizes`.
      eval_every: ten evaluations.

    Args:
      num_images: labelled images to train with.
      machine: the devices.
      crop_bytes: memory that a crop takes on its device.
      fixed: values by key that are given.
      epochs: length of the run where the given `steps` is 0.

    Returns:
      key of `KEYS` → what was chosen and why, for the keys that are not given.

    Raises:
      ConfigError: if there is no image.
    """
    if num_images < 1:
        raise ConfigError("data.path: there are no labelled images to fit the sizes to")
    choices = sizes.Choices(fixed)
    take = choices.take
    batch = take("batch_size", _batch(num_images, machine, crop_bytes))
    steps = round(PAPER_EPOCHS * num_images / batch)
    reason = f"{PAPER_EPOCHS} epochs of {num_images:,d} images, between {LEAST_STEPS:,d} and {MOST_STEPS:,d} steps"
    total = take("steps", Choice(min(MOST_STEPS, max(LEAST_STEPS, steps)), reason))
    total = total or int(epochs * settings.steps_per_epoch(num_images, batch))
    take("data.workers", sizes.workers(machine))
    looking = sizes.looking(total or LEAST_STEPS)
    take("log_every", looking["log_every"])
    take("save_every", looking["save_every"])
    take("eval_every", Choice(max(1, (total or LEAST_STEPS) // 10), "ten evaluations"))
    return choices.chosen


def _batch(num_images: int, machine: Machine, crop_bytes: float) -> Choice:
    limits = {num_images: "all images"} | sizes.batch_limits(
        machine, paper=PAPER_BATCH, on_cpu=CPU_BATCH, image_bytes=crop_bytes, fixed_bytes=FIXED_BYTES
    )
    limit = min(limits)
    least = machine.devices * math.ceil(2 / machine.devices)
    if limit < least:
        return Choice(least, "the smallest that batch norm and the devices can share")
    return Choice(limit // machine.devices * machine.devices, limits[limit])


def settle(config: ConfigDict, num_images: int, machine: Machine, workdir: Any = None) -> str:
    """Fill in what a finetuning config leaves open; arguments and result are those of `pretraining.sizes.settle`.

    Raises:
      ConfigError: see `fit_to_data`.
    """
    if not sizes.is_open(config, KEYS):
        return ""
    height, width = config.data.crop_size
    crop_bytes = PIXEL_BYTES * height * width * Network.from_config(config.model).dtype.itemsize / 2
    choices = fit_to_data(num_images, machine, crop_bytes, sizes.fixed(config, KEYS), config.epochs)
    return sizes.fill(config, choices, sizes.earlier(workdir) if workdir else {})


def line(config: ConfigDict) -> str:
    """Return what is printed of the sizes of a settled config."""
    length = f"{config.steps} steps" if config.steps else f"{config.epochs:g} epochs"
    return f"sizes    batch {config.batch_size}, {length}, {config.data.workers} workers (sizes.txt: why)"
