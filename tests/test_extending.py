"""docs/extending.md, done: a mask, an optimiser, a checkpoint format. (Networks: models/test_new_network.py; sources of
images: data/test_options.py.)"""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import checkpoints
from helpers.paths import ROOT

from cp2_jax import config_files
from cp2_jax.augment import compose, masks
from cp2_jax.convert import formats
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.pretraining import options as pretraining
from cp2_jax.runs import optim, rngs


@pytest.mark.parametrize("page", ["extending.md", "architecture.md"])
def test_the_pages_name_files_that_are_there(page):
    paths = re.findall(r"`((?:cp2_jax|configs|tests|docs)/[\w/.]+)`", (ROOT / "docs" / page).read_text())
    assert len(paths) > 15 and [path for path in paths if not (ROOT / path).exists()] == []


def test_the_way_of_an_image_is_at_most_seven_files():
    rows = re.findall(r"^\| (\d) \| `([\w/.]+)`", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1)) and 1 < len(rows) <= 7


def config_with(**changes):
    config = config_files.load("pretrain:demo")
    config.update_from_flattened_dict({"data.path": "photos"} | {k.replace("__", "."): v for k, v in changes.items()})
    pretraining.check(config, 1)
    return config


def left_part(key, height, width, law):
    share = jax.random.uniform(key, (), jnp.float32, *law.area)
    return jnp.broadcast_to(jnp.arange(width) < share * width, (height, width)).astype(jnp.float32)


def test_a_new_mask(monkeypatch):
    assert inspect.getsource(left_part) in (ROOT / "docs/extending.md").read_text()
    monkeypatch.setitem(masks.MASKS, "left_part", left_part)
    config = config_with(augment__mask="left_part", augment__mask_area=(0.5, 0.5), augment__flip=0.0)
    options = compose.AugmentOptions.from_config(config)
    foreground, background = jnp.zeros((2, 2, 32, 32, 3), jnp.uint8), jnp.full((2, 2, 32, 32, 3), 255, jnp.uint8)
    pair = jax.jit(compose.compose_pairs, static_argnums=3)(rngs.key(0, "augment"), foreground, background, options)
    np.testing.assert_array_equal(pair.mask_query, np.broadcast_to(np.arange(32) < 16, (2, 32, 32)))


def test_a_new_optimiser(monkeypatch):
    def lion(options, learning_rate):
        return optax.lion(learning_rate, weight_decay=options.weight_decay)

    monkeypatch.setitem(optim.OPTIMIZERS, "lion", lion)
    options = optim.OptimizerOptions.from_config(config_with(optimizer__name="lion", optimizer__weight_decay=0.0))
    made = optim.make(options, optax.constant_schedule(0.5))
    params = {"w": jnp.array([1.0, -2.0])}
    updates, _ = made.update({"w": jnp.array([3.0, -0.1])}, made.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.5, 0.5])  # Lion goes by the sign


def test_a_new_checkpoint_format(monkeypatch, tmp_path):
    mine = formats.Format("mine", "My laboratory's", ("ours.net.",), (formats.layouts.TORCHVISION,), at=(("weights",),))
    monkeypatch.setattr(formats, "FORMATS", [mine, *formats.FORMATS])
    checkpoints.save_torch(tmp_path / "a.pth", {"weights": checkpoints.under("ours.net.", checkpoints.RESNET)})
    imported = import_checkpoint(tmp_path / "a.pth")
    assert imported.meta["format"] == "mine" and imported.meta["model"]["backbone"] == "resnet"
