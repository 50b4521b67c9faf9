"""The keys of a config that every job has: length, batch, what is kept and when."""

import dataclasses
import math

from ml_collections import ConfigDict

from cp2_jax.options import (
    at_least_0,
    from_top_level,
    nearest_divisors,
    nearest_multiples,
    positive,
    require,
    true_or_false,
    whole,
)
from cp2_jax.runs import trackers
from cp2_jax.runs.optim import OptimizerOptions


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """The top level of a config, checked.

    Attributes:
      seed: of the initial weights, the order of the images and every random choice.
      image_size: side in pixels of pretraining's crops.
      batch_size: global, over all devices and processes.
      bn_groups: groups of a batch with their own batch-norm statistics.
      steps, epochs: length of the run; `epochs` counts where `steps` is 0.
      log_every, save_every: steps between lines of metrics, and between checkpoints.
      keep: newest checkpoints kept.
      remat: whether blocks are computed again in the backward pass instead of kept.
      shard_state: whether parameters and optimiser state are split over the devices.
      trackers: who else gets metrics and pictures, see `trackers`.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    seed: int
    image_size: int
    batch_size: int
    bn_groups: int
    steps: int
    epochs: float
    log_every: int
    save_every: int
    keep: int
    remat: bool
    shard_state: bool
    trackers: str

    from_config = from_top_level()

    def __post_init__(self):
        for key in ("seed", "batch_size", "image_size", "bn_groups", "steps", "log_every", "save_every", "keep"):
            whole(key, getattr(self, key))
        for key in ("batch_size", "image_size", "bn_groups", "log_every", "save_every", "keep"):
            positive(key, getattr(self, key))
        for key in ("seed", "steps", "epochs"):
            at_least_0(key, getattr(self, key))
        require(self.seed < 2**63, "seed", self.seed, "must lie below 2**63, the end of 64-bit numbers")
        require(self.steps > 0 or self.epochs > 0, "steps", self.steps, "give a length: steps or epochs above 0")
        true_or_false("remat", self.remat)
        true_or_false("shard_state", self.shard_state)
        trackers.check(self.trackers)

    def check_batch(self, devices: int, head: str, least_images: int) -> None:
        """Require a batch that batch-norm groups and devices can share out.

        Args:
          devices: number of devices of all processes.
          head: name of the model's head, for the message.
          least_images: fewest images of a group that the head can be trained with.

        Raises:
          ConfigError: with the nearest numbers that work.
        """
        batch, groups = self.batch_size, self.bn_groups
        both = nearest_multiples(batch, math.lcm(groups, devices))
        fix = f"must be divisible by bn_groups={groups}; use {both}, or bn_groups={nearest_divisors(groups, batch)}"
        require(batch % groups == 0, "batch_size", batch, fix)
        fix = f"must be divisible by the number of devices, {devices}; use {both}, or a number of devices that divides it"
        require(batch % devices == 0, "batch_size", batch, fix)
        have, want = _images(batch // groups), _images(least_images)
        fix = f"leaves {have} per group, too few for the batch norm of the {head} head; use {batch // least_images} at most"
        fix = fix if batch >= least_images else f"the batch norm of the {head} head needs {want} per step"
        require(batch // groups >= least_images, "bn_groups", groups, fix)


def check_training(config: ConfigDict, devices: int, head: str, least_images: int) -> tuple[RunOptions, OptimizerOptions]:
    """Check what the config of every job that trains has: its top level, the batch and the optimiser.

    Args:
      config: of any job.
      devices, head, least_images: see `RunOptions.check_batch`.

    Returns:
      The top level and the section `optimizer`.

    Raises:
      ConfigError: for the first value that is impossible.
    """
    run = RunOptions.from_config(config)
    run.check_batch(devices, head, least_images)
    return run, OptimizerOptions.from_config(config)


def _images(count: int) -> str:
    return {1: "one image", 2: "two images"}.get(count, f"{count} images")
