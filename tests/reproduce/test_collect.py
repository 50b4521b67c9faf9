"""Results are collected into the paper's tables, and a study's cells are compared seed by seed."""

import json
import re

import numpy as np
import pytest
from helpers.paths import ROOT

from cp2_jax.options import ConfigError
from cp2_jax.reproduce import chain, collect, listing, recipes
from cp2_jax.reproduce.quick_tuning import ARMS
from cp2_jax.reproduce.study import METHODS


def test_summaries_are_numpys():
    summary = collect.summarize([1.0, 2.0, 4.0])
    np.testing.assert_allclose(summary.mean, 7 / 3)
    np.testing.assert_allclose(summary.std, np.std([1, 2, 4], ddof=1))
    np.testing.assert_allclose(summary.standard_error, np.std([1, 2, 4], ddof=1) / np.sqrt(3))
    assert summary.text() == "2.3 ± 1.5 (3)" and collect.summarize([3.0]).text() == "3.0 (1)"
    with pytest.raises(ValueError):
        collect.summarize([])


def write_results(folder, entries):
    (folder / "results").mkdir(parents=True)
    for number, entry in enumerate(entries):
        (folder / "results" / f"{number}.json").write_text(json.dumps(entry))


def result(of, seed, value, changes=None):
    return {
        "table": of.table,
        "row": of.row,
        "column": of.column,
        "seed": seed,
        "value": value,
        "changes": changes or {},
        "recipe": chain.identity(recipes.recipe(of)),
    }


def test_results_stand_beside_the_papers_numbers_in_every_table_that_shares_them(tmp_path):
    of = listing.find("table7", "CP2 QT r.800", "PASCAL")
    write_results(tmp_path, [result(of, 0, 78.0), result(of, 1, 79.0), result(of, 2, 78.5)])
    text = listing.collect(tmp_path, tmp_path / "out")
    records = json.loads((tmp_path / "out" / "tables.json").read_text())
    reached = [r for r in records if "ours" in r]
    assert len(records) == 124 and len(reached) == 7
    assert all(r["ours"] == 78.5 and r["std"] == 0.5 and r["seeds"] == [0, 1, 2] for r in reached)
    np.testing.assert_allclose([r["difference"] for r in reached], -0.1, atol=1e-9)
    assert "78.6 ± 0.2" in text and "78.5 ± 0.5 (3)" in text and text == (tmp_path / "out" / "tables.md").read_text()


def test_results_under_changed_settings_never_stand_beside_the_papers(tmp_path):
    of = listing.find("table1", "CP2", "PASCAL")
    write_results(tmp_path, [result(of, 0, 12.3, {"pretrain": {"epochs": "1"}})])
    text = listing.collect(tmp_path, tmp_path)
    records = json.loads((tmp_path / "tables.json").read_text())
    assert not any("ours" in r for r in records) and "not comparable" in text and "12.3" in text


def test_collecting_nothing_or_rubbish_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no results in"):
        listing.collect(tmp_path, tmp_path)
    write_results(tmp_path, [])
    (tmp_path / "results" / "half.json").write_text("{")
    with pytest.raises(ConfigError, match="half.json is no JSON"):
        listing.collect(tmp_path, tmp_path)


def study_cell(method, seed, finetuned):
    return {
        "table": "study",
        "row": METHODS[method].title,
        "method": method,
        "seed": seed,
        "seconds": 60.0,
        "date": f"2026-01-0{seed + 1}",
        "device": "cpu",
        "pretraining": {"steps": 10, "images": 320},
        "values": {"finetuned": finetuned, "frozen": 0.2},
    }


def test_studies_are_compared_seed_by_seed(tmp_path):
    (tmp_path / "cells").mkdir()
    values = {"cp2": (0.40, 0.44, 0.48), "scratch": (0.30, 0.33, 0.39)}
    for method, three in values.items():
        for seed, value in enumerate(three):
            (tmp_path / "cells" / f"{method}_{seed}.json").write_text(json.dumps(study_cell(method, seed, value)))
    text = listing.collect(tmp_path, tmp_path)
    records = json.loads((tmp_path / "tables.json").read_text())
    paired = next(r for r in records if r.get("of") == "finetuned")
    minus = 100 * (np.array(values["cp2"]) - np.array(values["scratch"]))
    np.testing.assert_allclose(paired["mean"], minus.mean())
    np.testing.assert_allclose(paired["standard_error"], minus.std(ddof=1) / np.sqrt(3))
    assert "44.0 ± 4.0 (3)" in text and "+10.0" in text and "2026-01-01 to 2026-01-03" in text
    assert (tmp_path / "study.png").stat().st_size > 1000


@pytest.mark.parametrize("number, images", [(0, ""), (1, "_photographs"), (2, "_camvid")])
def test_the_page_shows_the_differences_of_the_stored_scores(number, images):
    """docs/when_it_pays.md, from the scores of each seed in tables.json, by the definition of the standard error."""
    page = (ROOT / "docs" / "when_it_pays.md").read_text("utf-8")
    tables = re.findall(r"^\| entire CP² minus \| 20 labels \|.*\n\|.*\n((?:\|.*\n)+)", page, re.M)
    stored = json.loads((ROOT / f"docs/study/quick_tuning{images}/tables.json").read_text())
    rows = {record["method"]: record for record in stored if "method" in record}
    titles = {arm.title: name for name, arm in ARMS.items()}
    titles["MoCo v2 continued at finetuning's stride"] = "continued_fine"
    compared = 0
    for line in tables[number].splitlines():
        title, *shown = (part.strip(" *") for part in line.replace("*", "").split("|")[1:-1])
        other = rows[titles[title.partition(" (")[0]]]
        for kind, text in zip(("finetuned", "finetuned_more", "frozen"), shown, strict=True):
            if text == "the same network":
                continue
            assert rows["cp2"]["seeds"] == other["seeds"]
            minus = np.subtract(rows["cp2"][kind]["values"], other[kind]["values"])
            error = np.sqrt(np.sum((minus - minus.mean()) ** 2) / (len(minus) - 1) / len(minus))
            assert text == f"{minus.mean():+.1f} ± {error:.1f}", (title, kind)
            compared += 1
    assert compared == 26
