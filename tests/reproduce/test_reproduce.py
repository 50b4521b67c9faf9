"""The paper's tables as data and as chains; results collected; one chain run with miniature stand-ins."""

import itertools
import json
import re

import numpy as np
import pytest
from helpers.paths import ROOT

from cp2_jax import config_files
from cp2_jax.interface import overrides
from cp2_jax.options import ConfigError, flatten
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.reproduce import chain, estimates, listing, paper, recipes
from cp2_jax.reproduce import place as places
from cp2_jax.segmentation import options as finetune_options

# Counted by hand in the paper: rows times columns of numbers.
COUNTS = {
    "table1": 15 * 3,
    "table2": 8 * 3,
    "table3": 9,
    "table4": 7 * 2,
    "table5a": 5 * 4,
    "table5b": 4,
    "table6": 5,
    "table7": 3,
}


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
    [
        ("table1", "CP2 QT r.800", "PASCAL", 78.6),
        ("table1", "CP2 QT v.300", "ADE20k", 42.2),
        ("table2", "CP2", "Cityscapes", 76.4),
        ("table4", "random patches", "ResNet-50", 75.3),
        ("table5a", "0.2", "1", 78.6),
        ("table5a", "0.1", "0.2", 75.8),
        ("table6", "dense loss only", "PASCAL", 75.6),
    ],
)
def test_numbers_are_the_papers(table, row, column, value):
    assert cell(table, row, column).value == value


def test_every_recipes_configs_exist_take_their_overrides_and_are_valid():
    """What `run` would hand to the scripts: no key that the config lacks, nothing that validation refuses."""
    seen = set()
    for recipe in recipes.all_recipes().values():
        checks = (pretrain_options.check, finetune_options.check)
        for run, check in zip((recipe.pretrain, recipe.finetune), checks, strict=True):
            if run is None or run.name() in seen:
                continue
            seen.add(run.name())
            config = config_files.load(run.config)
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
        cell("table1", "CP2 QT r.800", "PASCAL"),
        cell("table3", "r.800 CP2 QT, CP2 QT"),
        cell("table5a", "0.2", "1"),
        cell("table4", "rectangle", "ResNet-50"),
        cell("table5b", "20"),
        cell("table6", "entire CP2"),
        cell("table7", "CP2 QT r.800", "PASCAL"),
    ]
    assert len({chain.identity(recipes.recipe(c)) for c in same}) == 1
    other = [cell("table3", "r.800 CP2 QT, random"), cell("table5b", "40"), cell("table6", "instance loss only")]
    assert len({chain.identity(recipes.recipe(c)) for c in same[:1] + other}) == 4


def in_the_paper(of):
    """Weight decay of finetuning, by section 4.1, read from the cell's own words.

    SGD's is 0.0005, AdamW's (ViT) 0.01, "for those baseline models with random segmentation head"; it is turned off "for
    CP2 models", whose head is pretrained.
    """
    vit = "v.300" in of.row or of.column == "ViT-S/16"
    words = of.row
    random = not words.startswith("CP2")
    if of.table == "table3":
        random = words.endswith("random")
    elif of.table in ("table4", "table6"):
        random = words.startswith("baseline")
    elif of.table.startswith("table5"):
        random = words == "0"
    return (0.01 if vit else 5e-4) if random else 0.0


def test_weight_decay_follows_the_head_in_every_cell():
    """The same in the paper's words, in the recipe's config, with its variants in any order, and in docs/cells.md."""
    page = (ROOT / "docs" / "cells.md").read_text()
    shown = {}
    for table, body in re.findall(r"^## (table\w+):.*?\n\n(.*?)\n\n", page, re.M | re.S):
        header, _, *rows = ([part.strip() for part in line.split("|")[1:-1]] for line in body.splitlines())
        shown |= {(table, row[0], row[1]): float(row[header.index("its decay")]) for row in rows}
    for of, recipe in recipes.all_recipes().items():
        expected, (file, _, variants) = in_the_paper(of), recipe.finetune.config.partition(":")
        assert shown[of.table, of.row, of.column] == expected, of
        for order in itertools.permutations(variants.split(",")):
            config = config_files.load(f"{file}:{','.join(order)}")
            config.update_from_flattened_dict(dict(recipe.finetune.overrides))
            assert config.optimizer.weight_decay == expected, (of, order)
        assert "optimizer.weight_decay" not in recipe.finetune.overrides
        assert recipe.pretrain is not None or config.init.head == "random"
    assert len(shown) == 124


def test_the_page_of_cells_is_what_the_command_writes(tmp_path):
    here = places.Place(workdir=tmp_path / "nothing")
    listing.write_markdown(tmp_path / "cells.md", here)
    assert (tmp_path / "cells.md").read_text() == (ROOT / "docs" / "cells.md").read_text()


def test_the_published_vit_has_six_heads_all_along_the_chain(tmp_path):
    """In the conversion, in Quick Tuning and in finetuning: weights of another count load, and compute something else."""
    for of, recipe in recipes.all_recipes().items():
        if "v.300" in of.row or of.column == "ViT-S/16":
            runs = [run.resolve() for run in (recipe.pretrain, recipe.finetune) if run]
            assert {config.model.vit.heads for config in runs} == {6}
            convert, *_ = chain.stages(recipe, 0, places.Place(workdir=tmp_path))
            assert convert.command[-2:] == ("--heads", "6")


def test_table_six_trains_what_it_says():
    def losses(row):
        return dict(recipes.recipe(cell("table6", row)).pretrain.overrides)

    assert losses("no copy-paste") == {"augment.mask": "full", "loss.alpha": 0.0}
    assert losses("instance loss only") == {"loss.alpha": 0.0}
    assert losses("dense loss only") == {"loss.alpha_instance": 0.0}
    assert losses("entire CP2") == {}


def place(tmp_path, **changes):
    return places.Place(workdir=tmp_path / "work", **changes)


def test_what_is_missing_is_named_with_its_origin(tmp_path):
    lines = places.missing(recipes.recipe(cell("table1", "CP2 QT r.800", "PASCAL")), place(tmp_path))
    text = "\n".join(lines)
    assert "moco_v2_800ep_pretrain.pth.tar" in text and "facebookresearch/moco" in text and "pretrain:moco_v2" in text
    assert "data set ImageNet" in text and "--data PASCAL=PATH" in text and len(lines) == 3
    lines = places.missing(recipes.recipe(cell("table1", "CP2", "PASCAL")), place(tmp_path))
    assert len(lines) == 2  # no checkpoint is needed
    with pytest.raises(ConfigError, match="cannot run; missing:\n  checkpoint moco_v2_800"):
        chain.run(cell("table1", "MoCo v2 r.800", "PASCAL"), 0, place(tmp_path))


def test_our_own_moco_v2_stands_in_for_the_published_one(tmp_path):
    (tmp_path / "checkpoints" / "moco_v2_200").mkdir(parents=True)
    here = place(tmp_path, checkpoints=tmp_path / "checkpoints", data={"PASCAL": str(tmp_path), "ImageNet": str(tmp_path)})
    recipe = recipes.recipe(cell("table1", "MoCo v2 r.200", "PASCAL"))
    assert places.missing(recipe, here) == []
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
    [
        (("table9", "x", None), "did you mean|known: table1"),
        (("table1", "CP3", "PASCAL"), "--row='CP3': table1 has 'supervised'"),
        (("table1", "CP2", None), "--column=None: table1 has 'PASCAL', 'Cityscapes'"),
        (("table1", None, None), "--row=None"),
    ],
)
def test_a_cell_that_is_not_there_is_answered_with_those_that_are(arguments, message):
    with pytest.raises(ConfigError, match=message):
        listing.find(*arguments)


@pytest.mark.parametrize("text", ["model.width=3", "pretrain.steps", "pretrain.=3", "evaluate.x=1"])
def test_changes_of_another_form_are_refused(text):
    with pytest.raises(ConfigError, match="--set="):
        places.parse_changes([text])


def test_a_change_that_changes_nothing_is_refused(tmp_path):
    """Else its result would be filed under settings that it was not made with."""
    (tmp_path / "ours" / "moco_v2_800").mkdir(parents=True)
    cases = [
        (("table1", "CP2", "PASCAL"), "convert", "this cell converts no checkpoint"),
        (("table1", "MoCo v2 r.800", "PASCAL"), "convert", "this cell converts no checkpoint"),  # one of ours is there
        (("table1", "MoCo v2 r.800", "PASCAL"), "pretrain", "this cell has no pretraining"),
    ]
    for of, part, message in cases:
        here = place(tmp_path, checkpoints=tmp_path / "ours", changes={part: {"key": "1"}})
        with pytest.raises(ConfigError, match=f"--set {part}.key=1 would change nothing: {message}"):
            chain.run(cell(*of), 0, here)


def test_a_changed_conversion_is_another_one_all_along_the_chain(tmp_path):
    plain = recipes.recipe(cell("table1", "CP2 QT v.300", "PASCAL"))
    directories = {}
    for heads in (None, "12", "3"):
        here = place(tmp_path, changes={"convert": {"heads": heads}} if heads else {})
        recipe = places.changed(plain, here)
        found = chain.stages(recipe, 0, here)
        assert found[0].command[-1] == (f"--heads={heads}" if heads else "6")
        directories[heads] = [stage.directory for stage in found] + [chain.result_path(recipe, 0, here)]
    for one, other in itertools.combinations(directories.values(), 2):
        assert not set(one) & set(other)
