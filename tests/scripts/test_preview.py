"""scripts/preview.py as its user runs it: before training, and on a checkpoint."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from configs import pretrain_demo
from cp2_jax.models import segmenter
from cp2_jax.runs import settings
from cp2_jax.runs.checkpoints import Checkpoints

TINY = {"model.resnet.width": 4, "model.resnet.stem_width": 4, "model.aspp.channels": 8, "image_size": 32}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((60, 48)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run's work directory with an untrained model and two lines of metrics."""
    config = pretrain_demo.get_config()
    for name, value in TINY.items():
        config.update_from_flattened_dict({name: value})
    model = segmenter.build(config.model, top="projection", image_size=32)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    folder = tmp_path_factory.mktemp("run")
    saver = Checkpoints(folder / "checkpoints")
    saver.save(1, dict(variables), {"kind": "pretrain", "config": settings.as_plain(config)})
    saver.close()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    return folder


def preview(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "preview.py"), *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)


def size(path):
    with Image.open(path) as picture:
        assert np.asarray(picture).std() > 0
        return picture.size


def test_before_training(images, tmp_path):
    config = ["--config", ROOT / "configs" / "pretrain_demo.py"]
    done = preview("--images", images, "--output", tmp_path, *config, "--count", 2)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.png", "masks.png"}
    width, height = size(tmp_path / "masks.png")
    assert width > height  # five kinds beside each other
    size(tmp_path / "pairs.png")


def test_a_trained_model(images, workdir, tmp_path):
    done = preview("--images", images, "--output", tmp_path, "--checkpoint", workdir, "--point", "3,20", "--count", 2)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"similarity.png", "curves.png"}
    size(tmp_path / "similarity.png")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--checkpoint", "{workdir}", "--point", "40,2"], r"--point: point (y, x) = (40, 2) lies outside"),
        (["--checkpoint", "{workdir}", "--point", "middle"], "--point: "),
        (["--checkpoint", "{images}"], "no checkpoint"),
        (["--config.augment.mask", "circle"], "augment.mask is 'circle'; it must be one of rectangle"),
    ],
)
def test_errors_are_one_line(images, workdir, tmp_path, arguments, message):
    arguments = [a.format(workdir=workdir, images=images) for a in arguments]
    done = preview("--images", images, "--output", tmp_path, *arguments)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr
