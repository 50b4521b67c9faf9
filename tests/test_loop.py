"""The loop with a toy task: saving, resuming, stopping, and looking at every loss."""

import os
import signal
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

from cp2_jax import loop, writers
from cp2_jax.checkpoints import Checkpoints


@flax.struct.dataclass
class State:
    step: Any
    weight: Any


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    loss: clu_metrics.Average.from_output("loss")


@jax.jit
def toy_step(state, batch):
    loss = jnp.sin(state.weight * batch)
    return State(state.step + 1, state.weight * 0.9 + loss), Metrics.single_from_model_output(loss=loss)


def batches_from(start):
    while True:
        yield jnp.float32(start % 7)
        start += 1


def run(workdir, steps=10, step=toy_step, batches=batches_from, start=None, **options):
    saver = Checkpoints(workdir / "checkpoints")
    state = State(jnp.int32(0), jnp.float32(1))
    restored = saver.restore(state)
    state = restored[0] if restored else state
    begin = int(state.step)
    options = dict(save_every=4, log_every=1) | options
    try:
        with writers.Writer(workdir, steps, begin) as writer:
            return loop.fit(step, state, batches(begin), total_steps=steps, writer=writer, checkpoints=saver,
                            meta={"kind": "toy"}, samples_per_step=2, **options)  # fmt: skip
    finally:
        saver.close()


def losses(workdir):
    return [(line["step"], line["loss"]) for line in writers.read_metrics(workdir / "metrics.jsonl")]


def test_every_step_is_logged_and_the_last_state_saved(tmp_path):
    state = run(tmp_path, extra_metrics=lambda: {"unreadable_images": 3})
    assert [step for step, _ in losses(tmp_path)] == list(range(1, 11))
    line = writers.read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert line["unreadable_images"] == 3
    assert {"time/images_per_second", "time/input_wait_share", "host/peak_memory_mb"} <= line.keys()
    saved, meta = Checkpoints(tmp_path / "checkpoints").restore(state)
    assert int(saved.step) == 10 and float(saved.weight) == float(state.weight)
    assert meta == {"kind": "toy", "iterator": {"next_batch": 10}}


def test_a_line_averages_the_steps_since_the_last(tmp_path):
    run(tmp_path / "each")
    run(tmp_path / "some", log_every=4)
    each = dict(losses(tmp_path / "each"))
    some = losses(tmp_path / "some")
    assert [step for step, _ in some] == [4, 8, 10]
    np.testing.assert_allclose(some[1][1], np.mean([each[s] for s in (5, 6, 7, 8)]), rtol=1e-6)


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_resumed_run_is_the_same(tmp_path, sent):
    run(tmp_path / "unbroken")

    def stop_at_six(number, _state):
        if number == 6:
            os.kill(os.getpid(), sent)

    before = signal.getsignal(sent)
    with pytest.raises(loop.Preempted, match="after step 6"):
        run(tmp_path / "broken", on_step=[stop_at_six])
    assert signal.getsignal(sent) is before
    assert losses(tmp_path / "broken")[-1][0] == 6
    state = run(tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    assert int(state.step) == 10


def test_a_crash_between_saves_repeats_steps_but_not_lines(tmp_path):
    run(tmp_path / "unbroken")

    def crash(number, _state):
        if number == 6:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        run(tmp_path / "broken", on_step=[crash])
    run(tmp_path / "broken")
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, bad):
    def step(state, batch):
        state, metrics = toy_step(state, batch)
        loss = jnp.where(state.step >= 7, bad, metrics.loss.total)
        return state, Metrics.single_from_model_output(loss=loss)

    with pytest.raises(loop.NonFiniteLoss, match=r"step 7 is not finite \(loss .*last good checkpoint is that of step 4"):
        run(tmp_path, step=step)
    assert Checkpoints(tmp_path / "checkpoints").latest_step() == 4


def test_a_run_that_is_finished_does_nothing(tmp_path):
    run(tmp_path)
    before = losses(tmp_path)
    assert int(run(tmp_path).step) == 10
    assert losses(tmp_path) == before


def test_an_error_in_the_input_surfaces(tmp_path):
    def broken(start):
        yield jnp.float32(0)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path, batches=broken)
