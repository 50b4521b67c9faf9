"""Fit a converted checkpoint to the model of a run: what weights alone do not tell is compared here, not guessed."""

from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from cp2_jax.checkpoints import CheckpointError
from cp2_jax.models.vit import resize_positions


def fit(
    variables: Mapping,
    meta: Mapping,
    model: Mapping,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[dict, list[str]]:
    """Return (variables that a model of this config takes, what was changed, a line each).

    A ViT's position table is resized to `image_size` (PyTorch's bicubic; the class token's entry stays), and its final norm
    is left out where `model.vit.final_norm` is False, as in the original. A checkpoint of ours passes as it is.

    Args:
      variables: {'params', 'batch_stats'}. meta: what came with them. model: `config.model`.
      image_size: side in pixels that the position table is made for.
      mean, std: of the run's inputs on [0, 1].

    Raises:
      CheckpointError: the config describes another network, head count, padding or input; with the settings to change.
    """
    if meta.get("kind") != "converted":
        return dict(variables), []
    theirs = meta["model"]
    kind = theirs["backbone"]
    if model["backbone"] != kind:
        raise CheckpointError(f"{meta['file']} is a {kind}: set config.model.backbone={kind}")
    section, problems = model[kind], []
    for name, value in theirs[kind].items():
        default = {"padding": "torch", "stage_sizes": ()}.get(name)
        ours = section[name] if name in section else default
        if name == "depth" and theirs[kind].get("stage_sizes"):
            continue
        if name == "stage_sizes":
            ours, value = tuple(ours), tuple(value)
        if name != "final_norm" and ours != value:
            problems.append(f"config.model.{kind}.{name}={value!r} (is {ours!r})")
    for name, have, want in (("mean", mean, meta["input"]["mean"]), ("std", std, meta["input"]["std"])):
        if not np.allclose(have, want, atol=1e-3):
            problems.append(f"config.augment.{name}={tuple(want)} (is {tuple(have)})")
    if problems:
        raise CheckpointError(f"{meta['file']} ({meta['format']}) needs other settings: {'; '.join(problems)}")
    return _fit_vit(variables, section, image_size) if kind == "vit" else (dict(variables), [])


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
