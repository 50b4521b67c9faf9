"""The loop: what it runs, saves, logs and refuses; toy steps, real checkpoints and signals."""

import ast
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics
from helpers.paths import ROOT
from helpers.toy import State, batch, batches, step

from cp2_jax.runs import loop, preemption, writers
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints
from cp2_jax.runs.loop import NonFiniteLoss, Preempted
from cp2_jax.runs.writers import Writer


def run(workdir, total=10, *, step=step, data=None, save_every=4, log_every=1, keep=20, **options):
    """Start, or resume what is there, as the entry points do."""
    saver = Checkpoints(workdir / "checkpoints", keep)
    state = State(step=jnp.int32(0), total=jnp.float32(0))
    if restored := saver.restore(state):
        state, meta = restored
        assert meta == {"kind": "toy", "iterator": {"next_batch": int(state.step)}}
    start = int(state.step)
    try:
        with Writer(workdir, total, start) as writer:
            return loop.fit(
                step,
                state,
                batches(start) if data is None else data,
                total_steps=total,
                writer=writer,
                checkpoints=saver,
                meta={"kind": "toy"},
                save_every=save_every,
                log_every=log_every,
                samples_per_step=8,
                **options,
            )
    finally:
        saver.close()


def computed(workdir):
    lines = writers.read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.startswith(writers.VARYING)} for line in lines]


def saved(workdir):
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())


def interrupt_after(number, signum=signal.SIGTERM):
    return lambda done, _: os.kill(os.getpid(), signum) if done == number else None


def losses(count):
    total, expected = np.float32(0), []
    for number in range(count):
        total = total + np.float32(0.1 * number + 1)
        expected.append(float(total / np.float32(3)))
    return expected


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


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_after_the_step_and_handlers_come_back(tmp_path, signum):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Preempted):
        run(tmp_path, 10, on_step=[interrupt_after(3, signum)])
    assert saved(tmp_path) == [3]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_second_interrupt_is_immediate(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def twice(number, _):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
            pytest.fail("not interrupted")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 10, on_step=[twice])
    assert saved(tmp_path) == [] and signal.getsignal(signal.SIGINT) == before


def test_a_signal_during_the_last_step_is_no_preemption(tmp_path):
    assert int(run(tmp_path, 5, on_step=[interrupt_after(5)]).step) == 5
    assert saved(tmp_path) == [4, 5]


def test_an_interrupt_that_breaks_the_input_still_saves(tmp_path):
    """Ctrl-C goes to the whole process group, decoding processes included."""

    def data():
        yield from (batch(number) for number in range(5))
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("a worker died")

    with pytest.raises(Preempted, match="after step 5"):
        run(tmp_path, 10, data=data())
    assert saved(tmp_path) == [4, 5]


def test_errors_of_the_input_come_through(tmp_path):
    def broken():
        yield batch(0)
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        run(tmp_path / "broken", data=broken())
    with pytest.raises(RuntimeError, match="the batches ended after step 3, before the run did"):
        run(tmp_path / "short", data=iter([batch(0)] * 3))


def test_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, 3)))
    thread.start()
    thread.join()
    assert int(results[0].step) == 3


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


def test_a_failed_save_stops_the_run(tmp_path, monkeypatch):
    saver = Checkpoints(tmp_path / "checkpoints")

    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(saver._manager, "wait_until_finished", fail)
    state = State(step=jnp.int32(0), total=jnp.float32(0))
    with Writer(tmp_path, 10) as writer, pytest.raises(CheckpointError, match="failed: the disk is full. There is none"):
        loop.fit(
            step,
            state,
            batches(),
            total_steps=10,
            writer=writer,
            checkpoints=saver,
            meta={},
            save_every=2,
            log_every=1,
            samples_per_step=1,
        )


@pytest.mark.parametrize("error", [ValueError("a bad mask"), KeyboardInterrupt(), SystemExit(3)])
def test_whatever_is_raised_the_save_under_way_is_completed(tmp_path, monkeypatch, error):
    seal = Checkpoints._seal

    def slowly(self):
        time.sleep(0.5)
        seal(self)

    def fail(number, _):
        if number == 5:
            raise error

    monkeypatch.setattr(Checkpoints, "_seal", slowly)
    monkeypatch.setattr(Checkpoints, "close", lambda self: None)  # which waits, too
    with pytest.raises(type(error)):
        run(tmp_path, on_step=[fail])
    assert saved(tmp_path) == [4]
    assert int(run(tmp_path, 6, on_step=()).step) == 6


def test_an_error_and_a_failed_save_show_the_error(tmp_path, monkeypatch, caplog):
    def seal(self):
        raise OSError("No space left on device")

    def fail(number, _):
        if number == 5:
            raise ValueError("a bad mask")

    monkeypatch.setattr(Checkpoints, "_seal", seal)
    with pytest.raises(ValueError, match="a bad mask"):
        run(tmp_path, on_step=[fail])
    assert saved(tmp_path) == []
    assert "saving step 4 to" in caplog.text and "the disk is full" in caplog.text


def test_a_full_disk_is_told_once(tmp_path, monkeypatch, caplog):
    """The metrics cannot be written, nor can the checkpoint: one error, which says what is left."""

    def seal(self):
        raise OSError("No space left on device")

    def fail(number, _):
        if number == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Checkpoints, "_seal", seal)
    with pytest.raises(CheckpointError, match="failed: the disk is full. There is none before it"):
        run(tmp_path, on_step=[fail])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


_TWO_PROCESSES = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
import jax
index, port, workdir = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{{port}}", 2, index)
import os, pathlib, signal, time
import jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from helpers import toy as t
from cp2_jax.runs import loop
from cp2_jax.runs.checkpoints import Checkpoints
from cp2_jax.runs.loop import Preempted
from cp2_jax.runs.writers import Writer
mesh = Mesh(jax.devices(), "data")
everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
@jax.jit
def step(state, batch):
    state = t.State(step=state.step + 1, total=state.total + jnp.sum(batch))
    return state, t.Metrics.single_from_model_output(loss=state.total, last=jnp.max(batch))
place = lambda x, s: jax.make_array_from_callback(np.shape(x), s, lambda i: np.asarray(x)[i])
state = t.State(step=place(np.int32(0), everywhere), total=place(np.float32(0), everywhere))
saver = Checkpoints(pathlib.Path(workdir) / "checkpoints", 3)
if restored := saver.restore(state):
    state, meta = restored
start = int(state.step)
batches = (place(np.arange(4, dtype=np.float32) + n, split) for n in range(start, 10**6))
def on_step(number, state):
    time.sleep(0.02)
    if number == 7 and index == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # one process alone is told
total = 10**6 if start == 0 else start + 3
try:
    with Writer(workdir, total, start) as writer:
        state = loop.fit(step, state, batches, total_steps=total, writer=writer, checkpoints=saver, meta={{}},
                           save_every=5, log_every=1, samples_per_step=4, on_step=[on_step])
    print("ended", start, int(state.step), float(state.total))
except Preempted:
    print("preempted", saver.latest_step())
saver.close()
"""


def test_two_processes_stop_after_the_same_step_and_resume(tmp_path):
    with subprocess.Popen(["true"]) as nothing:
        port = str(20000 + nothing.pid % 20000)

    def both():
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", _TWO_PROCESSES]
        processes = [
            subprocess.Popen(
                [*command, str(index), port, str(tmp_path)],
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            for index in range(2)
        ]
        outputs = [process.communicate(timeout=120) for process in processes]
        assert all(process.returncode == 0 for process in processes), outputs
        return [[line for line in out.splitlines() if line.startswith(("ended", "preempted"))] for out, _ in outputs]

    first = both()
    stopped = int(first[0][0].split()[1])
    assert first == [[f"preempted {stopped}"]] * 2 and 7 <= stopped < 1000
    # Those two did one checkpoint and one log; now the newest checkpoint is damaged, which both must agree on.
    assert [line["step"] for line in computed(tmp_path)] == list(range(1, stopped + 1))
    newest = tmp_path / "checkpoints" / str(stopped)
    (newest / "meta" / "metadata").write_text("{}")
    before = max(s for s in (int(p.name) for p in newest.parent.iterdir()) if s < stopped)
    end = before + 3
    total = float(sum(4 * n + 6 for n in range(end)))
    assert both() == [[f"ended {before} {end} {total}"]] * 2
    assert (tmp_path / "checkpoints" / f"{stopped}.damaged").exists()


def test_the_loop_is_short_and_knows_no_task():
    source = (ROOT / "cp2_jax" / "runs" / "loop.py").read_text()
    assert len(source.splitlines()) <= 150
    modules = [node.module for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = {module for module in modules if module.startswith("cp2_jax")}
    assert ours == {f"cp2_jax.runs.{name}" for name in ("checkpoints", "metrics_log", "preemption", "writers")}


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("agreed_on", [None, 1, 5])
def test_a_signal_while_a_resumed_run_of_several_processes_starts(monkeypatch, agreed_on, others):
    """JAX's service agrees on step 1 if the signal comes before any step was asked for; a resumed run is past it."""
    service = SimpleNamespace(
        reached_preemption_sync_point=lambda step: step == agreed_on,
        process_allgather=lambda mine: np.array([mine, others]),
    )
    monkeypatch.setattr(preemption, "multihost_utils", service)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with preemption.stop_requests() as stop_requested:
        assert stop_requested(3) == (agreed_on == 1 or others)
        assert [stop_requested(step) for step in (4, 5, 6)] == [False, agreed_on == 5, False]
    with preemption.stop_requests() as stop_requested:  # from the start, step 1 is still to come
        assert [stop_requested(step) for step in (0, 1)] == [False, agreed_on == 1]
