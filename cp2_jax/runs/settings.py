"""A config as the rest sees it: its keys, quantities derived from it, and its copy in the work directory."""

import json
from collections.abc import Mapping
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from cp2_jax.options import ConfigError, flatten, require
from cp2_jax.paths import AnyPath, refuse_secrets, save_as
from cp2_jax.runs import files

# What may change between a run and its resumption: how it is watched, fed and kept, and how long it lasts.
_HARMLESS = (
    "steps",
    "epochs",
    "log_every",
    "save_every",
    "keep",
    "picture_every",
    "probe_every",
    "probe_images",
    "eval_every",
    "evaluation.batch_size",
    "data.workers",
    "data.prefetch",
    "data.path",
    "data.probe_path",
    "data.probe_split",
    "data.attention",
    "accumulate",
    "remat",
    "shard_state",
    "model.vit.attention",
    "tuning.patience",
    "trackers",
    "compare_with",
)


# Keys of older configs, and what they are called now.
RENAMED = {f"{section}.{key}": f"model.{key}" for section in ("augment", "data") for key in ("mean", "std")}


# Keys that older configs do not have, with the value that does what was done then.
_ADDED_TO_MODELS = {"model.resnet.basic_dilation": "both", "model.vit.remainder": "pad"}
ADDED = {
    "pretrain": {"trackers": "", "data.list": "", "data.image_column": "image", "data.value_range": []} | _ADDED_TO_MODELS,
    "finetune": {"data.image_column": "image", "data.mask_column": "mask", "data.value_range": [], "data.exif": True}
    | {"trackers": "", "compare_with": []}
    | _ADDED_TO_MODELS,
}


# A section that older configs of finetuning do not have: what it says is off.
TUNING = {
    "freeze_backbone": False,
    "head_rate": 1.0,
    "layer_decay": 1.0,
    "class_weights": [],
    "dice": 0.0,
    "patience": 0,
}


def upgrade(config: Mapping) -> dict:
    """Return a saved config, plain values, as this version reads it: `kind`, and the keys of `RENAMED` and `ADDED`.

    Args:
      config: of a checkpoint or of `config.json`, written by this version or an older one.
    """
    config = _copied(config)
    if "model" not in config:  # no training's config
        return config
    config.setdefault("kind", "pretrain" if "augment" in config else "finetune")
    for old, new in RENAMED.items():
        (section, key), (new_section, new_key) = old.split("."), new.split(".")
        if key in config.get(section, {}):
            config[new_section].setdefault(new_key, config[section].pop(key))
    if config["kind"] == "finetune":
        config["tuning"] = TUNING | config.get("tuning", {})
    for new, value in ADDED.get(config["kind"], {}).items():
        *sections, key = new.split(".")
        inner: Any = config
        for section in sections:
            inner = inner.get(section) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner.setdefault(key, value)
    return config


def _copied(config: Mapping) -> dict:
    return {key: _copied(value) if isinstance(value, Mapping) else value for key, value in config.items()}


_EXAMPLES = {"pretrain": "pretrain or quick_tune", "finetune": "finetune_voc or finetune_folder"}


def check_kind(config: ConfigDict, kind: str) -> None:
    """Refuse a config that is of another job.

    Args:
      kind: "pretrain" or "finetune".

    Raises:
      ConfigError: saying which job the config is for.
    """
    found = config.get("kind", None)
    known = {"pretrain": "pretraining", "finetune": "finetuning"}
    if found != kind:
        what = f"a config of {known[found]}" if found in known else f"kind={found}"
        raise ConfigError(f"this is {what}, where one of {known[kind]} is needed, such as {_EXAMPLES[kind]}")


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Return the number of whole batches in an epoch (the remainder joins the next epoch), at least 1."""
    return max(1, num_images // batch_size)


def total_steps(config: ConfigDict, num_images: int) -> int:
    """Return the length of the run: `config.steps`, or else `config.epochs` epochs, at least 1.

    Raises:
      ConfigError: more steps than a state counts.
    """
    steps = config.steps or max(1, int(config.epochs * steps_per_epoch(num_images, config.batch_size)))
    require(steps < 2**31, "steps" if config.steps else "epochs", config.steps or config.epochs, "is 2**31 steps or more")
    return steps


def describe_model(config: ConfigDict) -> str:
    """Return the model in a few words, such as "resnet-50, aspp"."""
    backbone = config.model.get(config.model.backbone, {})
    size = backbone.get("depth", "") if config.model.backbone == "resnet" else backbone.get("width", "")
    return f"{config.model.backbone}{f'-{size}' if size else ''}, {config.model.head}"


def as_plain(config: ConfigDict) -> dict:
    """Return the config as plain JSON values."""
    return json.loads(config.to_json())


def _unused(key: str, model: Mapping) -> bool:
    """Say whether a key describes a backbone or head that a config's model does not have."""
    section, _, rest = key.partition(".")
    part = rest.partition(".")[0]
    return section == "model" and isinstance(model.get(part), Mapping) and part not in (model["backbone"], model["head"])


def check_config(workdir: str | AnyPath, config: ConfigDict) -> None:
    """Refuse values that would make another run of a work directory that holds checkpoints. Values that do no harm, such as
    `log_every` or a longer run, are listed in the log.

    Raises:
      ConfigError: naming the changed keys with old and new values, a `config.json` that cannot be read, or a value with a
        password inside.
    """
    workdir, new = files.expand(workdir), as_plain(config)
    for key, value in flatten(new).items():
        refuse_secrets(value, f"config.{key}") if isinstance(value, str) else None
    old = saved_config(workdir)
    if old is not None:
        _compare(workdir, old, new)


def save_config(workdir: str | AnyPath, config: ConfigDict) -> None:
    """Write `config.json` of a run that may go on. Every process may write it, to the same end."""
    with save_as(files.expand(workdir) / "config.json") as file:
        file.write_text(json.dumps(as_plain(config), indent=2) + "\n", encoding="utf-8")


def saved_config(workdir: AnyPath, warn: bool = True) -> dict | None:
    """Return the config of a work directory's run, as `upgrade` returns it, or None where there is no run.

    Where `config.json` is damaged, that of the newest checkpoint stands in for it.

    Args:
      warn: say so.

    Raises:
      ConfigError: there is no readable config at all.
    """
    steps = [step for step in (workdir / "checkpoints").glob("*") if step.name.isdecimal()]
    if not steps:
        return None
    path, problem = workdir / "config.json", None
    sources = [path, *(step / "meta" / "metadata" for step in sorted(steps, key=lambda step: -int(step.name)))]
    for source in sources:
        try:
            found = json.loads(source.read_text("utf-8"))
            config = found if source == path else found["config"]
            upgraded = upgrade(config)
            upgraded["kind"], upgraded["model"]["backbone"]  # of a training at all
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            problem = problem or f"{path} is no config of a training ({type(error).__name__}: {error})"
            continue
        if source != path and warn:
            logging.warning("%s; the config of %s is taken in its place", problem, source.parent.parent)
        return upgraded
    if not path.exists():  # an older layout, or copied without
        return None
    raise ConfigError(f"{problem}; put it right, or use another --workdir")


def _shown(value: object) -> object:
    return value if value != "" else "''"  # which would be read as a sentence that was cut off


def _compare(workdir: AnyPath, old: Mapping, new: Mapping) -> None:
    """Refuse a config that makes another run of a work directory."""
    if old["kind"] != new["kind"]:
        raise ConfigError(f"{workdir} holds a run of another kind, {old['kind']}, not {new['kind']}: use another --workdir")
    old_flat, new_flat = flatten(old), flatten(new)
    changed = {
        key: f"{key}: was {_shown(old_flat.get(key, 'absent'))}, now {_shown(new_flat.get(key, 'absent'))}"
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key) != new_flat.get(key) and not _unused(key, new["model"])
    }
    if refused := changed.keys() - set(_HARMLESS):
        newer = "a later version of cp2_jax made it (install that one), or " if refused - new_flat.keys() else ""
        raise ConfigError(
            f"{workdir} holds a run with another config:\n"
            + "".join(f"  {line}\n" for key, line in changed.items() if key in refused)
            + f"Resume with the same values, or {newer}use another --workdir"
        )
    for key, line in changed.items():
        effect = "; the learning rates of the steps to come follow the new length" if key in ("steps", "epochs") else ""
        logging.warning("resuming with another %s%s", line, effect)
