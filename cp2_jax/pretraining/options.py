"""What a pretraining config may say: the section `loss`, the keys that only pretraining has, and all together."""

import dataclasses

from ml_collections import ConfigDict

from cp2_jax.augment.options import AugmentOptions
from cp2_jax.convert.warm_start import InitOptions
from cp2_jax.data.images.options import ImageOptions
from cp2_jax.models.network import Network
from cp2_jax.options import (
    at_least_0,
    from_section,
    from_top_level,
    nearest_divisors,
    nearest_multiples,
    one_of,
    positive,
    require,
    share,
    true_or_false,
    whole,
)
from cp2_jax.pretraining.losses import DENSE_AXES
from cp2_jax.runs.options import RunOptions, check_training
from cp2_jax.runs.settings import check_kind

# How keys are kept from sharing batch-norm statistics with their queries, see `forward.build_models` and `step.make_train`.
KEY_SHUFFLES = ("strided", "permutation", "none")
# Whether the random vectors that the queue starts with count as negatives ("random"), or real keys alone ("keys").
QUEUE_STARTS = ("random", "keys")


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The section `loss` of a pretraining config, checked.

    Attributes:
      queue_size: keys in the memory bank.
      queue_start: in `QUEUE_STARTS`.
      momentum: of the key encoder.
      temperature_instance, temperature_dense: of equations 3 and 2.
      alpha, alpha_instance: weights of the dense and of the instance loss (equation 5).
      dense_axis: in `losses.DENSE_AXES`.
      skip_full_masks: see `losses.dense_loss`.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    queue_size: int = 65536
    queue_start: str = "random"
    momentum: float = 0.999
    temperature_instance: float = 0.2
    temperature_dense: float = 1.0
    alpha: float = 0.2
    alpha_instance: float = 1.0
    dense_axis: str = "key"
    skip_full_masks: bool = True

    from_config = from_section("loss")

    def __post_init__(self):
        whole("loss.queue_size", self.queue_size)
        for key in ("queue_size", "temperature_instance", "temperature_dense"):
            positive(f"loss.{key}", getattr(self, key))
        share("loss.momentum", self.momentum)
        at_least_0("loss.alpha", self.alpha)
        at_least_0("loss.alpha_instance", self.alpha_instance)
        one_of("loss.dense_axis", self.dense_axis, DENSE_AXES)
        one_of("loss.queue_start", self.queue_start, QUEUE_STARTS)
        true_or_false("loss.skip_full_masks", self.skip_full_masks)
        fix = "with loss.alpha=0 there is nothing to learn; give one a weight"
        require(self.alpha + self.alpha_instance > 0, "loss.alpha_instance", 0, fix)


@dataclasses.dataclass(frozen=True)
class PretrainOptions:
    """The keys at the top level of a config that only pretraining has, checked.

    Attributes:
      accumulate: microbatches of a step.
      key_shuffle: in `KEY_SHUFFLES`.
      picture_every, probe_every: steps between pictures and between probes; 0: never.
      probe_images: held-out images of a probe.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    accumulate: int
    key_shuffle: str
    picture_every: int
    probe_every: int
    probe_images: int

    from_config = from_top_level()

    def __post_init__(self):
        for key in ("accumulate", "picture_every", "probe_every", "probe_images"):
            whole(key, getattr(self, key))
        positive("accumulate", self.accumulate)
        positive("probe_images", self.probe_images)
        at_least_0("picture_every", self.picture_every)
        at_least_0("probe_every", self.probe_every)
        one_of("key_shuffle", self.key_shuffle, KEY_SHUFFLES)


def check(config: ConfigDict, devices: int = 1) -> None:
    """Check a pretraining config before anything runs.

    Every section checks itself; what concerns several sections is checked here.

    Args:
      config: a pretraining config.
      devices: number of devices of all processes.

    Raises:
      ConfigError: for the first value that is impossible by itself or beside others, with the nearest that works.
    """
    check_kind(config, "pretrain")
    ImageOptions.from_config(config)
    network = Network.from_config(config.model)
    run, _ = check_training(config, devices, network.head_name, network.head.least_images)
    whole("model.projection_dim", config.model.projection_dim)
    positive("model.projection_dim", config.model.projection_dim)
    own = PretrainOptions.from_config(config)
    _check_microbatches(run, own.accumulate, devices)
    # Masks are read at each feature's centre.
    network.check_sides("image_size", [run.image_size], dense=network.head.dense)
    loss = LossOptions.from_config(config)
    fix = f"must be a multiple of batch_size={run.batch_size}; use {nearest_multiples(loss.queue_size, run.batch_size)}"
    require(loss.queue_size % run.batch_size == 0, "loss.queue_size", loss.queue_size, fix)
    InitOptions.from_config(config)
    AugmentOptions.from_config(config)
    _check_masks(config, network)
    fix = "is too small for two other samples as backgrounds; use 3 or more, or data.backgrounds='independent'"
    require(config.data.backgrounds == "independent" or run.batch_size > 2, "batch_size", run.batch_size, fix)


def _check_microbatches(run: RunOptions, count: int, devices: int) -> None:
    batch, groups = run.batch_size, run.bn_groups
    fix = f"must divide bn_groups={groups}, for a microbatch holds whole batch-norm groups; use "
    require(groups % count == 0, "accumulate", count, fix + nearest_divisors(count, groups))
    fits = [d for d in range(1, groups + 1) if groups % d == 0 and batch % (d * devices) == 0]
    fix = f"leaves {batch // count} images per microbatch, not divisible by {devices} devices; use {max(fits, default=1)}"
    require(batch % (count * devices) == 0, "accumulate", count, fix)


def _check_masks(config: ConfigDict, network: Network) -> None:
    mask, maps = config.augment.mask, config.data.attention
    fix = "augment.mask=attention needs data.attention, the folder that cp2 attention-maps wrote"
    require(mask != "attention" or maps, "data.attention", "''", fix)
    if not network.head.dense:
        fix = f"one pooled feature has no background: MoCo v2's mode (model.head={network.head_name}) needs "
        require(mask == "full", "augment.mask", mask, f"{fix}augment.mask=full")
        require(config.loss.alpha == 0, "loss.alpha", config.loss.alpha, f"{fix}loss.alpha=0")
