"""Commands and scripts of finetuning, evaluation and prediction on little images; two processes against one."""

import json
import os
import subprocess
import sys

import numpy as np
from helpers import compiling
from helpers.command_line import cp2
from helpers.halves import halves_on_disk
from helpers.paths import ROOT
from helpers.tiny import choose_vit, tiny_config
from PIL import Image

from cp2_jax.data.labelled import masks
from cp2_jax.runs import checkpoints
from cp2_jax.segmentation import step as finetune_step

SMALL = (
    "--config.model.backbone=vit",  # as choose_vit
    "--config.model.vit.width=12",
    "--config.model.vit.depth=1",
    "--config.model.vit.heads=3",
    "--config.model.vit.patch=8",
    "--config.model.head=fcn",
    "--config.model.fcn.channels=4",
    "--config.model.fcn.num_convs=1",
    "--config.model.fcn.dilation=1",
    "--config.image_size=32",
    "--config.model.dtype=float32",
    "--config.model.num_classes=2",
    "--config.data.num_classes=2",
    "--config.data.class_names=('left','right')",
    "--config.data.label_map=((2,0),(5,1))",
    "--config.data.class_colors=()",
    "--config.data.crop_size=(32,32)",
    "--config.data.workers=0",
    "--config.batch_size=4",
    "--config.log_every=1",
)


def script(name, *arguments, status=0):
    command = [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=compiling.environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr[-3000:] + done.stdout[-1000:]
    return done.stdout + done.stderr


def test_entry_points_finetune_resume_evaluate_predict(tmp_path, capsys):
    """Commands in this process, and the last one as a script."""

    def command(name, *arguments, status=0):
        found, out, errors = cp2(capsys, name, *arguments)
        assert found == status, errors[-3000:] + out[-1000:]
        return out + errors

    for split, count in (("train", 6), ("val", 2)):
        halves_on_disk(tmp_path / "data", split, count)
    common = ("--config", "finetune_camvid", f"--config.data.path={tmp_path / 'data'}", *SMALL)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    config = tiny_config()
    choose_vit(config.model)
    backbone = finetune_step.init_variables(config)["params"]["backbone"]
    checkpoints.write_variables(tmp_path / "converted", {"params": {"backbone": backbone}}, {})
    loading = f"--config.init.checkpoint={tmp_path / 'converted'}"
    run = (*common, "--config.steps=4", "--config.save_every=2", "--config.eval_every=2", "--config.keep=2")

    message = command("finetune", *run, loading, "--workdir", tmp_path / "x", status=2)
    assert "head: not in the checkpoint" in message and "Traceback" not in message
    out = command("finetune", *run, loading, "--config.init.head=random", "--workdir", whole)
    assert f"backbone from {tmp_path / 'converted'}; " in out and " at random" in out
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "miou" in line] == [2, 4]

    # Lose the last steps, as a kill would, and go on.
    command("finetune", *run, loading, "--config.init.head=random", "--workdir", broken)
    for path in sorted((broken / "checkpoints/4").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (broken / "checkpoints/4").rmdir()
    out = command("finetune", *run, loading, "--config.init.head=random", "--workdir", broken)
    assert "resuming after step 2" in out
    again = [json.loads(line) for line in (broken / "metrics.jsonl").read_text().splitlines()]

    def plain(rows):
        return [{k: v for k, v in r.items() if "/" not in k} for r in rows]

    assert sorted(map(str, plain(lines))) == sorted(map(str, plain(again)))

    protocol = ("--config.evaluation.flip=True", "--predictions", tmp_path / "maps")
    out = command("evaluate", *common, "--workdir", whole, *protocol)
    assert "left" in out and "1 program compiled" in out
    assert json.loads((whole / "scores.json").read_text())["protocol"]["flip"] is True
    assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == ["0.png", "1.png"]
    images = tmp_path / "data/images/val"
    command("predict", "--checkpoint", whole / "best", "--images", images, "--output", tmp_path / "o")
    mask = masks.read_mask((tmp_path / "o/masks/1.png").read_bytes(), "1.png").values
    assert mask.shape == (32, 40) and mask.max() <= 1 and (tmp_path / "o/overlays/0.png").exists()
    out = script("predict", "--checkpoint", tmp_path / "nowhere", "--images", tmp_path, "--output", tmp_path, status=1)
    assert "no checkpoint at" in out and "Traceback" not in out


def test_two_processes_finetune_and_evaluate_as_one(tmp_path, capsys):
    """Each with its part: the same losses and confusion matrix as one; class maps of all images; the pictures."""
    for split, count in (("train", 6), ("val", 5)):  # 5 images in batches of 4: the second has rows without an image
        halves_on_disk(tmp_path / "data", split, count)
    common = ("--config=configs/finetune_camvid.py", f"--config.data.path={tmp_path / 'data'}", *SMALL)
    common = (*common, "--config.evaluation.batch_size=4", "--config.steps=2")

    def run(processes, what, work, *extra):
        if processes == "1":
            assert cp2(capsys, what, f"--workdir={work}", *common, *extra)[0] == 0
        else:
            command = ["bash", "scripts/launch/local_multihost.sh", processes, "1", f"scripts/{what}.py"]
            command += [f"--workdir={work}", *common, *extra]
            environment = os.environ | {"PYTHON": sys.executable}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
        pictures = sorted(path.name for path in (work / "pictures").glob("evaluation_*.png"))
        matrix = np.array(json.loads((work / "scores.json").read_text())["matrix"])
        return [line["loss"] for line in lines if "loss" in line], pictures, matrix

    losses, pictures, matrix = run("1", "finetune", tmp_path / "one")
    both = run("2", "finetune", tmp_path / "two")
    np.testing.assert_allclose(both[0], losses, rtol=1e-4)
    assert len(losses) == 2 and len(pictures) == 3 and both[1] == pictures
    # float32 sums differ by their order, which may decide a pixel whose classes are level.
    assert np.abs(both[2] - matrix).sum() <= 0.01 * matrix.sum() and both[2].sum() == matrix.sum() > 0

    maps = tmp_path / "maps"
    scored = run("2", "evaluate", tmp_path / "two", f"--predictions={maps}")[2]
    by_hand = np.zeros_like(scored)
    for index in range(5):
        truth = np.asarray(Image.open(tmp_path / f"data/labels/val/{index}.png"))
        predicted = np.asarray(Image.open(maps / f"{index}.png"))
        for value, label in ((2, 0), (5, 1)):  # SMALL's label_map
            for other_value, other in ((2, 0), (5, 1)):
                by_hand[label, other] += np.sum((truth == value) & (predicted == other_value))
    np.testing.assert_array_equal(scored, by_hand)
