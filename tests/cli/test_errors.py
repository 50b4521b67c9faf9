"""Exceptions become a line and a status in one place."""

import errno
import os
import sys
import threading
import tomllib

import jax
import pytest
from helpers.paths import ROOT
from ml_collections import ConfigDict

from cp2_jax.cli import errors
from cp2_jax.data.images.decoding import UnreadableImage
from cp2_jax.data.images.sources import SourceError
from cp2_jax.options import ConfigError
from cp2_jax.runs.checkpoints import CheckpointError
from cp2_jax.runs.loop import NonFiniteLoss, Preempted


def end(capsys, error):
    def call():
        raise error

    status = errors.guarded(call)
    out, err = capsys.readouterr()
    assert out == ""
    return status, err


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ConfigError("seed=-1: no"), 2, "error: seed=-1: no"),
        (errors.UsageError("--x: no"), 2, "error: --x: no"),
        (CheckpointError("damaged"), 1, "error: damaged"),
        (SourceError("no images"), 1, "error: no images"),
        (NonFiniteLoss("step 7"), 1, "error: step 7"),
        (UnreadableImage("a.jpg", "empty"), 1, f"error: {UnreadableImage('a.jpg', 'empty')}"),
        (Preempted("after step 7"), 75, "after step 7"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.EROFS, "Read-only file system", "/runs/a"), 1, "error: /runs/a: Read-only file system"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
            1,
            "error: memory is too small (RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes); try remat=True, "
            "accumulate=bn_groups, a smaller batch_size, or more devices",
        ),
    ],
)
def test_a_users_errors_are_one_line(capsys, error, status, line):
    assert end(capsys, error) == (status, f"{line}\n")


@pytest.mark.parametrize("ask", [lambda config: config["keep"], lambda config: config.keep])
def test_a_config_that_lacks_a_key_is_named(capsys, ask):
    """A user's own config may be of an earlier version, and complete only for that."""
    assert errors.guarded(lambda: ask(ConfigDict({"steps": 3}))) == errors.USAGE
    line = capsys.readouterr().err
    assert line.startswith("error: the config lacks a key that is needed: 'keep'") and line.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback(capsys):
    status, err = end(capsys, ZeroDivisionError("a bug"))
    assert status == 1 and err.startswith("Traceback") and "a bug" in err


def test_a_traceback_can_be_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("CP2_TRACEBACK", "1")
    status, err = end(capsys, ConfigError("no"))
    assert status == 2 and err.startswith("Traceback") and err.endswith("error: no\n")


def test_a_missing_library_is_one_line(capsys):
    status, err = end(capsys, ModuleNotFoundError("No module named 'libtpu'", name="libtpu"))
    assert status == 1 and err.endswith("has no module libtpu: pip install 'cp2_jax[tpu]'\n") and err.count("\n") == 1
    status, err = end(capsys, ModuleNotFoundError("No module named 'optax'", name="optax"))
    assert status == 1 and err.count("\n") == 1 and "has no module optax: use the Python into which" in err


def test_every_extra_that_an_error_names_is_there():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(errors.EXTRAS.values()) <= set(extras)


def test_what_goes_well_is_0():
    assert errors.guarded(lambda: None) == 0


def test_after_an_error_no_thread_is_waited_for(monkeypatch):
    """As those of Orbax are after a save that failed: they would wait ten minutes."""
    left, done = [], threading.Event()
    monkeypatch.setattr(errors.os, "_exit", left.append)
    thread = threading.Thread(target=done.wait, daemon=False)
    thread.start()
    try:
        for status in (errors.ERROR, 0, errors.PREEMPTED, errors.INTERRUPTED):
            with pytest.raises(SystemExit, match=str(status)):
                errors.leave(status)
    finally:
        done.set()
        thread.join()
    assert left == [errors.ERROR, errors.INTERRUPTED]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("Timed out while waiting for async_write_complete barrier."),
        ValueError("UNKNOWN: Gloo AllGather failed: Read error [127.0.0.1]:10468: Connection reset by peer"),
    ],
)
def test_what_is_seen_when_another_process_is_killed_asks_to_run_again(monkeypatch, error, wrapped):
    """Found by faults: one of two processes killed while both were saving left the other with status 1."""
    if wrapped:
        cause, error = error, CheckpointError("saving step 3 failed")
        error.__cause__ = cause
    assert errors.explain(error)[1] == errors.ERROR  # of one process it is an error like others
    monkeypatch.setattr("cp2_jax.runs.distributed.several", lambda: True)
    message, status = errors.explain(error)
    assert status == errors.PREEMPTED
    assert "another process of this run is gone" in message and "run again" in message


def test_a_closed_pipe_ends_the_output_without_a_word(monkeypatch, capsys):
    """As in `cp2 reproduce list | head`, where all fits into the buffer and is written at the end."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert errors.guarded(lambda: print("a table")) == errors.ERROR
        monkeypatch.undo()
    assert capsys.readouterr() == ("", "")
