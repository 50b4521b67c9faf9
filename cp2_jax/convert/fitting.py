"""Fit a checkpoint to the model of a run: what weights alone do not tell is compared here, not guessed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from cp2_jax.models.vit import resize_positions
from cp2_jax.runs.checkpoints import CheckpointError

# With another value of these, weights load and compute nonsense, or do not load.
_MUST_AGREE = {
    "resnet": ("depth", "width", "stem_width", "stage_sizes", "padding"),
    "vit": ("patch", "width", "depth", "heads", "mlp_ratio"),
}
# Another value of these is another network of the same weights, which may be meant: finetuning at a smaller stride, say.
_MAY_DIFFER = {
    "resnet": ("output_stride", "contract_dilation"), "vit": (), "aspp": ("dilations",), "fcn": ("dilation",),
}  # fmt: skip


def fit(
    variables: Mapping,
    meta: Mapping,
    model: Mapping,
    *,
    image_size: int,
) -> tuple[dict, list[str]]:
    """Return (variables that a model of this config takes, what was changed or differs, a line each).

    A ViT's position table is resized to `image_size` (PyTorch's bicubic; the class token's entry stays), and its final norm
    is left out where `model.vit.final_norm` is False, as in the original.

    Args:
      variables: {'params', 'batch_stats'}.
      meta: what came with them, of a converted checkpoint or of a run of ours; one that describes no model passes as it is.
      model: `config.model`.
      image_size: side in pixels that the position table is made for.

    Raises:
      CheckpointError: the config describes another network, head count, padding or input; with the settings to change.
    """
    stated = _stated(meta)
    if stated is None:
        return dict(variables), []
    name, theirs, normalization = stated
    kind = theirs["backbone"]
    if model["backbone"] != kind:
        raise CheckpointError(f"{name} is a {kind}: set config.model.backbone={kind}")
    problems = _differences(theirs, model, kind, _MUST_AGREE[kind])
    for value in ("mean", "std"):
        if not np.allclose(model[value], normalization[value], atol=1e-3):
            problems.append(f"config.model.{value}={tuple(normalization[value])} (is {tuple(model[value])})")
    if problems:
        raise CheckpointError(f"{name} needs other settings: {'; '.join(problems)}")
    notes = _differences(theirs, model, kind, _MAY_DIFFER[kind])
    if theirs.get("head") == model["head"] and model["head"] in _MAY_DIFFER:
        notes += _differences(theirs, model, model["head"], _MAY_DIFFER[model["head"]])
    notes = [f"the checkpoint was made with {note}" for note in notes]
    if kind == "resnet":
        return dict(variables), notes
    variables, changes = _fit_vit(variables, model[kind], image_size)
    return variables, changes + notes


def _stated(meta: Mapping) -> tuple[str, Mapping, Mapping] | None:
    """Return (name for messages, its words for `config.model`, its mean and std), or None if it describes no model."""
    if meta.get("kind") == "converted":
        return f"{meta['file']} ({meta['format']})", meta["model"], meta["input"]
    config = meta.get("config")
    if not config:
        return None
    return f"the {meta['kind']} run", config["model"], config["model"]


def _differences(theirs: Mapping, ours: Mapping, section: str, keys: Sequence[str]) -> list[str]:
    """Return "config.model.vit.heads=6 (is 12)" for each of these keys that a checkpoint states otherwise."""
    lines = []
    known = theirs[section]
    for key in keys:
        if key not in known or (key == "depth" and known.get("stage_sizes")):
            continue
        want, have = _plain(known[key]), _plain(ours[section][key])
        if want != have:
            lines.append(f"config.model.{section}.{key}={want!r} (is {have!r})")
    return lines


def _plain(value: Any) -> Any:
    # What went through JSON has lists for tuples.
    return tuple(value) if isinstance(value, list) else value


def _fit_vit(variables, section, image_size):
    backbone, changes = dict(variables["params"]["backbone"]), []
    if not section["final_norm"] and backbone.pop("norm", None):
        changes.append("backbone/norm left out: config.model.vit.final_norm is False")
    if section["final_norm"] and "norm" not in backbone:
        raise CheckpointError("the checkpoint has no final norm: set config.model.vit.final_norm=False")
    side = image_size // section["patch"]
    table = backbone["pos_embed"]
    if table.shape[1] != side * side + 1:
        old = round((table.shape[1] - 1) ** 0.5)
        backbone["pos_embed"] = np.asarray(resize_positions(jnp.asarray(table), (side, side)))
        changes.append(f"backbone/pos_embed resized from {old} x {old} to {side} x {side} patches")
    params = dict(variables["params"]) | {"backbone": backbone}
    return {"params": params, "batch_stats": dict(variables.get("batch_stats", {}))}, changes
