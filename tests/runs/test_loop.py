"""The loop: what it runs, logs, resumes and refuses; toy steps, real checkpoints."""

import ast
import time

import flax.struct
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from helpers.paths import ROOT
from helpers.toy import batch, batches, step
from helpers.toy_run import computed, interrupt_after, losses, run, saved

from cp2_jax.runs import writers
from cp2_jax.runs.loop import NonFiniteLoss, Preempted


def test_each_step_is_logged_exactly_and_the_last_state_saved(tmp_path):
    state = run(tmp_path, 10)
    assert int(state.step) == 10
    lines = computed(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert [line["loss"] for line in lines] == losses(10)
    assert saved(tmp_path) == [4, 8, 10]


def test_lines_average_the_steps_since_the_line_before(tmp_path):
    run(tmp_path, 11, log_every=3, save_every=5)
    expected = losses(11)
    lines = computed(tmp_path)
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 11]  # a saved step ends a line too
    begin = 0
    for line in lines:
        np.testing.assert_allclose(line["loss"], np.mean(expected[begin : line["step"]]), rtol=1e-6)
        assert line["last"] == float(np.float32(0.1 * (line["step"] - 1) + 1))
        begin = line["step"]


@pytest.mark.parametrize("log_every", [1, 3])
def test_stopped_and_resumed_equals_unbroken(tmp_path, log_every):
    unbroken = run(tmp_path / "unbroken", 11, log_every=log_every)
    with pytest.raises(Preempted, match="^stopped by a signal after step 6, saved; run the command again to go on$"):
        run(tmp_path / "broken", 11, log_every=log_every, on_step=[interrupt_after(6)])
    assert saved(tmp_path / "broken") == [4, 6]
    state = run(tmp_path / "broken", 11, log_every=log_every)
    assert state.total.tobytes() == unbroken.total.tobytes()
    assert computed(tmp_path / "broken") == computed(tmp_path / "unbroken")


def test_after_a_kill_the_lines_of_lost_steps_are_written_again(tmp_path):
    run(tmp_path / "unbroken", 11, log_every=3)

    def die(number, _):
        if number == 7:
            raise MemoryError  # nothing is saved any more

    with pytest.raises(MemoryError):
        run(tmp_path / "broken", 11, log_every=3, on_step=[die])
    assert saved(tmp_path / "broken") == [4] and computed(tmp_path / "broken")[-1]["step"] == 6
    run(tmp_path / "broken", 11, log_every=3)
    assert computed(tmp_path / "broken") == computed(tmp_path / "unbroken")


def test_a_finished_run_does_nothing_and_a_longer_one_goes_on(tmp_path):
    run(tmp_path, 5)
    assert int(run(tmp_path, 5, step=None, data=iter([])).step) == 5
    assert int(run(tmp_path, 7).step) == 7
    assert [line["loss"] for line in computed(tmp_path)] == losses(7)


def test_values_are_read_one_step_late(tmp_path):
    """Step t's metrics are looked at after step t + 1 is dispatched, and before step t + 2 is."""
    events = []

    @flax.struct.dataclass
    class Watched(clu_metrics.Collection):
        loss: clu_metrics.Average.from_output("loss")
        last: clu_metrics.LastValue.from_output("last")

        def compute(self):
            events.append(("read", int(self.last.compute())))
            return super().compute()

    def watched(state, number):
        events.append(("dispatch", number))
        state, _ = step(state, batch(number))
        return state, Watched.single_from_model_output(loss=state.total, last=jnp.int32(number))

    run(tmp_path, 4, step=watched, data=iter(range(1, 10)), log_every=100, save_every=100)
    reads = [("dispatch", 1), ("dispatch", 2), ("read", 1), ("dispatch", 3), ("read", 2), ("dispatch", 4), ("read", 3)]
    assert events[:7] == reads and ("read", 4) in events[7:]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(tmp_path, bad):
    data = (jnp.float32(bad) if number == 6 else batch(number) for number in range(100))
    with pytest.raises(NonFiniteLoss) as error:
        run(tmp_path, 20, data=data, log_every=5)
    assert f"the loss of step 7 is not finite (loss {bad}, last {bad})" in str(error.value)
    assert f"The last good checkpoint is that of step 4 in {tmp_path / 'checkpoints'}" in str(error.value)
    assert saved(tmp_path) == [4]


def test_a_state_with_a_loss_that_is_not_finite_is_never_saved(tmp_path):
    data = (jnp.float32("nan") if number == 3 else batch(number) for number in range(100))
    with pytest.raises(NonFiniteLoss, match="the loss of step 4 .*checkpoint is that of step 3"):
        run(tmp_path, 20, data=data, save_every=1)
    assert saved(tmp_path) == [1, 2, 3]


def test_neither_when_it_is_the_last_or_a_signal_came(tmp_path):
    def data():
        return (jnp.float32("nan") if number == 2 else batch(number) for number in range(100))

    with pytest.raises(NonFiniteLoss, match="checkpoint is that of step None"):
        run(tmp_path / "last", 3, data=data())
    with pytest.raises(NonFiniteLoss):
        run(tmp_path / "signal", 9, data=data(), on_step=[interrupt_after(3)])
    assert saved(tmp_path / "last") == saved(tmp_path / "signal") == []


def test_a_gradient_that_is_not_finite(tmp_path):
    """The loss is finite still, the new parameters are not: such a state must not become the last good one."""

    @flax.struct.dataclass
    class WithGradient(clu_metrics.Collection):
        loss: clu_metrics.Average.from_output("loss")
        gradient_norm: clu_metrics.Average.from_output("gradient_norm")

    def bad_gradient(state, number):
        state, _ = step(state, number)
        norm = jnp.where(state.step == 4, jnp.inf, 1.0)
        return state, WithGradient.single_from_model_output(loss=state.total, gradient_norm=norm)

    with pytest.raises(NonFiniteLoss, match="the gradient_norm of step 4 is not finite .*gradient_norm inf"):
        run(tmp_path, 10, step=bad_gradient)
    assert saved(tmp_path) == []


def test_errors_of_the_input_come_through(tmp_path):
    run(tmp_path / "whole")

    def broken():
        yield batch(0)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path / "broken", data=broken())
    assert saved(tmp_path / "broken") == [1]  # what has been computed is kept, though save_every is 4
    assert int(run(tmp_path / "broken").step) == 10
    assert computed(tmp_path / "broken") == computed(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="the batches ended after step 3, before the run did"):
        run(tmp_path / "short", data=iter([batch(0)] * 3))


def test_timings_and_extra_metrics(tmp_path):
    def slow():
        for item in batches():
            time.sleep(0.02)
            yield item

    run(tmp_path, 20, data=slow(), log_every=10, save_every=100, extra_metrics=lambda: {"unreadable_images": 3})
    line = writers.read_metrics(tmp_path / "metrics.jsonl")[1]
    assert line["unreadable_images"] == 3
    assert 0.2 <= line["time/input_wait_seconds"] <= 10 * line["time/seconds_per_step"]
    assert 0.5 < line["time/input_wait_share"] <= 1
    assert line["time/images_per_second"] == pytest.approx(8 / line["time/seconds_per_step"])
    assert line["host/memory_mb"] > 50 and line["time/eta_seconds"] == pytest.approx(0)


def test_the_loop_is_short_and_knows_no_task():
    source = (ROOT / "cp2_jax" / "runs" / "loop.py").read_text()
    assert len(source.splitlines()) <= 150
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = {node.module for node in imports if node.module.startswith("cp2_jax.runs.")}
    ours |= {f"{node.module}.{name.name}" for node in imports if node.module == "cp2_jax.runs" for name in node.names}
    assert ours == {f"cp2_jax.runs.{name}" for name in ("checkpoints", "leaving", "metrics_log", "preemption", "writers")}
    assert all(node.module.partition(".")[0] != "cp2_jax" or node.module.startswith("cp2_jax.runs") for node in imports)
