"""What a finetuning config may say: the sections that only segmentation reads, as frozen values that check themselves, and
the whole together."""

import dataclasses
from collections.abc import Sequence

from absl import logging
from ml_collections import ConfigDict

from cp2_jax.convert.warm_start import InitOptions
from cp2_jax.data.labelled import transforms
from cp2_jax.data.labelled.options import LabelledOptions, check_limit
from cp2_jax.models.backbones import finetuning_decay
from cp2_jax.models.heads import HEADS
from cp2_jax.models.network import Network
from cp2_jax.options import (
    at_least_0,
    from_section,
    is_number,
    one_of,
    positive,
    require,
    share,
    sides,
    true_or_false,
    whole,
)
from cp2_jax.runs.options import check_training
from cp2_jax.runs.settings import check_kind
from cp2_jax.segmentation.tuning import TuningOptions

# What the sum of the pixels' losses may be divided by, see `step.cross_entropy`.
AVERAGES = ("all", "labelled")


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """How images are tested: `config.evaluation`.

    Attributes:
      batch_size: images at once, over all devices, rounded up to a multiple of their number; 0: one for each device.
      resize: (long, short) edges in pixels that images are fitted into with their aspect kept, such as MMSegmentation's
        (2048, 512); empty: each image's own size.
      ratios: factors of that size, each one pass over the image. Class probabilities are averaged over the passes.
      flip: make each pass also over the mirrored image.
      window, stride: (height, width) of sliding windows and of the steps between them; empty: the whole image at once.
      programs: compiled at most, where images differ in size and the network can be masked; 0: one for each size.
      limit: of images: 0 all, up to 1 that share, else that number.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    batch_size: int = 0
    resize: tuple[int, ...] = ()
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    programs: int = 0
    limit: float = 0.0

    from_config = from_section("evaluation")

    def __post_init__(self):
        for key in ("batch_size", "programs"):
            whole(f"evaluation.{key}", getattr(self, key))
            at_least_0(f"evaluation.{key}", getattr(self, key))
        true_or_false("evaluation.flip", self.flip)
        check_limit("evaluation.limit", self.limit)
        for key in ("resize", "window", "stride"):
            sides(f"evaluation.{key}", getattr(self, key))
        pairs = zip(self.stride, self.window, strict=False)
        good = len(self.window) == len(self.stride) and all(step <= side for step, side in pairs)
        fix = f"must be between 1 and the window, {self.window}, in both directions"
        require(good, "evaluation.stride", self.stride, fix)
        good = bool(self.ratios) and all(is_number(ratio) and ratio > 0 for ratio in self.ratios)
        require(good, "evaluation.ratios", self.ratios, "give one factor above 0 or more, e.g. (1.0,)")

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) at which an image of `size` is shown to the network, one for each ratio."""
        if not self.resize and self.ratios == (1.0,):
            return [tuple(size)]
        long, short = (max(size), min(size)) if not self.resize else (max(self.resize), min(self.resize))
        return [transforms.rescaled_size(size, (int(long * r), int(short * r))) for r in self.ratios]


@dataclasses.dataclass(frozen=True)
class AuxiliaryOptions:
    """MMSegmentation's auxiliary FCN head, which is used only in training: `config.auxiliary`. The paper has none.

    Attributes:
      weight: of its loss; 0: no such head.
      stage: of the backbone that it reads, from 0 on.
      channels, num_convs: of its 3x3 convolutions.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    weight: float = 0.0
    stage: int = 2
    channels: int = 256
    num_convs: int = 1

    from_config = from_section("auxiliary")

    def __post_init__(self):
        for key in ("stage", "channels", "num_convs"):
            whole(f"auxiliary.{key}", getattr(self, key))
        at_least_0("auxiliary.weight", self.weight)
        at_least_0("auxiliary.stage", self.stage)
        positive("auxiliary.channels", self.channels)
        positive("auxiliary.num_convs", self.num_convs)

    def check_stage(self, stages: int) -> None:
        """Require a stage that the backbone, which has so many, has; raises `ConfigError`."""
        fix = f"the backbone has {stages} stages: use 0 to {stages - 1}, or auxiliary.weight=0"
        require(self.weight == 0 or self.stage < stages, "auxiliary.stage", self.stage, fix)


def check(config: ConfigDict, devices: int = 1) -> None:
    """Check a finetuning config, whose classes are resolved, before anything runs.

    Every section checks itself; what concerns several sections is checked here.

    Args:
      config: a finetuning config.
      devices: number of devices of all processes.

    Raises:
      ConfigError: for the first value that is impossible by itself or beside others, with the nearest that works.
    """
    check_kind(config, "finetune")
    LabelledOptions.from_config(config)
    network = Network.from_config(config.model)
    run, optimizer = check_training(config, devices, network.head_name, network.head.least_images)
    network.check_sides("image_size", [run.image_size])
    dense = " or ".join(name for name, head in HEADS.items() if head.dense)
    fix = f"a pooled feature cannot be segmented; use {dense} (with init.head=random after a MoCo v2 pretraining)"
    require(network.head.dense, "model.head", network.head_name, fix)
    whole("model.num_classes", config.model.num_classes)
    whole("eval_every", config.eval_every)
    at_least_0("eval_every", config.eval_every)
    fix = f"must equal data.num_classes={config.data.num_classes}"
    require(config.model.num_classes == config.data.num_classes, "model.num_classes", config.model.num_classes, fix)
    EvaluationOptions.from_config(config)
    AuxiliaryOptions.from_config(config).check_stage(network.backbone.stages)
    TuningOptions.from_config(config).check(network, config.eval_every)
    _check_compare_with(config.compare_with)
    share("model.dropout", config.model.dropout)
    _mind_decay(optimizer.weight_decay, InitOptions.from_config(config), network.backbone_name)
    one_of("loss.average", config.loss.average, AVERAGES)
    network.check_sides("data.crop_size", config.data.crop_size)


def _check_compare_with(pairs: Sequence) -> None:
    good = all(len(pair) == 2 and isinstance(pair[0], str) and is_number(pair[1]) for pair in pairs)
    fix = 'give pairs of words and a score in %, e.g. (("paper", 77.6),), or none: ()'
    require(good, "compare_with", tuple(pairs), fix)


def _mind_decay(decay: float, init: InitOptions, backbone: str) -> None:
    """Warn of a head that starts at random without weight decay, as with `--config.init.head=random` and no `:baseline`."""
    usual = finetuning_decay(backbone, "random")
    if decay == 0 and init.checkpoint and init.head == "random":
        logging.warning(
            "optimizer.weight_decay=0 with a head that starts at random: the paper has %g there (section 4.1), which the "
            "config's variant `baseline` sets",
            usual,
        )
