"""What `cp2 reproduce` prints and writes: every cell with its state, and the collected tables."""

import pathlib
from collections.abc import Mapping, Sequence

from cp2_jax import pictures
from cp2_jax.options import ConfigError, nearest
from cp2_jax.paths import save_json
from cp2_jax.reproduce import chain, estimates, quick_tuning, study
from cp2_jax.reproduce import collect as tables
from cp2_jax.reproduce.paper import TABLES, Cell, cells
from cp2_jax.reproduce.place import Place, changed, missing
from cp2_jax.reproduce.recipes import Run, recipe


def find(table: str, row: str | None, column: str | None) -> Cell:
    """Return the cell of a table, a row and a column; the column may be left out where there is one only.

    Raises:
      ConfigError: naming the nearest, or all, that there are.
    """
    if table not in TABLES:
        raise ConfigError(f"there is no {table}{nearest(table, TABLES)}")
    of_table = [cell for cell in cells() if cell.table == table]
    rows = list(dict.fromkeys(cell.row for cell in of_table))
    if row not in rows:
        raise ConfigError(f"--row={row!r}: {table} has {', '.join(map(repr, rows))}")
    columns = [cell.column for cell in of_table if cell.row == row]
    column = columns[0] if column is None and len(columns) == 1 else column
    if column not in columns:
        raise ConfigError(f"--column={column!r}: {table} has {', '.join(map(repr, columns))}")
    return next(cell for cell in of_table if (cell.row, cell.column) == (row, column))


def status(cell: Cell, place: Place) -> dict:
    """Return what `list` shows of a cell, as JSON values.

    Returns:
      The cell ("table", "row", "column", "paper"), its recipe ("source", "pretrain", "finetune", "weight_decay" of
      finetuning, "data", "seeds", "estimated_chip_hours"), and how far it is: "status" (done, missing, started or ready),
      "missing" (one line each), "stages_done".
    """
    plain = recipe(cell)
    actual = changed(plain, place)
    seeds = range(plain.seeds)
    done = sum(chain.result_path(actual, seed, place).exists() for seed in seeds)
    lines = missing(plain, place)
    finished = [stage.name for stage in chain.stages(actual, 0, place) if stage.done]
    state = "done" if done == plain.seeds else "missing" if lines else "started" if finished else "ready"
    hours = estimates.chip_hours(plain)
    return {
        "table": cell.table,
        "row": cell.row,
        "column": cell.column,
        "paper": cell.value,
        "status": state,
        "source": plain.source,
        "missing": lines,
        "stages_done": finished,
        "pretrain": plain.pretrain and {"config": plain.pretrain.config, "overrides": dict(plain.pretrain.overrides)},
        "finetune": {"config": plain.finetune.config, "overrides": dict(plain.finetune.overrides)},
        "weight_decay": plain.finetune.resolve().optimizer.weight_decay,
        "data": plain.data,
        "seeds": plain.seeds,
        "estimated_chip_hours": {part: plain.seeds * value for part, value in hours.items()},
    }


def text(place: Place) -> str:
    """Return the list of all cells as Markdown: a table for each of the paper's, what is missing, the assumptions."""
    shown, absent = [], {}
    for table, (title, _) in TABLES.items():
        rows = []
        for cell in cells():
            if cell.table == table:
                entry = status(cell, place)
                hours = entry["estimated_chip_hours"]
                row = [cell.row, cell.column, f"{cell.value:.1f}", entry["source"] or "random"]
                row += [_run(recipe(cell).pretrain), _run(recipe(cell).finetune), f"{entry['weight_decay']:g}"]
                rows.append([*row, f"{hours['pretrain']:.1f} + {hours['finetune']:.1f}", entry["status"]])
                absent |= dict.fromkeys(entry["missing"])
        header = ["row", "column", "paper", "start", "pretraining", "finetuning", "its decay", "chip-hours", "status"]
        shown.append(f"## {table}: {title}\n\n{tables.markdown(header, rows)}\n")
    if absent:
        shown.append("## Missing\n\n" + "\n".join(f"- {line}" for line in absent) + "\n")
    shown.append(f"Chip-hours (pretraining + finetuning, all seeds) are estimates: {estimates.ASSUMED}.")
    return "\n".join(shown)


def _run(run: Run | None) -> str:
    if run is None:
        return "–"
    return " ".join([run.config, *(f"{key}={value}" for key, value in run.overrides.items())])


def write_markdown(path: str | pathlib.Path, place: Place) -> None:
    """Write `text` as a page."""
    head = "# The cells of the paper\n\nPrinted by `cp2 reproduce list --output FILE`. "
    head += '"Its decay" is the weight decay of finetuning.\n\n'
    pathlib.Path(path).write_text(f"{head}{text(place)}\n", encoding="utf-8")


def write_json(path: str | pathlib.Path, place: Place) -> None:
    """Write the state of all cells, a list of what `status` returns."""
    save_json(path, [status(cell, place) for cell in cells()])


def collect(folder: str | pathlib.Path, output: str | pathlib.Path) -> str:
    """Write tables.md and tables.json (and, of a study, study.png) of a work directory; return the Markdown.

    Raises:
      ConfigError: if there are no results in it.
    """
    folder, output = pathlib.Path(folder), pathlib.Path(output)
    parts, records = [], []
    if results := tables.read_results(folder / "results"):
        text_, found = tables.paper_tables(results)
        parts.append(text_)
        records += found
    if of_study := _in_order(tables.read_results(folder / "cells")):
        text_, found = study_report(of_study)
        parts.append(text_)
        records += found
        pictures.save_png(output / "study.png", _figure(of_study))
    if not parts:
        raise ConfigError(f"no results in {folder}: run `cp2 reproduce run` or `cp2 study` with --workdir {folder} first")
    output.mkdir(parents=True, exist_ok=True)
    markdown = "\n".join(parts)
    (output / "tables.md").write_text(markdown, encoding="utf-8")
    save_json(output / "tables.json", records)
    return markdown


# What the methods of a study are compared by.
SCORES = ("finetuned", "finetuned_more", "frozen")


def _in_order(of_study: Sequence[Mapping]) -> list[Mapping]:
    order = list(study.METHODS)
    if of_study and of_study[0]["table"] == "quick_tuning":
        order = list(quick_tuning.ARMS)
    return sorted(of_study, key=lambda cell: (order.index(cell["method"]), cell["seed"]))


def study_report(of_study: Sequence[Mapping]) -> tuple[str, list[dict]]:
    """Return a study's tables, with the paired differences of entire CP2 to all others."""
    table, records = tables.study_table(of_study)
    parts = [f"### Mean ± standard deviation (number of seeds)\n\n{table}\n"]
    others = list(dict.fromkeys(cell["method"] for cell in of_study))
    for name in SCORES:
        compared, found = tables.differences(of_study, "cp2", others, name)
        if found:
            parts.append(f"### {tables.STUDY_COLUMNS[name][0]}: paired differences\n\n{compared}\n")
            records += found
    dates = sorted({cell["date"] for cell in of_study})
    seconds = sum(cell["seconds"] for cell in of_study)
    devices = ", ".join(sorted({cell["device"] for cell in of_study}))
    parts.append(
        f"{len(of_study)} cells, made {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "") + f" on {devices} in "
        f"{seconds / 60:.0f} minutes, waiting for other work on the machine included.\n"
    )
    return "\n".join(parts), records


def _figure(of_study: Sequence[Mapping]):
    points = {
        tables.STUDY_COLUMNS[name][0]: {
            title: [100 * cell["values"][name] for cell in of_study if cell["row"] == title]
            for title in dict.fromkeys(cell["row"] for cell in of_study)
        }
        for name in SCORES
        if all(name in cell["values"] for cell in of_study)
    }
    return pictures.seeds(points, unit="mean IoU of the validation images, %")
