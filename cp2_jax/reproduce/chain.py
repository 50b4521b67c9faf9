"""The stages of a recipe as commands, run one after the other; a finished stage is skipped.

Layout of a work directory, shared by all cells, on any number of machines (results are files):
  converted/<start>             pretrained/<run>-<start>-seed<n>             finetuned/<…>-seed<n>, in it evaluation/
  results/<recipe>-seed<n>.json
<start> names the source and, by a short code, changed options of its conversion; so does <run> for a changed config.
"""

import dataclasses
import datetime
import json
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from cp2_jax.options import ConfigError
from cp2_jax.paths import save_json
from cp2_jax.reproduce.needs import CHECKPOINTS
from cp2_jax.reproduce.paper import Cell
from cp2_jax.reproduce.place import DONE, Place, changed, given, missing, unused, wants_maps
from cp2_jax.reproduce.recipes import Recipe, recipe

# What an entry point leaves with when it saved and wants to be called again (EX_TEMPFAIL).
_AGAIN = 75
_LINE = "--config.compare_with="


class StageError(Exception):
    """A stage failed or was stopped; the message names its command."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One command. It is done when `directory` has its marker.

    Attributes:
      name: "convert", "pretrain", "finetune" or "evaluate".
      directory: what the command writes to.
      command: with its arguments.
      resumes: whether the command goes on with what a killed one left in `directory`.
    """

    name: str
    directory: pathlib.Path
    command: tuple[str, ...]
    resumes: bool = True

    @property
    def done(self) -> bool:
        return (self.directory / DONE).exists()


def identity(recipe: Recipe) -> str:
    """Return the name of a recipe, the same for all cells that share it."""
    pretrain = recipe.pretrain.name() if recipe.pretrain else "none"
    return f"{recipe.start()}+{pretrain}+{recipe.finetune.name()}"


def stages(recipe: Recipe, seed: int, place: Place, value: float | None = None) -> list[Stage]:
    """Return the chain: convert → pretrain (Quick Tuning) → finetune → evaluate, as far as the recipe has them.

    Args:
      recipe: with the place's changes, see `changed`.
      seed: of the runs.
      value: the paper's mIoU in percent, drawn as a line in the curves of finetuning.
    """
    found, start, name = [], "", recipe.start()
    if recipe.source:
        path, ours = given(recipe.source, place)
        start = str(path) if ours else str(place.workdir / "converted" / name)
        if not ours:
            found.append(_conversion(recipe, place, path, start))
    if recipe.pretrain:
        name = f"{recipe.pretrain.name()}-{name}"
        directory = place.workdir / "pretrained" / f"{name}-seed{seed}"
        flags = _flags(place, recipe.pretrain, directory, "ImageNet", start, seed)
        found.append(Stage("pretrain", directory, (*_cp2("pretrain"), *flags)))
        start = str(directory)
    directory = place.workdir / "finetuned" / f"{recipe.finetune.name()}-{name}-seed{seed}"
    flags = _flags(place, recipe.finetune, directory, recipe.data, start, seed)
    line = () if value is None else (f"{_LINE}(('paper', {value}),)",)
    found.append(Stage("finetune", directory, (*_cp2("finetune"), *flags, *line)))
    evaluation = directory / "evaluation"
    flags = _flags(place, recipe.finetune, evaluation, recipe.data, start, seed)
    command = (*_cp2("evaluate"), *flags, f"--checkpoint={directory}")
    found.append(Stage("evaluate", evaluation, command))
    return found


def _cp2(command: str) -> tuple[str, ...]:
    return sys.executable, "-m", "cp2_jax", command


def _conversion(recipe: Recipe, place: Place, file: pathlib.Path | None, output: str) -> Stage:
    arguments = CHECKPOINTS[recipe.source].arguments
    more = (f"--{key}={value}" for key, value in recipe.convert.items())  # the last of two flags counts
    command = (*_cp2("convert"), str(file), output, *arguments, *more)
    return Stage("convert", pathlib.Path(output), command, resumes=False)


def _flags(place, run, directory, data, start, seed):
    values = {"data.path": place.data.get(data, ""), "seed": seed} | ({"init.checkpoint": start} if start else {})
    values |= {"data.attention": place.data.get("attention", "")} if wants_maps(run) else {}
    values |= run.overrides
    return (
        f"--config={run.config}",
        f"--workdir={directory}",
        *(f"--config.{key}={value}" for key, value in values.items()),
    )


def result_path(recipe: Recipe, seed: int, place: Place) -> pathlib.Path:
    """Return where the result of a (changed) recipe is, or will be."""
    return place.workdir / "results" / f"{identity(recipe)}-seed{seed}.json"


def run(cell: Cell, seed: int, place: Place) -> dict:
    """Run what is not done yet of a cell's chain; write and return its result.

    Args:
      seed: of pretraining and finetuning.

    Returns:
      What the result's file holds: the cell, "value" (mIoU in percent), "recipe", "changes", "date", "directory".

    Raises:
      ConfigError: if something is missing, with how to get it.
      StageError: if a command fails, or was stopped and should be run again.
    """
    plain = recipe(cell)
    if lines := missing(plain, place):
        name = f"{cell.table}, {cell.row}, {cell.column}"
        if useless := unused(plain, place):
            raise ConfigError(f"{name}: " + "; ".join(useless))
        raise ConfigError(f"{name} cannot run; missing:\n  " + "\n  ".join(lines))
    actual = changed(plain, place)
    chain = stages(actual, seed, place, cell.value)
    for stage in chain:
        if stage.done:
            print(f"{stage.name}: done before, {stage.directory}{_done_otherwise(stage)}", flush=True)
            continue
        print(f"{stage.name}: {' '.join(stage.command)}", flush=True)
        _execute(stage)
    scores = json.loads((chain[-1].directory / "scores.json").read_text("utf-8"))
    result = {
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "seed": seed,
        "value": 100 * scores["mean_iou"],
        "recipe": identity(plain),
        "changes": _plain(place.changes),
        "date": datetime.date.today().isoformat(),
        "directory": str(chain[-1].directory.relative_to(place.workdir)),
    }
    save_json(result_path(actual, seed, place), result)
    return result


def _done_otherwise(stage: Stage) -> str:
    """Return what of a finished stage's command was different, as text to append; "" where nothing was."""
    try:
        _python, _m, _module, *before = json.loads((stage.directory / DONE).read_text("utf-8"))["command"]
    except (ValueError, KeyError, TypeError):  # the marker of a run that was killed while it was written
        return ""
    different = [part for part in before if part not in stage.command and not part.startswith(_LINE)]
    return f" (with {' '.join(different)})" if different else ""


def _plain(changes: Mapping[str, Mapping[str, Any]]) -> dict:
    return {part: dict(values) for part, values in changes.items() if values}


def _execute(stage: Stage) -> None:
    """Run a stage's command and write its marker.

    Raises:
      StageError: if the command fails, or was stopped and should be run again.
    """
    if not stage.resumes and stage.directory.exists():
        # What a killed command left. It is kept, for a person may have put it there.
        aside = stage.directory.with_name(f"{stage.directory.name}.unfinished")
        if aside.exists():
            shutil.rmtree(aside)
        stage.directory.rename(aside)
        print(f"{stage.name}: {stage.directory} was not finished; it is now {aside.name}", flush=True)
    status = subprocess.run(stage.command, check=False).returncode
    if status == _AGAIN:
        raise StageError(f"{stage.name} was stopped and saved its state; run the same command again to go on")
    if status:
        raise StageError(f"{stage.name} failed with status {status}: {' '.join(stage.command)}")
    save_json(stage.directory / DONE, {"command": stage.command})
