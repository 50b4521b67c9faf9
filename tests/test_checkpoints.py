"""Checkpoints: round trips, damage, other models, other topologies, and kills at random moments."""

import logging
import pathlib
import random
import subprocess
import sys
import time
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cp2_jax import checkpoints
from cp2_jax.checkpoints import CheckpointError, Checkpoints

META = {"kind": "pretrain", "config": {"seed": 1, "crop": (1, 2)}}


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    batch_stats: Any
    opt_state: Any


def make_state(step, seed=0):
    params = {"backbone": {"conv1": {"kernel": jax.random.normal(jax.random.key(seed), (3, 4))}}}
    return State(jnp.int32(step), params, {"bn1": {"mean": jnp.ones(4)}}, optax.adamw(1e-3).init(params))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def save_steps(folder, steps, keep=3):
    saver = Checkpoints(folder, keep=keep)
    for step in steps:
        saver.save(step, make_state(step, seed=step), META | {"iterator": {"next_batch": step}})
    saver.close()


def test_round_trip_of_state_and_meta(tmp_path):
    save_steps(tmp_path, [1, 2])
    saver = Checkpoints(tmp_path)
    state, meta = saver.restore(make_state(0))
    assert_same(state, make_state(2, seed=2))
    assert jax.tree.structure(state) == jax.tree.structure(make_state(0))
    assert meta == {"kind": "pretrain", "config": {"seed": 1, "crop": [1, 2]}, "iterator": {"next_batch": 2}}
    assert saver.latest_step() == 2


def test_only_the_newest_are_kept_and_nothing_is_found_in_an_empty_folder(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(make_state(0)) is None
    save_steps(tmp_path, [1, 2, 3, 4], keep=2)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["3", "4"]


def damage(step: pathlib.Path, how: str):
    files = sorted((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if how == "truncated":
        files[-1].write_bytes(files[-1].read_bytes()[:-7])
    elif how == "flipped":
        data = bytearray(files[-1].read_bytes())
        data[len(data) // 2] ^= 1
        files[-1].write_bytes(data)
    elif how == "missing":
        files[-1].unlink()
    else:
        for file in files:
            file.write_bytes(b"")


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "emptied"])
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_used(tmp_path, how, caplog):
    save_steps(tmp_path, [1, 2])
    damage(tmp_path / "2", how)
    saver = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING):
        state, _ = saver.restore(make_state(0))
    assert_same(state, make_state(1, seed=1))
    assert f"{tmp_path / '2'} is damaged" in caplog.text
    assert (tmp_path / "2.damaged").is_dir() and not (tmp_path / "2").exists()
    # The step that was lost can be saved again.
    saver.save(2, make_state(2, seed=9), META)
    saver.wait()
    assert_same(saver.restore(make_state(0))[0], make_state(2, seed=9))


def test_damage_is_found_without_checksums_too(tmp_path):
    """A kill between the save and its checksums leaves a step that only Orbax can judge."""
    save_steps(tmp_path, [1, 2])
    damage(tmp_path / "2", "emptied")
    saver = Checkpoints(tmp_path)
    (tmp_path / "checksums" / "2.json").unlink()
    assert_same(saver.restore(make_state(0))[0], make_state(1, seed=1))


def test_when_all_are_damaged_it_says_so_and_deletes_nothing(tmp_path):
    save_steps(tmp_path, [1, 2])
    for step in "12":
        damage(tmp_path / step, "truncated")
    with pytest.raises(CheckpointError, match="all checkpoints in .* are damaged"):
        Checkpoints(tmp_path).restore(make_state(0))
    assert (tmp_path / "1.damaged").is_dir() and (tmp_path / "2.damaged").is_dir()


def test_another_model_is_refused_with_the_differences(tmp_path):
    save_steps(tmp_path, [1])
    other = make_state(0).replace(params={"backbone": {"conv1": {"kernel": jnp.zeros((3, 5))}, "new": jnp.zeros(2)}})
    with pytest.raises(CheckpointError) as refused:
        Checkpoints(tmp_path).restore(other)
    assert "params/backbone/conv1/kernel: checkpoint (3, 4), this run (3, 5)" in str(refused.value)
    assert "params/backbone/new: checkpoint absent, this run (2,)" in str(refused.value)
    assert (tmp_path / "1").is_dir()


@pytest.mark.parametrize("inside", ["", "checkpoints", "checkpoints/2"])
def test_reading_needs_no_classes_and_finds_the_newest(tmp_path, inside):
    save_steps(tmp_path / "checkpoints", [1, 2])
    variables, meta = checkpoints.read_variables(tmp_path / inside)
    assert meta["iterator"] == {"next_batch": 2}
    assert isinstance(variables["params"]["backbone"]["conv1"]["kernel"], np.ndarray)
    assert_same(variables["params"], make_state(2, seed=2).params)
    assert_same(variables["batch_stats"], make_state(2).batch_stats)


def test_reading_skips_a_damaged_newest_and_says_when_there_is_none(tmp_path):
    save_steps(tmp_path, [1, 2])
    damage(tmp_path / "2", "flipped")
    assert checkpoints.read(tmp_path)[1]["iterator"] == {"next_batch": 1}
    with pytest.raises(CheckpointError, match="no checkpoint at .*nowhere"):
        checkpoints.read(tmp_path / "nowhere")


def test_converted_variables_round_trip(tmp_path):
    variables = {"params": {"backbone": {"w": jnp.arange(3.0)}}, "batch_stats": {}}
    checkpoints.write_variables(tmp_path / "converted", variables, {"kind": "converted"})
    read, meta = checkpoints.read_variables(tmp_path / "converted")
    assert_same(read["params"], variables["params"])
    assert meta["kind"] == "converted" and read["batch_stats"] == {}


SAVER = """
import sys, jax, jax.numpy as jnp
jax.config.update("jax_platforms", "cpu")
from cp2_jax.checkpoints import Checkpoints
saver = Checkpoints(sys.argv[1], keep=1000)
start = (saver.latest_step() or 0) + 1
for step in range(start, start + 1000):
    state = {"params": {"w": jnp.full((64, 1024), step, jnp.float32)}, "step": jnp.int32(step)}
    saver.save(step, state, {"iterator": {"next_batch": step}})
    saver.wait()
    print(step, flush=True)
"""


def test_ten_kills_lose_no_finished_checkpoint(tmp_path):
    """kill -9 while saves run back to back: all that were announced as finished restore, and nothing half-written does."""
    rng, finished = random.Random(0), set()
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", SAVER, tmp_path], stdout=subprocess.PIPE, text=True,
                                   cwd=pathlib.Path(__file__).parents[1], stderr=subprocess.DEVNULL)  # fmt: skip
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        process.kill()
        finished |= {int(line) for line in process.communicate()[0].split() if line.isdigit()}
    saver = Checkpoints(tmp_path, keep=1000)
    like = {"params": {"w": jnp.zeros((64, 1024))}, "step": jnp.int32(0)}
    state, meta = saver.restore(like)
    assert int(state["step"]) >= max(finished) and meta["iterator"]["next_batch"] == int(state["step"])
    assert float(state["params"]["w"].min()) == float(state["params"]["w"].max()) == int(state["step"])
    for step in finished:
        assert int(checkpoints.read(tmp_path / str(step))[0]["step"]) == step
