"""The paper's tables as data and as chains; results collected; one chain run with miniature stand-ins."""

import json
import re

import numpy as np
import pytest
from helpers.paths import ROOT

from cp2_jax.options import ConfigError
from cp2_jax.reproduce import chain, collect, estimates, listing, paper, recipes

# Counted by hand in the paper: rows times columns of numbers.
COUNTS = {
    "table1": 15 * 3, "table2": 8 * 3, "table3": 9, "table4": 7 * 2, "table5a": 5 * 4, "table5b": 4, "table6": 5,
    "table7": 3,
}  # fmt: skip


def cell(table, row, column=None):
    return listing.find(table, row, column)


def test_every_numeric_cell_of_the_paper_is_there_and_has_a_recipe():
    found = {table: sum(c.table == table for c in paper.cells()) for table in paper.TABLES}
    assert found == COUNTS and sum(COUNTS.values()) == 124
    for table, (_, text) in paper.TABLES.items():
        body = "\n".join(line.partition("|")[2] for line in text.strip().splitlines()[1:])
        numbers = re.findall(r"\d+\.\d+(?:±\d+\.\d+)?", body)
        assert len(numbers) == COUNTS[table]
    assert len(set(paper.cells())) == 124 and set(recipes.all_recipes()) == set(paper.cells())


@pytest.mark.parametrize(
    "table, row, column, value",
    [("table1", "CP2 QT r.800", "PASCAL", 78.6), ("table1", "CP2 QT v.300", "ADE20k", 42.2),
     ("table2", "CP2", "Cityscapes", 76.4), ("table4", "random patches", "ResNet-50", 75.3),
     ("table5a", "0.2", "1", 78.6), ("table5a", "0.1", "0.2", 75.8), ("table6", "dense loss only", "PASCAL", 75.6)],
)  # fmt: skip
def test_numbers_are_the_papers(table, row, column, value):
    assert cell(table, row, column).value == value


def test_every_recipes_configs_exist_take_their_overrides_and_are_valid():
    """What `run` would hand to the scripts: no key that the config lacks, nothing that validation refuses."""
    import importlib

    from cp2_jax import validation
    from cp2_jax.interface import overrides
    from cp2_jax.options import flatten

    seen = set()
    for recipe in recipes.all_recipes().values():
        checks = (validation.validate_pretrain, validation.validate_finetune)
        for run, check in zip((recipe.pretrain, recipe.finetune), checks, strict=True):
            if run is None or run.name() in seen:
                continue
            seen.add(run.name())
            module = run.config.removesuffix(".py").replace("/", ".")
            config = importlib.import_module(module).get_config()
            for key in run.overrides:
                overrides.check(config, key)
            config.update_from_flattened_dict(dict(run.overrides) | {"data.path": "somewhere"})
            if run.overrides.get("augment.mask") == "attention":
                config.data.attention = "maps"
            check(config)
            assert flatten(config)
    assert len(seen) > 40


def test_cells_that_share_their_runs_share_a_recipe():
    same = [
        cell("table1", "CP2 QT r.800", "PASCAL"), cell("table3", "r.800 CP2 QT, CP2 QT"), cell("table5a", "0.2", "1"),
        cell("table4", "rectangle", "ResNet-50"), cell("table5b", "20"), cell("table6", "entire CP2"),
        cell("table7", "CP2 QT r.800", "PASCAL"),
    ]  # fmt: skip
    assert len({chain.identity(recipes.recipe(c)) for c in same}) == 1
    other = [cell("table3", "r.800 CP2 QT, random"), cell("table5b", "40"), cell("table6", "instance loss only")]
    assert len({chain.identity(recipes.recipe(c)) for c in same[:1] + other}) == 4


def test_weight_decay_goes_with_a_random_head():
    """Section 4.1."""
    for recipe in recipes.all_recipes().values():
        overrides = recipe.finetune.overrides
        assert (overrides.get("init.head") == "random") == (overrides.get("optimizer.weight_decay", 0) > 0)
        assert recipe.pretrain is not None or overrides["init.head"] == "random"


def test_table_six_trains_what_it_says():
    losses = lambda row: dict(recipes.recipe(cell("table6", row)).pretrain.overrides)  # noqa: E731
    assert losses("no copy-paste") == {"augment.mask": "full", "loss.alpha": 0.0}
    assert losses("instance loss only") == {"loss.alpha": 0.0}
    assert losses("dense loss only") == {"loss.alpha_instance": 0.0}
    assert losses("entire CP2") == {}


def place(tmp_path, **changes):
    return chain.Place(checkout=ROOT, workdir=tmp_path / "work", **changes)


def test_what_is_missing_is_named_with_its_origin(tmp_path):
    lines = chain.missing(recipes.recipe(cell("table1", "CP2 QT r.800", "PASCAL")), place(tmp_path))
    text = "\n".join(lines)
    assert "moco_v2_800ep_pretrain.pth.tar" in text and "facebookresearch/moco" in text and "pretrain_moco_v2" in text
    assert "data set ImageNet" in text and "--data PASCAL=PATH" in text and len(lines) == 3
    lines = chain.missing(recipes.recipe(cell("table1", "CP2", "PASCAL")), place(tmp_path))
    assert len(lines) == 2  # no checkpoint is needed
    with pytest.raises(ConfigError, match="cannot run; missing:\n  checkpoint moco_v2_800"):
        chain.run(cell("table1", "MoCo v2 r.800", "PASCAL"), 0, place(tmp_path))


def test_our_own_moco_v2_stands_in_for_the_published_one(tmp_path):
    (tmp_path / "checkpoints" / "moco_v2_200").mkdir(parents=True)
    here = place(tmp_path, checkpoints=tmp_path / "checkpoints", data={"PASCAL": str(tmp_path), "ImageNet": str(tmp_path)})
    recipe = recipes.recipe(cell("table1", "MoCo v2 r.200", "PASCAL"))
    assert chain.missing(recipe, here) == []
    names = [stage.name for stage in chain.stages(recipe, 0, here)]
    assert names == ["finetune", "evaluate"]
    command = chain.stages(recipe, 0, here)[0].command
    assert f"--config.init.checkpoint={tmp_path / 'checkpoints' / 'moco_v2_200'}" in command


def test_list_shows_every_cell_and_says_that_hours_are_estimates(tmp_path):
    text = listing.text(place(tmp_path))
    rows = [line for line in text.splitlines() if line.startswith("|") and line.rstrip().endswith("missing |")]
    assert len(rows) == 124 and "estimates" in text and "MoCo v2's ViT-S/16" in text
    listing.write_json(tmp_path / "list.json", place(tmp_path))
    entries = json.loads((tmp_path / "list.json").read_text())
    assert len(entries) == 124 and {e["status"] for e in entries} == {"missing"}


def test_estimated_hours_follow_the_operations():
    qt, scratch = (estimates.chip_hours(recipes.recipe(cell("table1", row, "PASCAL"))) for row in ("CP2 QT r.800", "CP2"))
    np.testing.assert_allclose(scratch["pretrain"], 10 * qt["pretrain"])
    by_hand = 78.9e9 * 1_281_167 * 20 / (275e12 * 0.35) / 3600
    np.testing.assert_allclose(qt["pretrain"], by_hand)
    ade = estimates.chip_hours(recipes.recipe(cell("table1", "CP2", "ADE20k")))
    np.testing.assert_allclose(ade["finetune"], 2 * scratch["finetune"])


@pytest.mark.parametrize(
    "arguments, message",
    [(("table9", "x", None), "did you mean|known: table1"),
     (("table1", "CP3", "PASCAL"), "--row='CP3': table1 has 'supervised'"),
     (("table1", "CP2", None), "--column=None: table1 has 'PASCAL', 'Cityscapes'"), (("table1", None, None), "--row=None")],
)  # fmt: skip
def test_a_cell_that_is_not_there_is_answered_with_those_that_are(arguments, message):
    with pytest.raises(ConfigError, match=message):
        listing.find(*arguments)


@pytest.mark.parametrize("text", ["model.width=3", "pretrain.steps", "pretrain.=3", "evaluate.x=1"])
def test_changes_of_another_form_are_refused(text):
    with pytest.raises(ConfigError, match="--set="):
        chain.parse_changes([text])


# Collecting.


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
        "table": of.table, "row": of.row, "column": of.column, "seed": seed, "value": value, "changes": changes or {},
        "recipe": chain.identity(recipes.recipe(of)),
    }  # fmt: skip


def test_results_stand_beside_the_papers_numbers_in_every_table_that_shares_them(tmp_path):
    of = cell("table7", "CP2 QT r.800", "PASCAL")
    write_results(tmp_path, [result(of, 0, 78.0), result(of, 1, 79.0), result(of, 2, 78.5)])
    text = listing.collect(tmp_path, tmp_path / "out")
    records = json.loads((tmp_path / "out" / "tables.json").read_text())
    reached = [r for r in records if "ours" in r]
    assert len(records) == 124 and len(reached) == 7
    assert all(r["ours"] == 78.5 and r["std"] == 0.5 and r["seeds"] == [0, 1, 2] for r in reached)
    np.testing.assert_allclose([r["difference"] for r in reached], -0.1, atol=1e-9)
    assert "78.6 ± 0.2" in text and "78.5 ± 0.5 (3)" in text and text == (tmp_path / "out" / "tables.md").read_text()


def test_results_under_changed_settings_never_stand_beside_the_papers(tmp_path):
    of = cell("table1", "CP2", "PASCAL")
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
    from cp2_jax.reproduce.study import METHODS

    return {
        "table": "study", "row": METHODS[method].title, "method": method, "seed": seed, "seconds": 60.0,
        "date": f"2026-01-0{seed + 1}", "device": "cpu", "pretraining": {"steps": 10, "images": 320},
        "values": {"finetuned": finetuned, "frozen": 0.2},
    }  # fmt: skip


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
