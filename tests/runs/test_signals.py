"""Signals and processes: a run stops after a whole step, saves, and goes on as if nothing had been."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import pytest
from helpers.paths import ROOT
from helpers.toy import batch
from helpers.toy_run import computed, interrupt_after, run, saved

from cp2_jax.runs import preemption
from cp2_jax.runs.loop import Preempted


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_after_the_step_and_handlers_come_back(tmp_path, signum):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Preempted):
        run(tmp_path, 10, on_step=[interrupt_after(3, signum)])
    assert saved(tmp_path) == [3]
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


def test_ctrl_c_is_answered_on_a_terminal(tmp_path, monkeypatch):
    """A step may take long on a CPU, and the state is saved after it."""
    seen, shown = os.openpty()
    with os.fdopen(shown, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(Preempted):
            run(tmp_path, 10, on_step=[interrupt_after(2, signal.SIGINT)])
        monkeypatch.undo()
        assert b"stopping when this step is done and saved" in os.read(seen, 10_000)
    os.close(seen)


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


def test_outside_the_main_thread(tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, 3)))
    thread.start()
    thread.join()
    assert int(results[0].step) == 3


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


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("agreed_on", [None, 1, 5])
def test_a_signal_while_a_resumed_run_of_several_processes_starts(monkeypatch, agreed_on, others):
    """JAX's service agrees on step 1 if the signal comes before any step was asked for; a resumed run is past it."""
    service = SimpleNamespace(reached_preemption_sync_point=lambda step: step == agreed_on)
    monkeypatch.setattr(preemption, "multihost_utils", service)
    monkeypatch.setattr(preemption.distributed, "any_of", lambda mine: mine or others)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with preemption.stop_requests() as stop_requested:
        assert stop_requested(3) == (agreed_on == 1 or others)
        assert [stop_requested(step) for step in (4, 5, 6)] == [False, agreed_on == 5, False]
    with preemption.stop_requests() as stop_requested:  # from the start, step 1 is still to come
        assert [stop_requested(step) for step in (0, 1)] == [False, agreed_on == 1]
