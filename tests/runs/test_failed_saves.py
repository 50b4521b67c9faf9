"""Saves that fail, and saves under way when something else fails: nothing that was complete is lost."""

import errno
import logging
import os
import time

import jax.numpy as jnp
import pytest
from helpers.toy import State, batches, step
from helpers.toy_run import run, saved

from cp2_jax.runs import loop
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints
from cp2_jax.runs.writers import Writer


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
