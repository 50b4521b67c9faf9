"""Who reads, saves and holds when in a bucket: one process is held back, or another writes meanwhile."""

import json
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import servers
from helpers.paths import ROOT

from cp2_jax.runs import bucket_checkpoints, bucket_lock, bucket_steps, lock
from cp2_jax.runs.bucket_checkpoints import BucketCheckpoints
from cp2_jax.runs.checkpoints import read

STATE = {"params": {"w": jnp.arange(6.0)}, "step": jnp.int32(4)}


@pytest.fixture(scope="module")
def proxy():
    """Of one kind: none of this is about servers."""
    with servers.proxied("gs") as proxy:
        yield proxy


class TwoProcesses:
    """Two threads that stand for two processes of a run, as `bucket_checkpoints` sees them; meetings that not both come to
    break. Attributes: `first_waits`, set as soon as the first process waits for the second."""

    def __init__(self, monkeypatch):
        self._here, self._slots = threading.local(), [None, None]
        self._both, self.first_waits = threading.Barrier(2), threading.Event()
        multihost = types.SimpleNamespace(process_allgather=self._gather)
        seen = {"process_index": lambda: self._here.index, "process_count": lambda: 2}
        seen |= {"tree": jax.tree, "Array": jax.Array}
        monkeypatch.setattr(bucket_checkpoints, "jax", types.SimpleNamespace(**seen))
        monkeypatch.setattr(bucket_checkpoints, "multihost_utils", multihost)

    def _gather(self, value):
        self._slots[self._here.index] = value
        if self._here.index == 0:
            self.first_waits.set()
        self._both.wait(10)
        found = np.array(self._slots)
        self._both.wait(10)
        return found

    def run(self, work):
        """Call `work(index)` in both; return what each raised, or None."""

        def one(index):
            self._here.index = index
            try:
                work(index)
            except Exception as error:
                raised[index] = error

        raised = [None, None]
        threads = [threading.Thread(target=one, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return raised


def test_a_slow_process_does_not_miss_a_save(bucket, monkeypatch):
    """It looks for the newest step when the first one has carried it over, or waits for it: both are to save it."""
    both = TwoProcesses(monkeypatch)

    def work(index):
        saver = BucketCheckpoints(bucket / "checkpoints")
        if index == 1:
            newest = saver.latest_step
            saver.latest_step = lambda: (both.first_waits.wait(10), newest())[1]
        saver.save(2, STATE, {"kind": "toy"})
        assert saver._saving == 2
        saver.close()

    assert both.run(work) == [None, None]
    assert list(bucket_steps.complete(bucket / "checkpoints")) == ["2"]


def test_what_a_run_replaces_while_it_is_read_is_read_anew(bucket, monkeypatch):
    saver = BucketCheckpoints(bucket / "best", keep=1)
    saver.save(1, STATE, {"step": 1})
    saver.wait()
    download = bucket_steps._download

    def slow(step, folder):
        if step.name == "1":  # while it is fetched, a better one takes its place
            saver.save(2, STATE, {"step": 2})
            saver.wait()
        download(step, folder)

    monkeypatch.setattr(bucket_steps, "_download", slow)
    assert read(bucket / "best")[1] == {"step": 2}
    saver.close()


def test_the_page_says_the_locks_own_times():
    page = (ROOT / "docs" / "buckets.md").read_text("utf-8")
    assert f"renews every {bucket_lock.BEAT:.0f} seconds" in page
    assert f"after {lock._PATIENCE:.0f} seconds on another" in page


def test_a_holder_whose_clock_is_behind_is_not_taken_for_dead(bucket, caplog):
    """Its signs of life bear the time of its own host: only that they change counts."""
    path = bucket / bucket_lock.FOLDER / "1-slow.json"
    holder = {"host": "elsewhere", "process": 7, "state": "holds", "beat": time.time() - 10**6}
    path.write_text(json.dumps(holder))
    beating = threading.Timer(0.3, lambda: path.write_text(json.dumps(holder | {"beat": holder["beat"] + 15})))
    beating.start()
    with pytest.raises(lock.Busy, match="process 7 on elsewhere is at work"), lock.held(bucket, patience=5):
        pass
    beating.join()
    assert f"process 7 on elsewhere has held {bucket}, and may have been killed: up to 5 s are waited" in caplog.text
