"""What a finetuning config may say: the keys that finetuning alone has, and the whole together."""

from absl import logging
from ml_collections import ConfigDict

from cp2_jax.convert.warm_start import InitOptions
from cp2_jax.data.labelled.options import LabelledOptions, check_limit
from cp2_jax.models.backbones import finetuning_decay
from cp2_jax.models.heads import HEADS
from cp2_jax.models.network import Network
from cp2_jax.options import at_least_0, is_number, one_of, positive, require, share, sides, whole
from cp2_jax.runs.optim import OptimizerOptions
from cp2_jax.runs.options import RunOptions
from cp2_jax.runs.settings import check_kind
from cp2_jax.segmentation.step import AVERAGES


def check(config: ConfigDict, devices: int = 1) -> None:
    """Check a finetuning config, whose classes are resolved, before anything runs.

    Every section checks itself; what concerns several sections is checked here.

    Args:
      config: a finetuning config.
      devices: number of devices of all processes.

    Raises:
      ConfigError: for the first value that is impossible, alone or beside others, with the nearest that works.
    """
    check_kind(config, "finetune")
    LabelledOptions.from_config(config)
    check_limit("evaluation.limit", config.evaluation.limit)
    network = Network.from_config(config.model)
    run = RunOptions.from_config(config)
    run.check_batch(devices, network.head_name, network.head.least_images)
    optimizer = OptimizerOptions.from_config(config)
    network.check_sides("image_size", [run.image_size])
    dense = " or ".join(name for name, head in HEADS.items() if head.dense)
    fix = f"a pooled feature cannot be segmented; use {dense} (with init.head=random after a MoCo v2 pretraining)"
    require(network.head.dense, "model.head", network.head_name, fix)
    whole("model.num_classes", config.model.num_classes)
    whole("eval_every", config.eval_every)
    at_least_0("eval_every", config.eval_every)
    fix = f"must equal data.num_classes={config.data.num_classes}"
    require(config.model.num_classes == config.data.num_classes, "model.num_classes", config.model.num_classes, fix)
    _check_evaluation(config.evaluation)
    _check_auxiliary(config.auxiliary, network.backbone.stages)
    share("model.dropout", config.model.dropout)
    _mind_decay(optimizer.weight_decay, InitOptions.from_config(config), network.backbone_name)
    one_of("loss.average", config.loss.average, AVERAGES)
    network.check_sides("data.crop_size", config.data.crop_size)


def _mind_decay(decay: float, init: InitOptions, backbone: str) -> None:
    """Warn of a head that starts at random without weight decay, as `--config.init.head=random` alone gives."""
    usual = finetuning_decay(backbone, "random")
    if decay == 0 and init.checkpoint and init.head == "random":
        logging.warning(
            "optimizer.weight_decay=0 with a head that starts at random: the paper has %g there (section 4.1), which the "
            "config's variant `baseline` sets",
            usual,
        )


def _check_evaluation(evaluation: ConfigDict) -> None:
    for key in ("batch_size", "programs"):
        whole(f"evaluation.{key}", evaluation[key])
        at_least_0(f"evaluation.{key}", evaluation[key])
    sides("evaluation.resize", evaluation.resize)
    window, stride = sides("evaluation.window", evaluation.window), sides("evaluation.stride", evaluation.stride)
    fix = f"must be between 1 and the window, {window}, in both directions"
    good = len(window) == len(stride) and all(s <= w for s, w in zip(stride, window, strict=True))
    require(good, "evaluation.stride", stride, fix)
    ratios = tuple(evaluation.ratios)
    good = bool(ratios) and all(is_number(ratio) and ratio > 0 for ratio in ratios)
    require(good, "evaluation.ratios", ratios, "give one factor above 0 or more, e.g. (1.0,)")


def _check_auxiliary(auxiliary: ConfigDict, stages: int) -> None:
    for key in ("stage", "channels", "num_convs"):
        whole(f"auxiliary.{key}", auxiliary[key])
    at_least_0("auxiliary.weight", auxiliary.weight)
    positive("auxiliary.channels", auxiliary.channels)
    positive("auxiliary.num_convs", auxiliary.num_convs)
    fix = f"the backbone has {stages} stages: use 0 to {stages - 1}, or auxiliary.weight=0"
    require(auxiliary.weight == 0 or 0 <= auxiliary.stage < stages, "auxiliary.stage", auxiliary.stage, fix)
