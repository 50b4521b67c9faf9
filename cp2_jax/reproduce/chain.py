"""The stages of a recipe as commands, run one after the other; a finished stage is skipped.

Layout of a work directory, shared by all cells, on any number of machines (results are files):
  converted/<source>            pretrained/<run>-<source>-seed<n>            finetuned/<…>-seed<n>, in it evaluation/
  results/<recipe>-seed<n>.json
"""

import dataclasses
import datetime
import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from cp2_jax.options import ConfigError
from cp2_jax.reproduce.needs import CHECKPOINTS, DATA_SETS
from cp2_jax.reproduce.paper import Cell
from cp2_jax.reproduce.recipes import Recipe, Run, recipe

_DONE = "stage_done.json"
# What an entry point leaves with when it saved and wants to be called again (EX_TEMPFAIL).
_AGAIN = 75


class StageError(Exception):
    """A stage failed or was stopped; the message names its command."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where things are.

    checkout: has `scripts` and `configs`. workdir: see the module. checkpoints: folder of others' files, by the names in
    `needs.CHECKPOINTS`, or of checkpoints of ours, by its keys (MoCo v2 trained here, for instance). data: data set → path.
    changes: 'pretrain' and 'finetune' → overrides beyond the recipe, such as a smaller model, and 'convert' → further
    options of the converter; results under them are kept apart.
    """

    checkout: pathlib.Path
    workdir: pathlib.Path
    checkpoints: pathlib.Path | None = None
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command. It is done when `directory` has its marker, or when `given` says that it came from elsewhere."""

    name: str
    directory: pathlib.Path
    command: tuple[str, ...]

    @property
    def done(self) -> bool:
        return (self.directory / _DONE).exists()


def identity(recipe: Recipe) -> str:
    """Return the name of a recipe, the same for all cells that share it."""
    pretrain = recipe.pretrain.name() if recipe.pretrain else "none"
    return f"{recipe.source or 'scratch'}+{pretrain}+{recipe.finetune.name()}"


def _changed(run: Run | None, changes: Mapping[str, Any] | None) -> Run | None:
    return run and Run(run.config, dict(run.overrides) | dict(changes or {}))


def changed(recipe: Recipe, place: Place) -> Recipe:
    """Return the recipe with the place's changes; they become part of its identity."""
    return dataclasses.replace(
        recipe,
        pretrain=_changed(recipe.pretrain, place.changes.get("pretrain")),
        finetune=_changed(recipe.finetune, place.changes.get("finetune")),
    )


def _given(source: str, place: Place) -> tuple[pathlib.Path | None, bool]:
    """Return the path of a source and whether it is a checkpoint of ours already; None where there is nothing."""
    if place.checkpoints is None:
        return None, False
    ours, file = place.checkpoints / source, place.checkpoints / CHECKPOINTS[source].file
    if ours.is_dir():
        return ours, True
    # A TensorFlow checkpoint is a prefix of several files.
    there = file.exists() or file.with_name(file.name + ".index").exists()
    return (file, False) if there else (None, False)


def _wants_maps(run: Run | None) -> bool:
    return run is not None and run.overrides.get("augment.mask") == "attention"


def missing(recipe: Recipe, place: Place) -> list[str]:
    """Return, one line each, what has to be got before the recipe can run, and how."""
    lines = []
    converted = recipe.source and (place.workdir / "converted" / recipe.source / _DONE).exists()
    if recipe.source and not converted and _given(recipe.source, place)[0] is None:
        checkpoint = CHECKPOINTS[recipe.source]
        own = recipe.source in ("moco_v2_200", "moco_v2_800")
        lines.append(
            f"checkpoint {recipe.source}: {checkpoint.file} ({checkpoint.origin}), to be put into "
            + str(place.checkpoints or "a folder")
            + f"; or our own run of configs/pretrain_moco_v2.py, as {recipe.source}/ in it" * own
            + "; then --checkpoints FOLDER" * (place.checkpoints is None)
        )
    inputs = ["ImageNet"] * (recipe.pretrain is not None) + ["attention"] * _wants_maps(recipe.pretrain) + [recipe.data]
    for name in inputs:
        path = place.data.get(name)
        if not path or not pathlib.Path(path).exists():
            lines.append(f"data set {name}: {DATA_SETS[name].origin}; then --data {name}=PATH")
    for run in (recipe.pretrain, recipe.finetune):
        if run and not (place.checkout / run.config).exists():
            lines.append(f"config {run.config} is not in this checkout")
    return lines


def stages(recipe: Recipe, seed: int, place: Place) -> list[Stage]:
    """Return the chain: convert → pretrain (Quick Tuning) → finetune → evaluate, as far as the recipe has them."""
    found, script = [], lambda name: (sys.executable, str(place.checkout / "scripts" / name))
    start = ""
    if recipe.source:
        path, ours = _given(recipe.source, place)
        start = str(path) if ours else str(place.workdir / "converted" / recipe.source)
        if not ours:
            arguments = CHECKPOINTS[recipe.source].arguments
            more = (f"--{key}={value}" for key, value in place.changes.get("convert", {}).items())
            command = (*script("convert_checkpoint.py"), str(path), start, *arguments, *more)
            found.append(Stage("convert", pathlib.Path(start), command))
    name = recipe.source or "scratch"
    if recipe.pretrain:
        name = f"{recipe.pretrain.name()}-{name}"
        directory = place.workdir / "pretrained" / f"{name}-seed{seed}"
        command = (*script("pretrain.py"), *_flags(place, recipe.pretrain, directory, "ImageNet", start, seed))
        found.append(Stage("pretrain", directory, command))
        start = str(directory)
    directory = place.workdir / "finetuned" / f"{recipe.finetune.name()}-{name}-seed{seed}"
    finetune = _flags(place, recipe.finetune, directory, recipe.data, start, seed)
    found.append(Stage("finetune", directory, (*script("finetune.py"), *finetune)))
    evaluation = directory / "evaluation"
    evaluate = _flags(place, recipe.finetune, evaluation, recipe.data, start, seed)
    found.append(Stage("evaluate", evaluation, (*script("evaluate.py"), *evaluate, f"--checkpoint={directory}")))
    return found


def _flags(place, run, directory, data, start, seed):
    values = {"data.path": place.data.get(data, ""), "seed": seed} | ({"init.checkpoint": start} if start else {})
    values |= {"data.attention": place.data.get("attention", "")} if _wants_maps(run) else {}
    values |= run.overrides
    return (
        f"--config={place.checkout / run.config}", f"--workdir={directory}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )  # fmt: skip


def result_path(recipe: Recipe, seed: int, place: Place) -> pathlib.Path:
    """Return where the result of a (changed) recipe is, or will be."""
    return place.workdir / "results" / f"{identity(recipe)}-seed{seed}.json"


def run(cell: Cell, seed: int, place: Place) -> dict:
    """Run what is not done yet of a cell's chain; write and return its result.

    Raises:
      ConfigError: if something is missing, with how to get it.
      StageError: if a command fails, or was stopped and should be run again.
    """
    plain = recipe(cell)
    if lines := missing(plain, place):
        raise ConfigError(f"{cell.table}, {cell.row}, {cell.column} cannot run; missing:\n  " + "\n  ".join(lines))
    actual = changed(plain, place)
    chain = stages(actual, seed, place)
    for stage in chain:
        if stage.done:
            print(f"{stage.name}: done before, {stage.directory}", flush=True)
            continue
        print(f"{stage.name}: {' '.join(stage.command)}", flush=True)
        _execute(stage)
    scores = json.loads((chain[-1].directory / "scores.json").read_text())
    result = {
        "table": cell.table, "row": cell.row, "column": cell.column, "seed": seed,
        "value": 100 * scores["mean_iou"], "recipe": identity(plain), "changes": _plain(place.changes),
        "date": datetime.date.today().isoformat(), "directory": str(chain[-1].directory.relative_to(place.workdir)),
    }  # fmt: skip
    path = result_path(actual, seed, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return result


def _plain(changes: Mapping[str, Mapping[str, Any]]) -> dict:
    return {part: dict(values) for part, values in changes.items() if values}


def _execute(stage: Stage) -> None:
    status = subprocess.run(stage.command, check=False).returncode
    if status == _AGAIN:
        raise StageError(f"{stage.name} was stopped and saved its state; run the same command again to go on")
    if status:
        raise StageError(f"{stage.name} failed with status {status}: {' '.join(stage.command)}")
    (stage.directory / _DONE).write_text(json.dumps({"command": stage.command}) + "\n")


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
