"""Sizes of a pretraining that fit the data: a rule for batch, queue, length and the rest, from the number of images.

The defaults of the configs are made for ImageNet's 1.28 million images and four GPUs. With 500 photos they make no sense: a
queue of 65,536 keys would hold every photo 131 times, and images would be their own negatives. `fit_to_data` says what it
chooses and why (docs/small_data.md); for ImageNet on enough memory it chooses what the paper has.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError
from cp2_jax.paths import AnyPath
from cp2_jax.runs import settings, sizes
from cp2_jax.runs.optim import OptimizerOptions
from cp2_jax.runs.sizes import Choice, Machine

# The keys that a config may leave open, in the order in which they are chosen.
KEYS = (
    "batch_size",
    "bn_groups",
    "loss.queue_size",
    "epochs",
    "loss.momentum",
    "optimizer.learning_rate",
    "optimizer.warmup_steps",
    "data.workers",
    "log_every",
    "save_every",
    "picture_every",
    "probe_every",
    "probe_images",
)

PAPER_BATCH, PAPER_QUEUE, PAPER_GROUPS = 256, 65536, 4
PAPER_EPOCHS = {"scratch": 200, "quick_tune": 20}
LEAST_STEPS = {"scratch": 10_000, "quick_tune": 2_000}
# Bytes of a device's memory. ResNet-50 + ASPP and ViT-S + ASPP, compiled for TPUs at 224 x 224 in bfloat16, take 51 to 82
# MB for each image of the batch, and 0.9 GB for parameters and optimiser (docs/scaling.md): a little more is reckoned here.
IMAGE_BYTES, FIXED_BYTES = 85e6, 1.2e9
CPU_BATCH = 32
_REMAT_SHARE = 0.4


@dataclasses.dataclass(frozen=True)
class Job:
    """What the rule has to know of a run besides images and machine.

    Attributes:
      quick_tuning: whether it starts from a pretrained backbone.
      optimizer: its name.
      learning_rate: of the backbone, at the paper's batch of 256.
      least_per_group: fewest images of a batch-norm group that the head can be trained with.
      accumulate: microbatches; divides the number of groups.
      image_bytes: memory that an image of the batch takes on its device.
      steps: length of the run where that is given in steps, else 0.
    """

    quick_tuning: bool = False
    optimizer: str = "sgd"
    learning_rate: float = 0.03
    least_per_group: int = 2
    accumulate: int = 1
    image_bytes: float = IMAGE_BYTES
    steps: int = 0


def fit_to_data(
    num_images: int, machine: Machine, job: Job = Job(), fixed: Mapping[str, Any] | None = None
) -> dict[str, Choice]:
    """Choose the sizes of a pretraining.

    The rule, which docs/small_data.md explains:
      batch_size: the largest power of two (times the devices) up to a sixteenth of the images, the paper's 256, what the
        memory holds, and 32 without an accelerator; 4 at least.
      bn_groups: 4 as in the paper, fewer where a group would have fewer than 16 images, so that keys can be shuffled.
      loss.queue_size: a quarter of the images at most, so that an image seldom (1 in 32) meets an old key of its own among
        the negatives; at most the paper's.
      epochs: the paper's, or as many as make 2,000 steps (Quick Tuning) or 10,000 (from scratch).
      loss.momentum: the key encoder follows within an eighth of the run, between 0.99 and the paper's 0.999.
      optimizer.learning_rate: the paper's times batch / 256 (SGD), or times its square root (AdamW).
      optimizer.warmup_steps: a twentieth of a run shorter than 20,000 steps; the paper has none.
      data.workers, log_every, save_every, picture_every, probe_every, probe_images: see `runs.sizes`.

    Example:
      fit_to_data(500, Machine(devices=1, memory=16e9, cores=8, accelerator=True))["batch_size"].value  # 16

    Args:
      num_images: of the data set.
      machine: the devices.
      job: the run.
      fixed: values by key that are given; the others are chosen to go with them.

    Returns:
      key of `KEYS` → what was chosen and why, for the keys that are not given.

    Raises:
      ConfigError: if there is no image.
    """
    if num_images < 1:
        raise ConfigError("data.path: there are no images to fit the sizes to")
    choices = sizes.Choices(fixed)
    take = choices.take
    batch = take("batch_size", _batch(num_images, machine, job))
    take("bn_groups", _groups(batch, machine.devices, job))
    take("loss.queue_size", _queue(num_images, batch))
    epochs = take("epochs", _epochs(num_images, batch, job))
    total = job.steps or max(1, int(epochs * settings.steps_per_epoch(num_images, batch)))
    take("loss.momentum", _momentum(total))
    take("optimizer.learning_rate", _rate(batch, job))
    take("optimizer.warmup_steps", _warmup(total))
    take("data.workers", sizes.workers(machine))
    for key, choice in sizes.looking(total).items():
        take(key, choice)
    take("probe_images", Choice(min(256, num_images), "256, or all images that there are"))
    return choices.chosen


def _batch(num_images: int, machine: Machine, job: Job) -> Choice:
    limits = {num_images // 16: f"16 batches or more in an epoch of {num_images:,d} images"} | sizes.batch_limits(
        machine, paper=PAPER_BATCH, on_cpu=CPU_BATCH, image_bytes=job.image_bytes, fixed_bytes=FIXED_BYTES
    )
    least = max(4, 2 * job.least_per_group, job.accumulate * job.least_per_group)
    batch = machine.devices * 2 ** math.ceil(math.log2(max(1, least / machine.devices)))
    limit = min(limits)
    if limit < batch:
        devices = "one device" if machine.devices == 1 else f"{machine.devices} devices"
        return Choice(batch, f"the smallest with which {devices} and batch norm can work ({limits[limit]})")
    while 2 * batch <= limit:
        batch *= 2
    return Choice(batch, limits[limit])


def _groups(batch: int, devices: int, job: Job) -> Choice:
    def possible(groups: int, least: int) -> bool:
        shares = batch % groups == 0 and groups % job.accumulate == 0 and batch // groups >= least
        return shares and (devices % groups == 0 or groups % devices == 0)

    for groups in range(PAPER_GROUPS, 1, -1):
        if possible(groups, 16):
            return Choice(groups, f"groups of {batch // groups} images: keys get other statistics than their queries")
    for groups in (2, 3, *range(4, 9)):
        if possible(groups, job.least_per_group):
            return Choice(groups, "the fewest with which keys get other statistics than their queries")
    return Choice(job.accumulate, "the batch cannot be divided further")


def _queue(num_images: int, batch: int) -> Choice:
    rows = min(PAPER_QUEUE, num_images // 4) // batch
    if rows < 1:
        return Choice(batch, "one batch: fewer keys than that cannot be kept")
    reason = (
        "the paper's" if rows * batch == PAPER_QUEUE else "a quarter of the images: few negatives are of the same image"
    )
    return Choice(rows * batch, reason)


def _epochs(num_images: int, batch: int, job: Job) -> Choice:
    kind = "quick_tune" if job.quick_tuning else "scratch"
    per_epoch = settings.steps_per_epoch(num_images, batch)
    needed = math.ceil(LEAST_STEPS[kind] / per_epoch)
    if needed <= PAPER_EPOCHS[kind]:
        return Choice(PAPER_EPOCHS[kind], "the paper's")
    return Choice(needed, f"{LEAST_STEPS[kind]:,d} steps, at {per_epoch} an epoch")


def _momentum(total: int) -> Choice:
    value = round(min(0.999, max(0.99, 1 - 8 / total)), 4)
    return Choice(
        value, "the paper's" if value == 0.999 else f"the key encoder follows within an eighth of {total:,d} steps"
    )


def _rate(batch: int, job: Job) -> Choice:
    share = batch / PAPER_BATCH
    if share == 1:
        return Choice(job.learning_rate, "the paper's")
    factor, rule = (share, "") if job.optimizer == "sgd" else (share**0.5, "the square root of ")
    return Choice(job.learning_rate * factor, f"the paper's {job.learning_rate:g}, times {rule}batch / {PAPER_BATCH}")


def _warmup(total: int) -> Choice:
    if total >= 20_000:
        return Choice(0, "none, as in the paper")
    return Choice(round(total / 20), f"a twentieth of {total:,d} steps, so that the first ones do no harm")


def describe(config: ConfigDict) -> Job:
    """Return what the rule has to know of a config.

    Raises:
      ConfigError: for an impossible model, or an optimiser that the backbone has no learning rate for.
    """
    network = Network.from_config(config.model)
    usual = {"name": "sgd", "learning_rate": OptimizerOptions().learning_rate} | dict(network.backbone.pretrain_optimizer)
    name = config.optimizer.name
    if name != usual["name"] and config.optimizer.learning_rate == sizes.OPEN:
        raise ConfigError(
            f"optimizer.learning_rate: a {network.backbone_name} is trained by {usual['name']}, not {name}; give the rate"
        )
    scale = (config.image_size / 224) ** 2 * network.dtype.itemsize / 2
    return Job(
        quick_tuning=bool(config.init.checkpoint),
        optimizer=name,
        learning_rate=usual["learning_rate"],
        least_per_group=network.head.least_images,
        accumulate=config.accumulate,
        image_bytes=IMAGE_BYTES * scale * (_REMAT_SHARE if config.remat else 1),
        steps=config.steps,
    )


def settle(config: ConfigDict, num_images: int, machine: Machine, workdir: str | AnyPath | None = None) -> str:
    """Fill in what a pretraining config leaves open; nothing else is changed.

    Args:
      config: changed in place.
      num_images: of the data set.
      machine: the devices.
      workdir: of the run; where it is going to be resumed, what was chosen then is kept.

    Returns:
      What was chosen and why, a line for each key; "" where nothing was open.

    Raises:
      ConfigError: see `fit_to_data` and `describe`.
    """
    if not sizes.is_open(config, KEYS):
        return ""
    before = sizes.earlier(workdir) if workdir else {}
    choices = fit_to_data(num_images, machine, describe(config), sizes.fixed(config, KEYS))
    if not config.steps and "epochs" in choices and before.get("epochs") == 0:  # its length was given in steps
        choices["steps"] = sizes.Choice(before["steps"], "")
    return sizes.fill(config, choices, before)


def summary(config: ConfigDict) -> str:
    """Return the sizes of a pretraining in two lines of at most 80 columns."""
    rate, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    length = f"{config.steps} steps" if config.steps else f"{config.epochs} epochs"
    groups = "1 group" if config.bn_groups == 1 else f"{config.bn_groups} groups"
    return (
        f"sizes    batch {config.batch_size} in {groups}, queue {config.loss.queue_size}, {length}\n"
        f"         rate {rate:.3g} after {warmup} steps, {config.data.workers} workers (sizes.txt: why)"
    )
