"""What a process says when it or another one ends; the connection between them is test_peers'."""

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
