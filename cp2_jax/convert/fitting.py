"""Fit a checkpoint to the model of a run. What the weights do not show is compared here, not guessed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cp2_jax.convert.origins import origin
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.heads import HEADS
from cp2_jax.models.network import Network
from cp2_jax.runs.checkpoints import CheckpointError


def fit(
    variables: Mapping,
    meta: Mapping,
    model: Mapping,
    *,
    image_size: int,
) -> tuple[dict, list[str]]:
    """Return (variables that a model of this config takes, what was changed or differs, a line each).

    What a backbone changes in its weights, its `fit` says: a ViT's position table is resized, for example.

    Args:
      variables: {'params', 'batch_stats'}.
      meta: what came with them, of a converted checkpoint or of a run of ours; one that describes no model passes as it is.
      model: `config.model`.
      image_size: side in pixels that the position table is made for.

    Raises:
      CheckpointError: the config describes another network, head count, padding or input; with the settings to change.
    """
    stated = origin(meta)
    if stated is None:
        return dict(variables), []
    name, theirs = stated.name, stated.model
    kind = theirs["backbone"]
    if model["backbone"] != kind:
        raise CheckpointError(f"{name} is a {kind}: set config.model.backbone={kind}")
    backbone, head = BACKBONES[kind], HEADS[model["head"]]
    problems = _differences(theirs, model, kind, backbone.must_agree)
    for value in ("mean", "std"):
        if not np.allclose(model[value], theirs[value], atol=1e-3):
            problems.append(f"config.model.{value}={tuple(theirs[value])} (is {tuple(model[value])})")
    if problems:
        raise CheckpointError(f"{name} needs other settings: {'; '.join(problems)}")
    notes = _differences(theirs, model, kind, backbone.may_differ)
    if theirs.get("head") == model["head"]:
        notes += _differences(theirs, model, model["head"], head.may_differ)
    notes = [f"the checkpoint was made with {note}" for note in notes]
    if backbone.fit is None:
        return dict(variables), notes
    try:
        options = Network.from_config(model).backbone_options
        params, changes = backbone.fit(variables["params"]["backbone"], options, image_size)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    params = dict(variables["params"]) | {"backbone": params}
    return {"params": params, "batch_stats": dict(variables.get("batch_stats", {}))}, changes + notes


def _differences(theirs: Mapping, ours: Mapping, section: str, keys: Sequence[str]) -> list[str]:
    """Return "config.model.vit.heads=6 (is 12)" for each of these keys that a checkpoint states otherwise."""
    lines = []
    known, options = theirs.get(section, {}), {**BACKBONES, **HEADS}[section].options
    for key in keys:
        if key not in known or (key == "depth" and known.get("stage_sizes")):
            continue
        want, have = _plain(known[key]), _plain(ours.get(section, {}).get(key, getattr(options, key)))
        if want != have:
            lines.append(f"config.model.{section}.{key}={want!r} (is {have!r})")
    return lines


def _plain(value: Any) -> Any:
    # What went through JSON has lists for tuples.
    return tuple(value) if isinstance(value, list) else value
