"""Backgrounds from the same batch: who meets whom, on any number of devices, and what the host then reads."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiling, tiny
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cp2_jax.augment import compose
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh


def numbered(batch):
    """Crops of one pixel that tell row (first two channels) and view (third)."""
    rows, views = np.indices((batch, 2))
    return np.stack([rows % 256, rows // 256, views], axis=-1)[:, :, None, None].astype(np.uint8)


@settings(max_examples=15)  # each size compiles
@given(st.one_of(st.integers(3, 40), st.integers(1, 40).map(lambda n: 8 * n)))
def test_no_sample_meets_itself_and_every_crop_serves_once(batch):
    found = np.asarray(jax.jit(compose.in_batch_backgrounds)(numbered(batch)))[:, :, 0, 0].astype(int)
    rows, views = found[..., 0] + 256 * found[..., 1], found[..., 2]
    assert (rows != np.arange(batch)[:, None]).all()
    assert (rows[:, 0] != rows[:, 1]).all()  # two other samples
    assert sorted(zip(rows.ravel(), views.ravel(), strict=True)) == list(itertools.product(range(batch), (0, 1)))


def test_the_rule_written_out():
    """Part of a run's identity: another rule would make resumed runs other runs."""
    found = np.asarray(compose.in_batch_backgrounds(jnp.asarray(numbered(16))))[:, :, 0, 0, ::2]
    for ring, row in itertools.product((0, 8), range(8)):
        np.testing.assert_array_equal(found[ring + row], [[ring + (row + 1) % 8, 1], [ring + (row + 2) % 8, 0]])


def test_too_small_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"foreground of shape \(8, 16, 16, 3\): two crops of each image, \[batch, 2"):
        compose.in_batch_backgrounds(np.zeros((8, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="batch of 2 rows"):
        compose.in_batch_backgrounds(jnp.asarray(numbered(2)))


ON_EIGHT = """
import re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec
from cp2_jax.augment import compose
from cp2_jax.runs import mesh
assert jax.device_count() == 8
devices = mesh.make_mesh()
crops = np.random.default_rng(0).integers(0, 256, (64, 2, 4, 4, 3), np.uint8)
sharding = mesh.batch_sharding(devices)
roll = jax.jit(compose.in_batch_backgrounds, in_shardings=sharding, out_shardings=sharding)
program = roll.lower(jax.device_put(crops, sharding)).compile()
np.testing.assert_array_equal(program(jax.device_put(crops, sharding)), compose.in_batch_backgrounds(jnp.asarray(crops)))
moving = re.findall("all-gather|all-to-all|collective-permute|all-reduce", program.as_text())
assert not moving, moving
"""


def test_eight_devices_compute_the_same_and_send_nothing():
    subprocess.run(
        [sys.executable, "-c", ON_EIGHT], check=True, env=compiling.environment(8, PYTHONPATH=str(ROOT)), cwd=ROOT
    )


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"")
    return ImageFolder(tmp_path)


def test_the_host_reads_foregrounds_alone(source):
    """The same foregrounds as with independent backgrounds, row by row, replaced ones included."""
    options = dict(batch_size=4, image_size=6, seed=3)
    batches = [pretrain_dataset(source, backgrounds=b, **options) for b in ("independent", "in_batch")]
    replaced = 0
    for independent, in_batch in itertools.islice(zip(*batches, strict=True), 5):
        assert in_batch.keys() == {"foreground", "unreadable"}
        np.testing.assert_array_equal(in_batch["foreground"], independent["foreground"])
        np.testing.assert_array_equal(in_batch["unreadable"], independent["unreadable"][:, :1])
        replaced += (in_batch["unreadable"] >= 0).sum()
    assert replaced == 4  # one of five images, in four epochs
    with pytest.raises(KeyError, match="elsewhere"):
        pretrain_dataset(source, backgrounds="elsewhere", **options)


def test_the_step_pastes_onto_other_samples(monkeypatch):
    """The step's composition equals `compose_pairs` with the rolled crops as backgrounds."""
    config = tiny.toy_pretrain_config(monkeypatch)
    config.augment.update(jitter_probability=0.0, grayscale=0.0, blur=0.0)  # flips and masks are still drawn
    crops = np.random.default_rng(0).integers(0, 256, (8, 2, 32, 32, 3), np.uint8)
    losses = {}
    for backgrounds in ("in_batch", "independent"):
        config.data.backgrounds = backgrounds
        initial_state, step = pretrain_step.make_step(config, 10, 5, mesh.make_mesh())
        batch = {"foreground": crops}
        if backgrounds == "independent":
            batch["background"] = np.asarray(compose.in_batch_backgrounds(jnp.asarray(crops)))
        _, metrics = step(initial_state(), jax.tree.map(jnp.asarray, batch))
        losses[backgrounds] = float(metrics.compute()["loss"])
    assert losses["in_batch"] == losses["independent"]
