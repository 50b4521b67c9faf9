"""What a recipe meets on this machine: where data and checkpoints are, what is changed, and what is missing."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cp2_jax.options import ConfigError
from cp2_jax.reproduce.needs import CHECKPOINTS, DATA_SETS
from cp2_jax.reproduce.recipes import Recipe, Run

# What a finished stage leaves in its directory.
DONE = "stage_done.json"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where things are.

    Attributes:
      workdir: where stages and results go, see `chain`.
      checkpoints: folder of others' files, by the names in `needs.CHECKPOINTS`, or of checkpoints of ours, by its keys
        (MoCo v2 trained here, for instance).
      data: data set → path.
      changes: 'pretrain' and 'finetune' → overrides beyond the recipe, such as a smaller model, and 'convert' → further
        options of the converter. Results under them are kept apart.
    """

    workdir: pathlib.Path
    checkpoints: pathlib.Path | None = None
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


def parse_changes(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return Place.changes from texts such as "pretrain.model.resnet.width=8".

    Raises:
      ConfigError: for another form.
    """
    changes: dict[str, dict[str, str]] = {"convert": {}, "pretrain": {}, "finetune": {}}
    for text in texts:
        part, _, rest = text.partition(".")
        key, equals, value = rest.partition("=")
        if part not in changes or not key or not equals:
            raise ConfigError(f"--set={text}: give pretrain.KEY=VALUE, finetune.KEY=VALUE or convert.KEY=VALUE")
        changes[part][key] = value
    return changes


def _changed(run: Run | None, changes: Mapping[str, Any] | None) -> Run | None:
    return run and Run(run.config, dict(run.overrides) | dict(changes or {}))


def changed(recipe: Recipe, place: Place) -> Recipe:
    """Return the recipe with the place's changes; they become part of its identity."""
    return dataclasses.replace(
        recipe,
        pretrain=_changed(recipe.pretrain, place.changes.get("pretrain")),
        finetune=_changed(recipe.finetune, place.changes.get("finetune")),
        convert=place.changes.get("convert", {}) if recipe.source else {},
    )


def unused(recipe: Recipe, place: Place) -> list[str]:
    """Return, one line each, the place's changes that would change nothing, so that no result is filed under them."""
    parts = {
        "convert": (_converts(recipe, place), "converts no checkpoint"),
        "pretrain": (recipe.pretrain is not None, "has no pretraining"),
        "finetune": (True, ""),
    }
    return [
        f"--set {part}.{key}={value} would change nothing: this cell {parts[part][1]}; leave it out"
        for part, values in place.changes.items()
        for key, value in values.items()
        if not parts[part][0]
    ]


def _converts(recipe: Recipe, place: Place) -> bool:
    return bool(recipe.source) and not given(recipe.source, place)[1]


def given(source: str, place: Place) -> tuple[pathlib.Path | None, bool]:
    """Return the path of a source and whether it is a checkpoint of ours already; None where there is nothing.

    Args:
      source: a key of `needs.CHECKPOINTS`.
    """
    if place.checkpoints is None:
        return None, False
    ours, file = place.checkpoints / source, place.checkpoints / CHECKPOINTS[source].file
    if ours.is_dir():
        return ours, True
    # A TensorFlow checkpoint is a prefix of several files.
    there = file.exists() or file.with_name(file.name + ".index").exists()
    return (file, False) if there else (None, False)


def wants_maps(run: Run | None) -> bool:
    """Say whether a pretraining takes its masks from attention maps."""
    return run is not None and run.overrides.get("augment.mask") == "attention"


def missing(recipe: Recipe, place: Place) -> list[str]:
    """Return, one line each, what has to be got before the recipe can run, and how."""
    lines = unused(recipe, place)
    converted = recipe.source and (place.workdir / "converted" / changed(recipe, place).start() / DONE).exists()
    if recipe.source and not converted and given(recipe.source, place)[0] is None:
        checkpoint = CHECKPOINTS[recipe.source]
        own = recipe.source in ("moco_v2_200", "moco_v2_800")
        lines.append(
            f"checkpoint {recipe.source}: {checkpoint.file} ({checkpoint.origin}), to be put into "
            + str(place.checkpoints or "a folder")
            + f"; or our own run of pretrain:moco_v2, as {recipe.source}/ in it" * own
            + "; then --checkpoints FOLDER" * (place.checkpoints is None)
        )
    inputs = ["ImageNet"] * (recipe.pretrain is not None) + ["attention"] * wants_maps(recipe.pretrain) + [recipe.data]
    for name in inputs:
        path = place.data.get(name)
        if not path or not pathlib.Path(path).exists():
            lines.append(f"data set {name}: {DATA_SETS[name].origin}; then --data {name}=PATH")
    return lines
