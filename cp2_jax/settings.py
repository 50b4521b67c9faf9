"""Checks of a config before anything runs, quantities derived from it, and its copy in the work directory."""

import difflib
import json
import pathlib
from collections.abc import Iterable

from ml_collections import ConfigDict

# What may change between a run and its resumption without changing what is computed.
_HARMLESS = ("log_every", "save_every", "keep", "picture_every", "eval_every", "data.workers", "data.prefetch", "data.path")


class ConfigError(Exception):
    """A config value is wrong; the message names the key, the value and what would work."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" with the nearest known name, or the list of all if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"


def flatten(config: ConfigDict, prefix: str = "") -> dict[str, object]:
    """Return {'optimizer.learning_rate': 0.03, …}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


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


def _require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {fix}")


def _one_of(config: ConfigDict, key: str, known: Iterable[str]) -> None:
    value = flatten(config)[key]
    known = list(known)
    _require(value in known, key, value, f"must be one of {', '.join(known)}{nearest(str(value), known)}")


def _positive(config: ConfigDict, *keys: str) -> None:
    flat = flatten(config)
    for key in keys:
        _require(flat[key] > 0, key, flat[key], "must be greater than 0")


def _nearest_multiples(value: int, factor: int) -> str:
    below, above = value // factor * factor, -(-value // factor) * factor
    return " or ".join(str(v) for v in sorted({below, above} - {0}))


def _nearest_divisors(value: int, of: int) -> str:
    divisors = [d for d in range(1, of + 1) if of % d == 0]
    below = max((d for d in divisors if d <= value), default=1)
    above = min((d for d in divisors if d >= value), default=of)
    return " or ".join(str(d) for d in sorted({below, above}))


def _check_common(config: ConfigDict, devices: int) -> None:
    _positive(config, "batch_size", "bn_groups", "log_every", "save_every", "keep", "optimizer.learning_rate")
    batch, groups = config.batch_size, config.bn_groups
    _require(config.steps > 0 or config.epochs > 0, "steps", config.steps, "give a length: steps or epochs above 0")
    fix = f"must be divisible by bn_groups={groups}; use {_nearest_multiples(batch, groups)}, or bn_groups="
    _require(batch % groups == 0, "batch_size", batch, fix + _nearest_divisors(groups, batch))
    fix = f"must be divisible by the number of devices, {devices}; use {_nearest_multiples(batch, devices)}"
    _require(batch % devices == 0, "batch_size", batch, fix)
    _one_of(config, "model.backbone", ("resnet", "vit"))
    _one_of(config, "model.head", ("aspp", "fcn"))
    _one_of(config, "model.dtype", ("float32", "bfloat16", "float64"))
    _one_of(config, "optimizer.name", ("sgd", "adamw"))
    _one_of(config, "optimizer.schedule", ("cosine", "cosine_by_epoch", "poly", "constant"))
    if config.model.backbone == "resnet":
        depth, stages = config.model.resnet.depth, tuple(config.model.resnet.stage_sizes)
        _require(depth in (18, 34, 50, 101, 152), "model.resnet.depth", depth, "must be 18, 34, 50, 101 or 152")
        _require(len(stages) in (0, 4), "model.resnet.stage_sizes", stages, "give 4 numbers, or none to follow the depth")
        stride = config.model.resnet.output_stride
        _require(stride in (8, 16, 32), "model.resnet.output_stride", stride, "must be 8, 16 or 32")
    else:
        width, heads = config.model.vit.width, config.model.vit.heads
        fix = f"must divide model.vit.width={width}; use {_nearest_divisors(heads, width)}"
        _require(width % heads == 0, "model.vit.heads", heads, fix)


def output_stride(config: ConfigDict) -> int:
    """Return the number of image pixels per feature pixel."""
    return config.model.vit.patch if config.model.backbone == "vit" else config.model.resnet.output_stride


def validate_pretrain(config: ConfigDict, devices: int = 1) -> None:
    """Check a pretraining config.

    Args:
      devices: number of devices of all processes.

    Raises:
      ConfigError: for the first value that is impossible, alone or beside others, with the nearest that works.
    """
    _check_common(config, devices)
    _positive(config, "image_size", "loss.queue_size", "loss.temperature_instance", "loss.temperature_dense")
    stride, size = output_stride(config), config.image_size
    what = "the ViT's patch" if config.model.backbone == "vit" else "the output stride"
    _require(size % stride == 0, "image_size", size, f"must be a multiple of {what}, {stride}; use "
             + _nearest_multiples(size, stride))  # fmt: skip
    queue, batch = config.loss.queue_size, config.batch_size
    fix = f"must be a multiple of batch_size={batch}; use {_nearest_multiples(queue, batch)}"
    _require(queue % batch == 0, "loss.queue_size", queue, fix)
    _require(0 <= config.loss.momentum <= 1, "loss.momentum", config.loss.momentum, "must lie between 0 and 1")
    _one_of(config, "loss.dense_axis", ("key", "query"))
    _one_of(config, "key_shuffle", ("strided", "permutation", "none"))
    _one_of(config, "data.source", ("folder", "tfds"))
    low, high = config.data.crop_scale
    _require(0 < low <= high <= 1, "data.crop_scale", (low, high), "must be two shares of the image, 0 < low <= high <= 1")
    _require(bool(config.data.path), "data.path", "''", "say where the images are: --config.data.path=/folder/of/images")


def validate_finetune(config: ConfigDict, devices: int = 1) -> None:
    """Check a finetuning config.

    Raises:
      ConfigError: as `validate_pretrain`.
    """
    _check_common(config, devices)
    _positive(config, "model.num_classes")
    _one_of(config, "init.head", ("checkpoint", "random"))
    _one_of(config, "loss.average", ("all", "labelled"))
    if config.model.backbone == "vit":
        for side in config.data.crop_size:
            patch = config.model.vit.patch
            _require(side % patch == 0, "data.crop_size", tuple(config.data.crop_size),
                     f"a ViT needs multiples of its patch, {patch}; use {_nearest_multiples(side, patch)}")  # fmt: skip


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch (the remainder joins the next epoch), at least 1."""
    return max(1, num_images // batch_size)


def total_steps(config: ConfigDict, num_images: int) -> int:
    """Return the length of the run: `config.steps`, or else `config.epochs` epochs."""
    return config.steps or int(config.epochs * steps_per_epoch(num_images, config.batch_size))


def resolve(config: ConfigDict) -> dict:
    """Return the config as plain JSON values."""
    return json.loads(config.to_json())


def save_config(workdir: str | pathlib.Path, config: ConfigDict) -> None:
    """Write `config.json`; if the work directory has one, refuse values that would make it another run.

    Raises:
      ConfigError: naming the changed keys with old and new values.
    """
    path = pathlib.Path(workdir) / "config.json"
    new = resolve(config)
    if path.exists():
        old_flat, new_flat = flatten(json.loads(path.read_text())), flatten(new)
        changed = [
            f"  {key}: was {old_flat.get(key, 'absent')}, now {new_flat.get(key, 'absent')}"
            for key in sorted(old_flat.keys() | new_flat.keys())
            if old_flat.get(key) != new_flat.get(key) and key not in _HARMLESS
        ]
        if changed:
            raise ConfigError(
                f"{path.parent} holds a run with another config:\n" + "\n".join(changed) + "\n"
                "Resume with the same values, or use another --workdir"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(new, indent=2) + "\n")
    temporary.replace(path)
