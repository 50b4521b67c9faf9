"""`cp2 preview`: before training, and on a checkpoint."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import command_line
from PIL import Image

from configs import pretrain_demo
from cp2_jax.models import segmenter
from cp2_jax.runs import settings
from cp2_jax.runs.checkpoints import Checkpoints

TINY = {"model.resnet.width": 4, "model.resnet.stem_width": 4, "model.aspp.channels": 8, "image_size": 32}
TINY |= {"model.resnet.stage_sizes": (1, 1, 1, 1)}


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
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()
    folder = tmp_path_factory.mktemp("run")
    saver = Checkpoints(folder / "checkpoints")
    saver.save(1, dict(variables), {"kind": "pretrain", "config": settings.as_plain(config)})
    saver.close()
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n')
    return folder


@pytest.fixture
def preview(capsys):
    return functools.partial(command_line.cp2, capsys, "preview")


def size(path):
    with Image.open(path) as picture:
        assert np.asarray(picture).std() > 0
        return picture.size


def test_before_training(preview, images, tmp_path):
    config = ["--config", "pretrain:demo"]
    status, out, error = preview("--images", images, "--output", tmp_path, *config, "--count", 2)
    assert f"next: cp2 pretrain {images} WORKDIR --config " in out
    assert status == 0, error
    assert {p.name for p in tmp_path.iterdir()} == {"pairs.png", "masks.png"}
    width, height = size(tmp_path / "masks.png")
    assert width > height  # five kinds beside each other
    size(tmp_path / "pairs.png")


def test_a_trained_model(preview, images, workdir, tmp_path):
    status, _, error = preview(
        "--images", images, "--output", tmp_path, "--checkpoint", workdir, "--point", "3,20", "--count", 2
    )
    assert status == 0, error
    assert {p.name for p in tmp_path.iterdir()} == {"similarity.png", "curves.png"}
    size(tmp_path / "similarity.png")


@pytest.mark.parametrize(
    "arguments, status, message",
    [
        (["--checkpoint", "{workdir}", "--point", "40,2"], 2, r"--point: point \(y, x\) = \(40, 2\) lies outside"),
        (["--checkpoint", "{workdir}", "--point", "middle"], 2, "--point=middle: give two whole numbers"),
        (["--checkpoint", "{workdir}", "--point", "1,2,3"], 2, "--point=1,2,3: give two whole numbers"),
        (["--checkpoint", "{images}"], 1, "is a folder of images, where a run or a checkpoint is wanted"),
        (["--config.augment.mask", "circle"], 2, "augment.mask is 'circle'; it must be one of rectangle"),
        (["--config=finetune_voc"], 2, "this is a config of finetuning, where one of pretraining is needed"),
        (["--count=0"], 2, "argument --count: 0 is below 1"),
        (["--count=many"], 2, "argument --count: invalid whole number value: 'many'"),
        (["--output", "{images}/0.png"], 1, ".*/0.png: File exists"),
        (["--images", "{images}/nowhere"], 1, "folder of images .*nowhere does not exist"),
        (["--images", "{workdir}"], 1, ".* is a run, where a folder of images is wanted"),
    ],
)
def test_errors_are_one_line(preview, images, workdir, tmp_path, arguments, status, message):
    arguments = [a.format(workdir=workdir, images=images) for a in arguments]
    found, _, error = preview("--images", images, "--output", tmp_path, *arguments)
    assert found == status, error
    assert re.match(f"error: .*{message}", error) and len(error.splitlines()) == 1, error


def test_a_finetuned_run_has_no_projection(preview, images, tmp_path):
    saver = Checkpoints(tmp_path / "checkpoints")
    saver.save(1, {"params": {"backbone": {"x": np.zeros(1)}}}, {"kind": "finetune"})
    saver.close()
    status, _, error = preview(images, tmp_path / "out", "--checkpoint", tmp_path)
    assert status == 2 and "is not of a pretraining run" in error


def test_a_tfds_data_set_is_taken_for_one(preview, tmp_path):
    """As in pretraining: the demo's scenes are one, and no image files lie in it."""
    (tmp_path / "demo/1.0.0").mkdir(parents=True)
    (tmp_path / "demo/1.0.0/dataset_info.json").write_text("{}")
    status, _, error = preview(tmp_path / "demo", tmp_path / "out")
    assert status == 1 and "demo/1.0.0 cannot be opened as a TFDS data set" in error
