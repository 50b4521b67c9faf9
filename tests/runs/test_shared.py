"""The work directory of several processes has to be the same for all; here the others are pretended."""

import threading
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cp2_jax.runs import distributed, shared


def several(monkeypatch, index, seen):
    """Be one of two processes, of which the other one answers `seen`."""
    gathered = SimpleNamespace(
        broadcast_one_to_all=lambda number: np.int32(7),
        process_allgather=lambda mine: np.array([mine, seen] if index == 0 else [seen, mine]),
    )
    monkeypatch.setattr(shared, "multihost_utils", gathered)
    monkeypatch.setattr(shared, "raise_together", lambda error: None)
    monkeypatch.setattr(shared, "_PATIENCE", 0.1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: index)


def test_the_first_process_writes_what_the_others_see_and_takes_it_away(tmp_path, monkeypatch):
    several(monkeypatch, 0, seen=True)
    shared.check(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("index", [0, 1])
def test_a_folder_of_each_hosts_own_is_refused_by_all(tmp_path, monkeypatch, index):
    several(monkeypatch, index, seen=index == 1)  # process 1 does not see it
    with pytest.raises(distributed.DisagreementError, match=f"process 1 of this run does not see .* writes in {tmp_path}:"):
        shared.check(tmp_path)


def test_what_comes_a_little_later_is_seen(tmp_path):
    threading.Timer(0.1, lambda: (tmp_path / "word").write_text("7")).start()
    assert shared.reads(tmp_path / "word", "7", 10)
    assert not shared.reads(tmp_path / "word", "8", 0.1)


def test_one_process_alone_writes_nothing(tmp_path):
    shared.check(tmp_path / "absent")
