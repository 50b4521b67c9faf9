"""What a process says when it or another one ends; the connection between them is test_peers'."""

import ctypes
import os
import queue
import signal
import time

import pytest
from helpers.toy import batch
from helpers.toy_run import run, saved

from cp2_jax.cli import errors
from cp2_jax.data.errors import UnreadableImage
from cp2_jax.runs import leaving, peers


class Answers:
    """`Peers` that give one answer from a certain step on."""

    def __init__(self, answer, step):
        self.answer, self.step, self.asked = answer, step, []

    def agree(self, problem):
        self.asked.append(problem)
        return self.answer if len(self.asked) > self.step else None

    def stopped(self, seconds):
        return self.answer if isinstance(self.answer, peers.Stop) else None


def test_an_error_of_another_process_is_raised_once_the_state_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(leaving, "_peers", Answers((3, "a.png: it is empty"), 5))
    with pytest.raises(leaving.Stopped, match="^process 3 of this run stopped after step 5: a.png: it is empty$"):
        run(tmp_path, 10)
    assert saved(tmp_path) == [4, 5]


def test_an_own_error_is_told_and_raised_as_it_is(tmp_path, monkeypatch):
    def data():
        yield from (batch(number) for number in range(5))
        raise UnreadableImage("a.png", "it is empty")

    answers = Answers((0, "what another one says"), 5)
    monkeypatch.setattr(leaving, "_peers", answers)
    with pytest.raises(UnreadableImage):
        run(tmp_path, 10, data=data())
    assert saved(tmp_path) == [4, 5] and answers.asked == [None] * 5 + ["a.png: it is empty"]


def test_what_only_some_processes_have_is_not_saved(tmp_path, monkeypatch):
    lost = peers.Stop(1, "was lost (its connection was closed)", 75, lost=True)
    monkeypatch.setattr(leaving, "_peers", Answers(lost, 5))
    with pytest.raises(leaving.Lost), leaving.resumable(lambda: 4):
        run(tmp_path, 10)
    assert saved(tmp_path) == [4]


@pytest.mark.parametrize(
    "latest, end",
    [
        (lambda: 7, " to resume from step 7"),
        (lambda: None, " to begin anew (nothing was saved yet)"),
        (lambda: time.sleep(1), " to resume from the last checkpoint"),  # the disk is gone
        (None, ""),  # an evaluation, for instance
    ],
)
def test_the_line_on_a_lost_process_says_from_where_the_run_goes_on(monkeypatch, capsys, latest, end):
    monkeypatch.setattr(leaving, "_LOOK", 0.2)
    lost = peers.Stop(1, "was lost (gave no sign of life for 60 s)", 75, lost=True)
    monkeypatch.setattr(leaving, "_peers", Answers(lost, 0))
    with leaving.resumable(latest):
        error = leaving.news(0)
    line = f"process 1 of this run was lost (gave no sign of life for 60 s): start again with the same command{end}"
    assert str(error) == line
    assert errors.explain(error) == (f"error: {line}", errors.PREEMPTED)
    # An error of JAX that follows from it is explained by it.
    monkeypatch.setattr("cp2_jax.runs.distributed.several", lambda: True)
    explained, status = errors.explain(ValueError("Gloo AllReduce failed: Connection closed by peer"))
    assert "process 1 of this run was lost" in explained and status == errors.PREEMPTED


def test_errors_are_passed_on_in_words():
    assert leaving.text(UnreadableImage("a.png", "it is empty")) == "a.png: it is empty"
    assert leaving.text(FileNotFoundError(2, "No such file", "a.png")) == "[Errno 2] No such file: 'a.png'"
    assert leaving.text(ZeroDivisionError("division by zero")) == "ZeroDivisionError: division by zero"


@pytest.fixture
def left(monkeypatch):
    """What this process would have left with."""
    calls = queue.Queue()
    monkeypatch.setattr(leaving, "leave", lambda *arguments, **_: calls.put(arguments))
    return calls


@pytest.mark.parametrize("number, ends", [(signal.SIGTERM, ("told to stop", 75)), (signal.SIGINT, ("interrupted", 130))])
def test_signals_are_answered_while_the_main_thread_waits_in_cpp(left, number, ends):
    before = signal.getsignal(signal.SIGTERM), signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with leaving.answering("told to stop"):
            os.kill(os.getpid(), number)
            assert left.get(timeout=20) == ends
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert signal.set_wakeup_fd(-1) == -1


def test_after_an_error_sigterm_is_what_it_was(left):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), leaving.answering(""):
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before and left.empty()


def test_an_abort_waits_in_the_c_library_alone():
    leaving._delay_abort()
    library = ctypes.CDLL(None)
    library.signal.restype, library.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
    handler = library.signal(signal.SIGABRT, None)  # the default again
    assert handler == ctypes.cast(library.sleep, ctypes.c_void_p).value


def test_the_watchdog_says_whose_batch_is_missing(left, monkeypatch):
    answers = Answers(None, 0)
    answers.late = lambda: [3]
    monkeypatch.setattr(leaving, "_peers", answers)
    watchdog = leaving.Watchdog(0.1, 75)
    watchdog(6, None)
    watchdog(7, None)
    message, status, _ = left.get(timeout=20)
    assert status == 75
    assert message == (
        "no step has ended for 0.1 s after step 7: process 3 has not come to its next step. "
        "Start again with the same command"
    )
