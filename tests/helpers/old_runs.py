"""The runs of `tests/data/e931057`: their images and settings, and how they were made with the code of commit e931057.

    git worktree add /tmp/e931057 e931057
    python tests/helpers/old_runs.py /tmp/e931057 tests/data/e931057

Each work directory, a compressed archive, is as a kill in step 6 of 6 would leave it: saved at step 4, logged up to step 5.
What that code wrote for all steps lies beside it: `expected_pretrain.jsonl` and `expected_finetune.jsonl`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import numpy as np
from PIL import Image

_MODEL = {
    "model.resnet.width": 2,
    "model.resnet.stem_width": 2,
    "model.aspp.channels": 4,
    "model.aspp.dilations": (1, 2),
    "log_every": 1,
    "save_every": 2,
    "steps": 6,
    "optimizer.warmup_steps": 2,
    "data.source": "folder",
}
PRETRAIN = _MODEL | {"batch_size": 8, "loss.queue_size": 16, "picture_every": 0, "probe_every": 0}
FINETUNE = _MODEL | {
    "batch_size": 4,
    "data.images": "images",
    "data.labels": "labels",
    "data.split": "train",
    "data.eval_split": "val",
    "data.num_classes": 3,
    "model.num_classes": 3,
    "data.class_names": ("background", "square", "box"),
    "data.crop_size": (32, 32),
    "data.limit": 0,
    "evaluation.batch_size": 2,
    "eval_every": 2,
}
CONFIGS = {"pretrain": ("pretrain_demo", PRETRAIN), "finetune": ("finetune_demo", FINETUNE)}


def write_images(folder: pathlib.Path) -> None:
    """Write 12 pairs of image and mask, 40 x 48 pixels, as PNGs: images/{train,val}, labels/{train,val}."""
    colors = np.array([[90, 120, 160], [200, 60, 40], [60, 180, 70]])
    for number in range(12):
        rng = np.random.default_rng(number)
        mask = np.zeros((40, 48), np.uint8)
        for value in (1, 2):
            y, x = rng.integers(0, 24), rng.integers(0, 32)
            mask[y : y + 16, x : x + 16] = value
        image = np.clip(colors[mask] + rng.integers(-25, 25, (40, 48, 3)), 0, 255).astype(np.uint8)
        split = "val" if number < 2 else "train"
        for part, pixels in (("images", image), ("labels", mask)):
            path = folder / part / split / f"s{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)


def data_path(kind: str, folder: pathlib.Path) -> str:
    """Return `data.path` of a run for a folder that `write_images` wrote."""
    return str(folder / "images" / "train" if kind == "pretrain" else folder)


def make(checkout: pathlib.Path, output: pathlib.Path) -> None:
    """Write `output` with the code of a checkout."""
    work = output / "work"
    write_images(work / "data")
    for kind, (config, changes) in CONFIGS.items():
        changes = changes | {"data.path": data_path(kind, work / "data"), "keep": 9}
        command = [sys.executable, f"scripts/{kind}.py", f"--config=configs/{config}.py", f"--workdir={work / kind}"]
        command += [f"--config.{key}={value}" for key, value in changes.items()]
        environment = os.environ | {"PYTHONPATH": str(checkout), "JAX_PLATFORMS": "cpu"}
        subprocess.run(command, cwd=checkout, env=environment, check=True)
        lines = [json.loads(line) for line in (work / kind / "metrics.jsonl").read_text().splitlines()]
        plain = [{k: v for k, v in line.items() if not k.startswith(("time/", "host/"))} for line in lines]
        written = [json.dumps(line) + "\n" for line in plain]
        (output / f"expected_{kind}.jsonl").write_text("".join(written))
        kept = output / kind
        shutil.copytree(work / kind / "checkpoints" / "4", kept / "checkpoints" / "4")
        shutil.copy(work / kind / "config.json", kept / "config.json")
        (kept / "metrics.jsonl").write_text("".join(w for w, line in zip(written, plain, strict=True) if line["step"] < 6))
        with tarfile.open(output / f"{kind}.tar.xz", "w:xz") as archive:
            archive.add(kept, kind)
        shutil.rmtree(kept)
    shutil.rmtree(work)


if __name__ == "__main__":
    make(pathlib.Path(sys.argv[1]).absolute(), pathlib.Path(sys.argv[2]).absolute())
