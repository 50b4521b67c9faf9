"""One chain of Table 1 from a published checkpoint's format to a score, with miniature stand-ins, by its command."""

import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from helpers import checkpoints as make_checkpoints
from helpers.command_line import cp2
from helpers.networks import STAGES
from helpers.paths import ROOT

from cp2_jax.cli import main
from cp2_jax.paths import save_json
from cp2_jax.reproduce import chain, listing

CELL = ("table1", "CP2 QT r.800", "PASCAL")
MODEL = {
    "model.resnet.depth": 18,
    "model.resnet.width": 4,
    "model.resnet.stem_width": 4,
    "model.resnet.stage_sizes": "(1, 1, 1, 1)",
    "model.aspp.channels": 8,
    "model.aspp.dilations": "(1, 2)",
    "model.dtype": "float32",
    "image_size": 32,
    "batch_size": 4,
    "steps": 2,
    "data.workers": 0,
    "bn_groups": 1,
}
PRETRAIN = MODEL | {
    "loss.queue_size": 8,
    "augment.jitter_probability": 0.0,
    "augment.blur": 0.0,
    "augment.grayscale": 0.0,
    "picture_every": 0,
    "probe_every": 0,
    "key_shuffle": "none",
}
FINETUNE = MODEL | {
    "data.resize": "()",
    "evaluation.resize": "()",
    "data.crop_size": "(32, 32)",
    "data.photometric": False,
    "eval_every": 0,
    "evaluation.batch_size": 2,
}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """MoCo v2's training file with random weights, a folder of images, and a data set laid out as VOC."""
    folder = tmp_path_factory.mktemp("stand_ins")
    make = pytest.MonkeyPatch()
    make.setitem(STAGES, 18, (1, 1, 1, 1))
    encoder = {
        name: array * np.float32(0.1) if name.endswith("weight") and array.ndim == 4 else array
        for name, array in make_checkpoints.resnet(18, width=4).items()
    }
    state = make_checkpoints._moco(encoder, ["fc.0.weight", "fc.0.bias", "fc.2.weight", "fc.2.bias"])
    make.undo()
    (folder / "checkpoints").mkdir()
    path = folder / "checkpoints" / "moco_v2_800ep_pretrain.pth.tar"
    make_checkpoints.save_torch(path, make_checkpoints._run(state, arch="resnet18"))

    rng = np.random.default_rng(0)
    for name in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (folder / "voc" / name).mkdir(parents=True)
    for number in range(6):
        cv2.imwrite(str(folder / "voc" / "JPEGImages" / f"{number}.jpg"), rng.integers(0, 256, (36, 40, 3), np.uint8))
        mask = rng.integers(0, 21, (36, 40), np.uint8)
        cv2.imwrite(str(folder / "voc" / "SegmentationClassAug" / f"{number}.png"), mask)
    lists = folder / "voc" / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").write_text("0\n1\n2\n3\n")
    (lists / "val.txt").write_text("4\n5\n")
    return folder


def command(stand_ins, workdir, *more):
    changes = {"convert.stage_sizes": "1,1,1,1"}
    changes |= {f"pretrain.{k}": v for k, v in PRETRAIN.items()} | {f"finetune.{k}": v for k, v in FINETUNE.items()}
    table, row, column = CELL
    return [
        sys.executable,
        str(ROOT / "scripts" / "reproduce.py"),
        "run",
        table,
        "--row",
        row,
        "--column",
        column,
        "--workdir",
        str(workdir),
        "--checkpoints",
        str(stand_ins / "checkpoints"),
        "--data",
        f"ImageNet={stand_ins / 'voc' / 'JPEGImages'}",
        "--data",
        f"PASCAL={stand_ins / 'voc'}",
        *(part for key, value in changes.items() for part in ("--set", f"{key}={value}")),
        *more,
    ]


def here(command, check):
    """A stage's command in this process, which need not import everything again; the next test runs them as programs."""
    assert command[:3] == (sys.executable, "-m", "cp2_jax")
    return SimpleNamespace(returncode=main.run(command[3], list(command[4:]), f"cp2 {command[3]}"))


def test_a_chain_of_table_one_runs_and_is_skipped_when_run_again(stand_ins, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(chain, "subprocess", SimpleNamespace(run=here))
    status, first, errors = cp2(capsys, "reproduce", *command(stand_ins, tmp_path)[2:])
    assert status == 0, first + errors
    (result,) = (json.loads(p.read_text()) for p in (tmp_path / "results").glob("*.json"))
    scores = json.loads((tmp_path / result["directory"] / "scores.json").read_text())
    assert 0 <= result["value"] <= 100 and result["value"] == 100 * scores["mean_iou"]
    assert (result["table"], result["row"], result["column"], result["seed"]) == (*CELL, 0)
    assert scores["images"] == 2 and np.sum(scores["matrix"]) == 2 * 36 * 40
    (config,) = (json.loads(p.read_text()) for p in (tmp_path / "finetuned").glob("*/config.json"))
    assert config["compare_with"] == [["paper", 78.6]]  # a line in its curves
    # What each stage started from, as it reported it.
    stages = ["convert", "pretrain", "finetune", "evaluate"]
    assert [name for name in stages if f"{name}: " in first] == stages
    for folder, head in (("pretrained", "initial"), ("finetuned", "loaded")):
        (overview,) = (tmp_path / folder).glob("*/overview.txt")
        parts = [line.split()[:2] for line in overview.read_text().splitlines()]
        assert ["backbone", "loaded"] in parts and ["head", head] in parts

    status, second, _ = cp2(capsys, "reproduce", *command(stand_ins, tmp_path)[2:])
    assert status == 0 and second.count("done before") == 4
    collected = listing.collect(tmp_path, tmp_path / "tables")
    assert "not comparable with the paper" in collected and f"{result['value']:.1f}" in collected


def test_a_stage_that_fails_is_named_with_its_command_and_those_before_stay_done(stand_ins, tmp_path):
    broken = command(stand_ins, tmp_path, "--set", "pretrain.loss.queue_size=7")
    failed = subprocess.run(broken, capture_output=True, text=True)
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    assert "pretrain failed with status 2" in failed.stderr and "loss.queue_size=7" in failed.stderr
    assert len(list((tmp_path / "converted").glob("moco_v2_800-*/stage_done.json"))) == 1


def test_a_preempted_stage_asks_to_be_run_again(tmp_path):
    stage = chain.Stage("pretrain", tmp_path, (sys.executable, "-c", "raise SystemExit(75)"))
    with pytest.raises(chain.StageError, match="run the same command again"):
        chain._execute(stage)
    assert not stage.done


def test_what_a_killed_conversion_left_does_not_block_the_next(tmp_path):
    """The converter itself refuses a folder that is not empty."""
    output = tmp_path / "converted"
    code = f"import pathlib; p = pathlib.Path({str(output)!r}); p.mkdir(); (p / 'whole').write_text('new')"
    stage = chain.Stage("convert", output, (sys.executable, "-c", code), resumes=False)
    for left in ("first", "second"):
        output.mkdir(exist_ok=True)
        (output / "half").write_text(left)
        chain._execute(stage)
        assert stage.done and (output / "whole").read_text() == "new" and not (output / "half").exists()
        assert (tmp_path / "converted.unfinished" / "half").read_text() == left
        (output / "stage_done.json").unlink()


def test_a_finished_stage_says_what_it_was_made_with(tmp_path):
    stage = chain.Stage("finetune", tmp_path, ("python", "-m", "cp2_jax", "finetune", "--config.data.path=old"))
    save_json(tmp_path / "stage_done.json", {"command": stage.command})
    assert chain._done_otherwise(stage) == ""
    moved = chain.Stage("finetune", tmp_path, ("python3", "-m", "cp2_jax", "finetune", "--config.data.path=new"))
    assert chain._done_otherwise(moved) == " (with --config.data.path=old)"
    (tmp_path / "stage_done.json").write_text("{")
    assert moved.done and chain._done_otherwise(moved) == ""
