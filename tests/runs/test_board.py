"""TensorBoard files and what happens to them and to other files on a disk that is full."""

import errno
import os

import numpy as np
import pytest
from helpers.tensorboard import events
from tensorboardX.proto import event_pb2

from cp2_jax.runs import board as board_module
from cp2_jax.runs import files
from cp2_jax.runs.board import Board
from cp2_jax.runs.writers import Writer

FULL = "/dev/full"  # every write to it fails as on a full disk


def test_numbers_and_pictures(tmp_path):
    board = Board(tmp_path)
    board.scalars(3, {"loss": 1.5, "time/seconds per step": 2.0})
    picture = np.zeros((4, 5, 3), np.uint8)
    board.image(3, "pairs", picture)
    board.close()
    found = events(tmp_path)
    assert found[0].file_version == "brain.Event:2"
    values = [(event.step, value.tag, value.simple_value) for event in found[1:3] for value in event.summary.value]
    assert values == [(3, "loss", 1.5), (3, "time/seconds_per_step", 2.0)]
    (image,) = found[3].summary.value
    assert (image.tag, image.image.height, image.image.width) == ("pairs", 4, 5)


def test_two_of_one_second_do_not_overwrite_each_other(tmp_path):
    for purge in (None, 8):
        Board(tmp_path, purge).close()
    assert len(list(tmp_path.iterdir())) == 2
    last = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [(event.step, event.session_log.status) for event in last] == [(8, event_pb2.SessionLog.START)]


def test_files_stay_in_order_when_the_clock_is_put_back(tmp_path, monkeypatch):
    for now in (2_000_000_000 * 10**9, 10**9):
        monkeypatch.setattr(board_module.time, "time_ns", lambda now=now: now)
        Board(tmp_path, None if now > 10**9 else 8).close()
    assert [event.step for event in events(tmp_path)] == [0, 0, 8]  # the second file, with its start at 8, is the last


def test_it_is_on_disk_while_the_run_goes_on(tmp_path):
    board = Board(tmp_path, flush_seconds=0.0)
    board.scalars(1, {"loss": 1.0})
    assert len(events(tmp_path)) == 2
    board.close()


def full_disk(monkeypatch, module, name, number=errno.ENOSPC):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, fail)


def test_a_full_disk_is_one_error_and_closing_adds_none(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, Writer(tmp_path, 10) as writer:
        writer._board._records._writer = open(FULL, "wb", buffering=0)
        writer.scalars(1, {"loss": 1.0})
    assert files.reason(raised.value).startswith("the disk is full")
    with pytest.raises(OSError, match="No space left"), Writer(tmp_path, 10) as writer:
        writer._lines = open(FULL, "w")
        for step in range(10**4):  # what is buffered fails once more when it is closed
            writer.scalars(step, {"loss": 1.0})


@pytest.mark.parametrize(
    "number, said",
    [
        (errno.ENOSPC, "run: the disk is full"),
        (errno.EDQUOT, "run: the disk quota is used up"),
        (errno.EROFS, "run: the file system is read-only"),
        (errno.EACCES, "run: permission denied"),
    ],
)
def test_errors_of_writing_are_named(number, said):
    with pytest.raises(files.WriteError, match=f"^{said}"), files.written("run"):
        raise OSError(number, os.strerror(number))
    with pytest.raises(files.WriteError, match=f"^/a/b{said[3:]}"), files.written("run"):
        raise OSError(number, os.strerror(number), "/a/b")
    assert files.reason(f"RESOURCE_EXHAUSTED: {os.strerror(number)}; more").startswith(said[5:])


def test_other_errors_stay_what_they_are():
    with pytest.raises(FileNotFoundError), files.written("run"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")
    assert files.reason(ValueError("no")) is None


def test_paths_as_typed(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert files.expand("~/runs/a") == files.expand("runs/../runs/a") == tmp_path / "runs" / "a"
    assert files.expand(tmp_path / "100%") == tmp_path / "100%"
    assert files.expand("~nobody-of-this-name/a") == tmp_path / "~nobody-of-this-name" / "a"
