"""Checkpoints: what is saved comes back, as it was, wherever it is wanted."""

import json
import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import compiling
from helpers.paths import ROOT
from helpers.states import META, assert_equal, make_state, restore, save_steps, truncate
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint._src.multihost import multihost

from cp2_jax.runs import checkpoints
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_round_trip(tmp_path, optimizer, batch_norm):
    saved = make_state(5, optimizer, batch_norm=batch_norm)
    saver = Checkpoints(tmp_path)
    assert saver.latest_step() is None and saver.restore(saved) is None
    saver.save(5, saved, META)
    saver.wait()
    assert saver.latest_step() == 5
    state, meta = saver.restore(make_state(0, optimizer, batch_norm=batch_norm))
    saver.close()
    assert_equal(state, saved)
    assert meta == META


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    saver = Checkpoints(tmp_path)
    advance = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    state = {"x": jnp.zeros((512, 512))}
    for step in range(1, 6):
        state = advance(state)
        saver.save(step, state, {})
        for _ in range(3):  # reuses the buffers while the save is under way
            state = advance(state)
        restored, _ = saver.restore({"x": jnp.zeros((512, 512))}) if saver.wait() is None else None
        assert np.all(np.asarray(restored["x"]) == 4 * (step - 1) + 1)
    saver.close()


def test_keeps_the_newest(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 10, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "3"]


def test_a_step_saved_twice_stays_and_an_earlier_one_is_refused(tmp_path):
    saver = Checkpoints(tmp_path)
    saver.save(7, make_state(7), META)
    saver.save(7, make_state(8), META)
    with pytest.raises(CheckpointError, match="step 3 was not saved: .* holds step 7"):
        saver.save(3, make_state(3), META)
    assert_equal(saver.restore(make_state(0))[0], make_state(7))
    saver.close()


def test_restores_onto_another_topology(tmp_path):
    """Saved by one device; restored on four, the queue split and the rest as `shard_state` splits it: each device holds its
    part. What these save is restored on two that split it, and on one."""
    saver = Checkpoints(tmp_path)
    saver.save(4, make_state(4, width=8), META)
    saver.close()
    script = f"""
import jax, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from jax.sharding import Mesh, PartitionSpec as P
from helpers import states as t
from cp2_jax.pretraining.step import state_sharding
from cp2_jax.runs.checkpoints import Checkpoints

def restored(devices):
    like = jax.eval_shape(lambda: t.make_state(0, width=8))
    places = state_sharding(Mesh(jax.devices()[:devices], "data"), like, split=True)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), like, places)
    state, _ = t.restore({str(tmp_path)!r}, like)
    for tree in (state.params, state.key_params, state.opt_state[1][0].trace):
        kernel = tree["backbone"]["conv1"]["kernel"]
        assert kernel.sharding.spec == P(None, None, None, "data"), kernel.sharding
        assert kernel.addressable_shards[1].data.shape == (3, 3, 2, 8 // devices)
    assert state.queue.sharding.spec == P(None, "data")
    assert state.queue.addressable_shards[1].data.shape == (2, 8 // devices, 4)
    return state

state = restored(4)
t.assert_equal(state, t.make_state(4, width=8))
saver = Checkpoints({str(tmp_path)!r})
saver.save(5, state.replace(step=state.step + 1), t.META)
saver.close()
t.assert_equal(restored(2), restored(4))
"""
    done = subprocess.run([sys.executable, "-c", script], env=compiling.environment(4), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state, _ = restore(tmp_path, make_state(0, width=8))
    assert_equal(state, make_state(4, width=8).replace(step=jnp.int32(5)))


def test_restores_to_the_placement_and_dtype_of_the_target(tmp_path):
    save_steps(tmp_path, 4)
    placement = NamedSharding(Mesh(jax.devices()[:1], "data"), PartitionSpec("data"))
    like = make_state(0)
    like = like.replace(queue=jax.ShapeDtypeStruct((2, 8, 4), jnp.bfloat16, sharding=placement))
    queue = restore(tmp_path, like)[0].queue
    assert queue.sharding == placement
    np.testing.assert_array_equal(queue, make_state(4).queue.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", ["lr[0.002]", "a*b?", "[", "{x} ü %20 'q' \"", "-rf ~"])
def test_any_name_of_a_directory(tmp_path, name):
    """Orbax expands wildcards in the paths that it is given: a run called lr[0.002] could not be restored."""
    save_steps(tmp_path / name, 3)
    save_steps(tmp_path / name, 4)  # opened again
    assert_equal(restore(tmp_path / name)[0], make_state(4))
    np.testing.assert_array_equal(checkpoints.read(tmp_path / name)[0]["queue"], make_state(4).queue)
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["3", "4"]


def test_another_model_gives_a_readable_difference(tmp_path):
    save_steps(tmp_path, 1)
    with pytest.raises(CheckpointError) as error:
        restore(tmp_path, make_state(0, width=5))
    assert "params/backbone/conv1/kernel: checkpoint (3, 3, 2, 3), this run (3, 3, 2, 5)" in str(error.value)
    assert "Use the config it was made with" in str(error.value)
    with pytest.raises(CheckpointError, match=r"batch_stats/backbone/bn1/mean: checkpoint \(3,\), this run absent"):
        restore(tmp_path, make_state(0, batch_norm=False))
    with pytest.raises(CheckpointError, match="opt_state.*/nu/.*: checkpoint absent"):
        restore(tmp_path, make_state(0, optimizer="adamw"))
    assert [p.name for p in tmp_path.iterdir()] == ["1"]


def test_read_needs_no_classes(tmp_path):
    save_steps(tmp_path / "checkpoints", 1, 2)
    expected = make_state(2)
    for path in (tmp_path, tmp_path / "checkpoints", tmp_path / "checkpoints" / "2"):
        tree, meta = checkpoints.read(str(path))
        assert meta == META
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(tree))
        for name in ("step", "params", "batch_stats", "key_params", "key_batch_stats", "queue"):
            assert_equal(tree[name], getattr(expected, name))
        trace = tree["opt_state"][1][0]["trace"]
        np.testing.assert_array_equal(
            trace["backbone"]["conv1"]["kernel"], expected.opt_state[1][0].trace["backbone"]["conv1"]["kernel"]
        )
    assert int(checkpoints.read(tmp_path / "checkpoints" / "1")[0]["step"]) == 1
    truncate(tmp_path / "checkpoints" / "2")
    assert int(checkpoints.read(tmp_path)[0]["step"]) == 1
    assert (tmp_path / "checkpoints" / "2").exists()  # who only reads moves nothing


def test_read_says_what_it_looked_for(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=f"no checkpoint at {path} "):
            checkpoints.read(path)


def test_variables(tmp_path):
    save_steps(tmp_path / "run" / "checkpoints", 3)
    variables, meta = checkpoints.read_variables(tmp_path / "run")
    assert_equal(variables, {"params": make_state(3).params, "batch_stats": make_state(3).batch_stats})
    assert meta["kind"] == "pretrain"
    checkpoints.write_variables(tmp_path / "converted", variables, {"kind": "converted", "source": "moco"})
    again, meta = checkpoints.read_variables(tmp_path / "converted")
    assert_equal(again, variables)
    assert meta == {"kind": "converted", "source": "moco"}
    with pytest.raises(CheckpointError, match="converted holds a checkpoint already"):
        checkpoints.write_variables(tmp_path / "converted", variables, {})
    saver = Checkpoints(tmp_path / "other")
    saver.save(1, {"weights": jnp.ones(2)}, {})
    saver.close()
    with pytest.raises(CheckpointError, match="holds no parameters, only weights"):
        checkpoints.read_variables(tmp_path / "other")


def test_meta_must_be_json(tmp_path):
    saver = Checkpoints(tmp_path)
    with pytest.raises(TypeError, match="not JSON serializable"):
        saver.save(1, make_state(1), {"config": object()})
    saver.save(1, make_state(1), {"shape": (1, 2)})
    saver.wait()
    assert saver.restore(make_state(0))[1] == {"shape": [1, 2]}
    assert json.loads((tmp_path / "1" / "meta" / "metadata").read_text()) == {"shape": [1, 2]}
    saver.close()


def test_how_processes_agree_on_a_last_step_is_not_shown(tmp_path, caplog, monkeypatch):
    """Orbax logs it several times for each process that a signal stops; other warnings are shown."""
    monkeypatch.setattr("orbax.checkpoint._src.multihost.multihost.process_index", lambda: 0)
    Checkpoints(tmp_path).close()
    multihost._maybe_log_reached_preemption(3, True)
    logging.getLogger("absl").warning("a disk is slow")
    assert caplog.messages == ["a disk is slow"]
