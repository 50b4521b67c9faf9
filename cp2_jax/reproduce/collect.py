"""Gathers result files into tables: Markdown to read, JSON to compute with."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from cp2_jax.options import ConfigError
from cp2_jax.reproduce import recipes
from cp2_jax.reproduce.chain import identity
from cp2_jax.reproduce.paper import TABLES


@dataclasses.dataclass(frozen=True)
class Summary:
    """Values of several seeds.

    Attributes:
      mean: of the values.
      std: their standard deviation, with n - 1; nan for one value alone.
      count: how many there are.
    """

    mean: float
    std: float
    count: int

    @property
    def standard_error(self) -> float:
        return self.std / np.sqrt(self.count)

    def text(self, digits: int = 1) -> str:
        """Return "77.6 ± 0.2 (3)", or "77.6 (1)"."""
        spread = f" ± {self.std:.{digits}f}" if self.count > 1 else ""
        return f"{self.mean:.{digits}f}{spread} ({self.count})"


def summarize(values: Sequence[float]) -> Summary:
    """Return mean, standard deviation and number.

    Raises:
      ValueError: for no values.
    """
    if not len(values):
        raise ValueError("there is nothing to summarize")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return Summary(float(np.mean(values)), std, len(values))


def read_results(folder: pathlib.Path) -> list[dict]:
    """Return the result files of a folder, by name.

    Raises:
      ConfigError: naming a file that is no result.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(json.loads(path.read_text("utf-8")))
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON ({error}); remove it and run its cell again") from error
    return found


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns, the first to the left, numbers to the right."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def paper_tables(results: Sequence[Mapping]) -> tuple[str, list[dict]]:
    """Return the paper's tables with what was reached beside each number, as Markdown and as records.

    A result counts for every cell that shares its recipe. Results under changed settings (a smaller model, say) are listed
    apart, without a difference: they do not reproduce anything.
    """
    by_recipe: dict[str, dict[int, float]] = {}
    for result in results:
        if not result["changes"]:
            by_recipe.setdefault(result["recipe"], {})[result["seed"]] = result["value"]
    records, texts = [], []
    for table, (title, _) in TABLES.items():
        rows: dict[str, list[str]] = {}
        columns: list[str] = []
        for cell, recipe in recipes.all_recipes().items():
            if cell.table != table:
                continue
            columns += [] if cell.column in columns else [cell.column]
            paper = f"{cell.value:.1f}" + (f" ± {cell.std}" if cell.std is not None else "")
            values = by_recipe.get(identity(recipe), {})
            record = {"table": table, "row": cell.row, "column": cell.column, "paper": cell.value, "paper_std": cell.std}
            if values:
                ours = summarize(list(values.values()))
                difference = ours.mean - cell.value
                record |= {"ours": ours.mean, "std": None if ours.count < 2 else ours.std, "seeds": sorted(values)}
                record["difference"] = difference
                rows.setdefault(cell.row, []).extend([paper, ours.text(), f"{difference:+.1f}"])
            else:
                rows.setdefault(cell.row, []).extend([paper, "", ""])
            records.append(record)
        header = ["", *(part for column in columns for part in (column, "ours", "difference"))]
        table_text = markdown(header, [[row, *cells] for row, cells in rows.items()])
        texts.append(f"### Table {table.removeprefix('table')}: {title}\n\n{table_text}\n")
    other = [r for r in results if r["changes"]]
    if other:
        lines = [
            [r["table"], r["row"], r["column"], str(r["seed"]), f"{r['value']:.1f}", json.dumps(r["changes"])]
            for r in other
        ]
        header = ["table", "row", "column", "seed", "mIoU", "changed settings"]
        texts.append(f"### Under changed settings (not comparable with the paper)\n\n{markdown(header, lines)}\n")
        records += [dict(r) for r in other]
    return "\n".join(texts), records


# What a study's table shows of a cell's values: name → (title, factor, digits).
STUDY_COLUMNS = {
    "finetuned": ("finetuned mIoU", 100, 1),
    "finetuned_more": ("finetuned mIoU, more labels", 100, 1),
    "frozen": ("frozen mIoU", 100, 1),
    "output_auc": ("AUC", 1, 3),
    "output_auc_anywhere": ("AUC, blocks", 1, 3),
    "output_retrieval": ("retrieval", 1, 2),
    "backbone_auc": ("AUC, backbone", 1, 3),
    "backbone_effective_rank": ("effective rank, backbone", 1, 1),
}


def study_table(cells: Sequence[Mapping]) -> tuple[str, list[dict]]:
    """Return a study's table, as Markdown and as records: mean ± standard deviation over seeds (and their number)."""
    rows, records = [], []
    columns = {k: v for k, v in STUDY_COLUMNS.items() if any(k in cell["values"] for cell in cells)}
    for title in dict.fromkeys(cell["row"] for cell in cells):
        mine = [cell for cell in cells if cell["row"] == title]
        row = [title, f"{np.mean([c['pretraining']['images'] for c in mine]):,.0f}"]
        record = {"table": "study", "row": title, "method": mine[0]["method"], "seeds": sorted(c["seed"] for c in mine)}
        for name, (_, factor, digits) in columns.items():
            values = [factor * c["values"][name] for c in mine if name in c["values"]]
            row.append(summarize(values).text(digits) if values else "–")
            if values:
                summary = summarize(values)
                record[name] = {"mean": summary.mean, "std": None if summary.count < 2 else summary.std, "values": values}
        rows.append(row)
        records.append(record)
    header = ["", "images seen", *(title for title, _, _ in columns.values())]
    return markdown(header, rows), records


def differences(cells: Sequence[Mapping], method: str, others: Sequence[str], name: str) -> tuple[str, list[dict]]:
    """Return a table of `method` minus each of `others`, paired by seed, with the standard error of the mean difference."""
    by_method: dict[str, dict[int, float]] = {}
    titles = {}
    for cell in cells:
        titles[cell["method"]] = cell["row"]
        if name in cell["values"]:
            by_method.setdefault(cell["method"], {})[cell["seed"]] = 100 * cell["values"][name]
    rows, records = [], []
    for other in others:
        seeds = sorted(by_method.get(method, {}).keys() & by_method.get(other, {}).keys())
        if other == method or not seeds:
            continue
        summary = summarize([by_method[method][s] - by_method[other][s] for s in seeds])
        known = summary.count > 1  # of one seed there is no error
        error = f"{summary.standard_error:.1f}" if known else ""
        errors = f"{summary.mean / summary.standard_error:+.1f}" if known and summary.standard_error else ""
        numbers = (f"{summary.mean:+.1f}", error, errors, str(len(seeds)))
        rows.append([titles[other], *numbers])
        records.append(
            {"minus": other, "of": name, "mean": summary.mean, "standard_error": summary.standard_error, "seeds": seeds}
        )
    header = [f"{titles.get(method, method)} minus", "difference", "standard error", "in standard errors", "seeds"]
    return markdown(header, rows), records
