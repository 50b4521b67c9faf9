"""Checks of a config before anything runs: impossible values, alone or together, are named with what would work."""

import difflib
import math
import numbers
from collections.abc import Iterable

from ml_collections import ConfigDict

from cp2_jax.data.images.options import ImageOptions
from cp2_jax.data.labelled.options import LabelledOptions, check_limit
from cp2_jax.models.heads import HEADS
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError, flatten, nearest
from cp2_jax.runs.settings import check_kind


def _require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {fix}")


def _one_of(config: ConfigDict, key: str, known: Iterable[str]) -> None:
    value, known = flatten(config)[key], list(known)
    suggestion = nearest(str(value), known) if difflib.get_close_matches(str(value), known, 1, 0.5) else ""
    _require(value in known, key, value, f"must be one of {', '.join(known)}{suggestion}")


def _number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _positive(config: ConfigDict, *keys: str) -> None:
    flat = flatten(config)
    for key in keys:
        _require(_number(flat[key]) and flat[key] > 0, key, flat[key], "must be greater than 0")


def _at_least_0(config: ConfigDict, *keys: str) -> None:
    flat = flatten(config)
    for key in keys:
        _require(_number(flat[key]) and flat[key] >= 0, key, flat[key], "must be 0 or more")


def _whole(config: ConfigDict, *keys: str) -> None:
    flat = flatten(config)
    for key in keys:
        _require(isinstance(flat[key], numbers.Integral), key, flat[key], "must be a whole number")


def _share(config: ConfigDict, *keys: str) -> None:
    flat = flatten(config)
    for key in keys:
        _require(_number(flat[key]) and 0 <= flat[key] <= 1, key, flat[key], "must lie between 0 and 1")


def _nearest_multiples(value: int, factor: int) -> str:
    below, above = value // factor * factor, -(-value // factor) * factor
    return " or ".join(str(v) for v in sorted({below, above} - {0}))


def _nearest_divisors(value: int, of: int) -> str:
    divisors = [d for d in range(1, of + 1) if of % d == 0]
    below = max((d for d in divisors if d <= value), default=1)
    above = min((d for d in divisors if d >= value), default=of)
    return " or ".join(str(d) for d in sorted({below, above}))


def _check_common(config: ConfigDict, devices: int) -> Network:
    network = Network.from_config(config.model)
    _whole(config, "seed", "batch_size", "image_size", "bn_groups", "steps", "log_every", "save_every", "keep")
    _whole(config, "optimizer.warmup_steps")
    _positive(config, "batch_size", "image_size", "bn_groups", "log_every", "save_every", "keep")
    _at_least_0(config, "seed", "steps", "epochs")
    _require(config.steps > 0 or config.epochs > 0, "steps", config.steps, "give a length: steps or epochs above 0")
    _true_or_false(config, "remat", "shard_state")
    _check_batch(config, devices, network)
    _check_optimizer(config)
    network.check_sides("image_size", [config.image_size])
    return network


def _true_or_false(config: ConfigDict, *keys: str) -> None:
    flat = flatten(config)
    for key in keys:
        _require(isinstance(flat[key], bool), key, flat[key], "must be True or False")


def _check_batch(config: ConfigDict, devices: int, network: Network) -> None:
    batch, groups = config.batch_size, config.bn_groups
    both = _nearest_multiples(batch, math.lcm(groups, devices))
    fix = f"must be divisible by bn_groups={groups}; use {both}, or bn_groups={_nearest_divisors(groups, batch)}"
    _require(batch % groups == 0, "batch_size", batch, fix)
    fix = f"must be divisible by the number of devices, {devices}; use {both}"
    _require(batch % devices == 0, "batch_size", batch, fix)
    least, name, share = network.head.least_images, network.head_name, batch // groups
    have, want = ("one image" if n == 1 else "two images" if n == 2 else f"{n} images" for n in (share, least))
    fix = f"leaves {have} per group, too few for the batch norm of the {name} head; use {batch // least} at most"
    fix = fix if batch >= least else f"the batch norm of the {name} head needs {want} per step"
    _require(share >= least, "bn_groups", groups, fix)


def _check_microbatches(config: ConfigDict, devices: int) -> None:
    batch, groups, count = config.batch_size, config.bn_groups, config.accumulate
    fix = f"must divide bn_groups={groups}, for a microbatch holds whole batch-norm groups; use "
    _require(groups % count == 0, "accumulate", count, fix + _nearest_divisors(count, groups))
    fits = [d for d in range(1, groups + 1) if groups % d == 0 and batch % (d * devices) == 0]
    fix = f"leaves {batch // count} images per microbatch, not divisible by {devices} devices; use {max(fits, default=1)}"
    _require(batch % (count * devices) == 0, "accumulate", count, fix)


def _check_optimizer(config: ConfigDict) -> None:
    _one_of(config, "optimizer.name", ("sgd", "adamw"))
    _one_of(config, "optimizer.schedule", ("cosine", "cosine_by_epoch", "poly", "constant"))
    _positive(config, "optimizer.learning_rate", "optimizer.power")
    _at_least_0(config, "optimizer.weight_decay", "optimizer.warmup_steps", "optimizer.min_learning_rate")
    _share(config, "optimizer.momentum")
    lowest, peak = config.optimizer.min_learning_rate, config.optimizer.learning_rate
    fix = f"must not be above optimizer.learning_rate={peak}"
    _require(config.optimizer.schedule != "poly" or lowest <= peak, "optimizer.min_learning_rate", lowest, fix)


def validate_pretrain(config: ConfigDict, devices: int = 1) -> None:
    """Check a pretraining config.

    Args:
      devices: number of devices of all processes.

    Raises:
      ConfigError: for the first value that is impossible, alone or beside others, with the nearest that works.
    """
    check_kind(config, "pretrain")
    ImageOptions.from_config(config)
    network = _check_common(config, devices)
    _whole(config, "loss.queue_size", "model.projection_dim", "accumulate", "picture_every", "probe_every", "probe_images")
    _positive(config, "accumulate")
    _check_microbatches(config, devices)
    _positive(config, "loss.queue_size", "loss.temperature_instance", "loss.temperature_dense", "model.projection_dim")
    if network.head.dense:  # masks are read at each feature's centre
        network.check_sides("image_size", [config.image_size], dense=True)
    queue, batch = config.loss.queue_size, config.batch_size
    fix = f"must be a multiple of batch_size={batch}; use {_nearest_multiples(queue, batch)}"
    _require(queue % batch == 0, "loss.queue_size", queue, fix)
    _share(config, "loss.momentum")
    _at_least_0(config, "loss.alpha", "loss.alpha_instance", "picture_every", "probe_every")
    _positive(config, "probe_images")
    _one_of(config, "loss.dense_axis", ("key", "query"))
    _one_of(config, "loss.queue_start", ("random", "keys"))
    _one_of(config, "key_shuffle", ("strided", "permutation", "none"))
    _one_of(config, "init.head", ("checkpoint", "random"))
    _one_of(config, "init.projection", ("checkpoint", "random"))
    maps = "augment.mask=attention needs data.attention, the folder that scripts/attention_maps.py wrote"
    _require(config.augment.mask != "attention" or config.data.attention, "data.attention", "''", maps)
    if not network.head.dense:
        fix = f"one pooled feature has no background: MoCo v2's mode (model.head={network.head_name}) needs "
        _require(config.augment.mask == "full", "augment.mask", config.augment.mask, f"{fix}augment.mask=full")
        _require(config.loss.alpha == 0, "loss.alpha", config.loss.alpha, f"{fix}loss.alpha=0")
    weights = config.loss.alpha + config.loss.alpha_instance
    _require(weights > 0, "loss.alpha_instance", 0, "with loss.alpha=0 there is nothing to learn; give one a weight")
    fix = "is too small for two other samples as backgrounds; use 3 or more, or data.backgrounds='independent'"
    _require(config.data.backgrounds == "independent" or batch > 2, "batch_size", batch, fix)


def validate_finetune(config: ConfigDict, devices: int = 1) -> None:
    """Check a finetuning config.

    Args:
      devices: number of devices of all processes.

    Raises:
      ConfigError: as `validate_pretrain`.
    """
    check_kind(config, "finetune")
    LabelledOptions.from_config(config)
    check_limit("evaluation.limit", config.evaluation.limit)
    network = _check_common(config, devices)
    dense = " or ".join(name for name, head in HEADS.items() if head.dense)
    fix = f"a pooled feature cannot be segmented; use {dense} (with init.head=random after a MoCo v2 pretraining)"
    _require(network.head.dense, "model.head", network.head_name, fix)
    _whole(config, "model.num_classes", "eval_every")
    _at_least_0(config, "eval_every")
    classes = config.data.num_classes
    fix = f"must equal data.num_classes={classes}"
    _require(config.model.num_classes == classes, "model.num_classes", config.model.num_classes, fix)
    _check_evaluation(config)
    _check_auxiliary(config, network.backbone.stages)
    _share(config, "model.dropout")
    _one_of(config, "init.head", ("checkpoint", "random"))
    _one_of(config, "loss.average", ("all", "labelled"))
    network.check_sides("data.crop_size", config.data.crop_size)


def _pair(config: ConfigDict, key: str) -> tuple[int, ...]:
    value = tuple(flatten(config)[key])
    good = len(value) in (0, 2) and all(isinstance(side, int) and side > 0 for side in value)
    _require(good, key, value, "give two whole numbers above 0, e.g. (2048, 512), or none: ()")
    return value


def _check_evaluation(config: ConfigDict) -> None:
    _whole(config, "evaluation.batch_size", "evaluation.programs")
    _at_least_0(config, "evaluation.batch_size", "evaluation.programs")
    _pair(config, "evaluation.resize")
    window, stride = _pair(config, "evaluation.window"), _pair(config, "evaluation.stride")
    fix = f"must be between 1 and the window, {window}, in both directions"
    _require(len(window) == len(stride) and all(s <= w for s, w in zip(stride, window, strict=True)),
             "evaluation.stride", stride, fix)  # fmt: skip
    ratios = tuple(config.evaluation.ratios)
    good = bool(ratios) and all(_number(ratio) and ratio > 0 for ratio in ratios)
    _require(good, "evaluation.ratios", ratios, "give one factor above 0 or more, e.g. (1.0,)")


def _check_auxiliary(config: ConfigDict, stages: int) -> None:
    _whole(config, "auxiliary.stage", "auxiliary.channels", "auxiliary.num_convs")
    _at_least_0(config, "auxiliary.weight")
    _positive(config, "auxiliary.channels", "auxiliary.num_convs")
    fix = f"the backbone has {stages} stages: use 0 to {stages - 1}, or auxiliary.weight=0"
    weight, stage = config.auxiliary.weight, config.auxiliary.stage
    _require(weight == 0 or 0 <= stage < stages, "auxiliary.stage", stage, fix)
