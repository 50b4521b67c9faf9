"""Checkpoints that are damaged, half written or cut off by a kill: what is set aside, and what a run goes on with."""

import random
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.states import META, assert_equal, largest_file, make_state, restore, save_steps, truncate

from cp2_jax.runs import checkpoints
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints


def empty(step):
    largest_file(step / "state").write_bytes(b"")


def remove(step):
    largest_file(step / "state").unlink()


def flip_a_bit(step):
    file = largest_file(step / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def change_meta(step):
    file = step / "meta" / "metadata"
    file.write_text(file.read_text().replace("7", "8"))


def break_checksums(step):
    file = step / "checksums.json"
    file.write_text(file.read_text()[:-5])


DAMAGES = [truncate, empty, remove, flip_a_bit, change_meta, break_checksums]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damaged_newest_is_set_aside_and_the_one_before_used(tmp_path, damage, caplog):
    save_steps(tmp_path, 1, 2)
    damage(tmp_path / "2")
    state, meta = restore(tmp_path)
    assert_equal(state, make_state(1))
    assert meta == META
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.damaged"]
    assert f"checkpoint {tmp_path / '2'} is damaged" in caplog.text
    save_steps(tmp_path, 2)  # the number is free again, and a second damage overwrites nothing
    damage(tmp_path / "2")
    assert int(restore(tmp_path)[0].step) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2.damaged", "2.damaged_"]


def test_damage_is_seen_without_checksums_too(tmp_path):
    save_steps(tmp_path, 1, 2)
    (tmp_path / "2" / "checksums.json").unlink()
    remove(tmp_path / "2")
    assert int(restore(tmp_path)[0].step) == 1


def test_every_file_counts(tmp_path):
    """Whichever file of a state is lost, it is not restored."""
    save_steps(tmp_path, 1, 2)
    for file in [p for p in (tmp_path / "2" / "state").rglob("*") if p.is_file()]:
        data = file.read_bytes()
        file.unlink()
        assert int(restore(tmp_path)[0].step) == 1, file
        (tmp_path / "2.damaged").rename(tmp_path / "2")
        file.write_bytes(data)
    assert int(restore(tmp_path)[0].step) == 2


def test_when_all_are_damaged_it_says_so_and_touches_nothing(tmp_path):
    save_steps(tmp_path, 1, 2)
    flip_a_bit(tmp_path / "1")
    truncate(tmp_path / "2")
    for _ in range(2):  # a launcher that starts it again must not get a fresh run
        with pytest.raises(CheckpointError, match="all checkpoints in .* are damaged:\n  2: .*state.*\n  1: .*state"):
            restore(tmp_path)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    with pytest.raises(CheckpointError, match="no readable checkpoint:\n.*2: .*\n.*1: "):
        checkpoints.read(tmp_path)


def test_an_intact_checkpoint_that_cannot_be_restored_is_no_damage(tmp_path, monkeypatch):
    save_steps(tmp_path, 1, 2)
    saver = Checkpoints(tmp_path)

    def restore_fails(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(saver._manager, "restore", restore_fails)
    with pytest.raises(CheckpointError, match="2 cannot be restored: RESOURCE_EXHAUSTED"):
        saver.restore(make_state(0))
    saver.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_half_written_steps_are_cleared_at_the_next_start(tmp_path):
    save_steps(tmp_path, 1)
    half = tmp_path / "2.orbax-checkpoint-tmp-0"
    (half / "state").mkdir(parents=True)
    saver = Checkpoints(tmp_path)
    saver.save(2, make_state(2), META)
    saver.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
    assert_equal(restore(tmp_path)[0], make_state(2))


def test_a_full_disk_is_reported_and_the_last_checkpoint_stays(tmp_path):
    """A limit on the size of files stands in for a full disk; keep=1 would tempt to delete the only good one."""
    script = f"""
import resource, signal, sys
sys.path[:0] = [{str(ROOT)!r}]
import jax.numpy as jnp, jax
from cp2_jax.runs.checkpoints import *
saver = Checkpoints({str(tmp_path)!r}, keep=1)
saver.save(1, {{"x": jnp.ones(3)}}, {{}})
saver.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    saver.save(2, {{str(i): jax.random.normal(jax.random.key(i), (30_000,)) for i in range(30)}}, {{}})
    saver.wait()
except CheckpointError as error:
    print("REPORTED", error)
    print("LATEST", saver.latest_step())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "REPORTED saving step 2 to" in done.stdout, done.stdout + done.stderr
    assert "The last complete checkpoint is that of step 1" in done.stdout and "LATEST 1" in done.stdout
    assert done.stderr == ""  # Orbax, asyncio and TensorStore have a traceback for each array
    state, _ = restore(tmp_path, {"x": jnp.zeros(3)})
    np.testing.assert_array_equal(state["x"], np.ones(3))


_SAVER = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
import jax.numpy as jnp
from cp2_jax.runs.checkpoints import Checkpoints
saver = Checkpoints(sys.argv[1], keep=2)
like = {{"step": jnp.int32(0), "x": jnp.zeros((64, 1024))}}
restored = saver.restore(like)
step = int(restored[0]["step"]) if restored else 0
assert not restored or float(restored[0]["x"][3, 5]) == step == restored[1]["next"]
print("restored", step, flush=True)
while True:
    step += 1
    saver.save(step, {{"step": jnp.int32(step), "x": jnp.full((64, 1024), float(step))}}, {{"next": step}})
    saver.wait()
    print("finished", step, flush=True)
"""


def test_kill_in_the_middle_of_saves(tmp_path):
    """Killed ten times at random moments: whatever was announced as finished is there (or a later one is)."""
    rng = random.Random(0)
    finished = killed_in_save = 0
    for attempt in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVER, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        first = process.stdout.readline()
        assert first.startswith("restored"), process.communicate()[1]
        assert int(first.split()[1]) >= finished
        # Moments are counted in saves, not in seconds: a busy machine is not a failure.
        lines = [first, *(process.stdout.readline() for _ in range(rng.randrange(3) if attempt else 4))]
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        lines += process.communicate()[0].splitlines()
        finished = max([finished, *(int(line.split()[1]) for line in lines if line.startswith("finished"))])
        names = [p.name for p in tmp_path.iterdir()]
        killed_in_save += any("tmp" in name for name in names)
        kept = [int(name) for name in names if name.isdecimal()]
        assert max(kept, default=0) >= finished and not any("damaged" in name for name in names)
        for step in kept:  # one that was being deleted may be there in part: only the two newest count
            if step in sorted(kept)[-2:] and step >= finished:
                tree, meta = checkpoints.read(tmp_path / str(step))
                assert np.all(tree["x"] == step) and meta == {"next": step}
    assert finished > 3 and killed_in_save > 0
    saver = Checkpoints(tmp_path, keep=2)
    saver.save(finished + 100, {"x": jnp.ones(2)}, {})
    saver.close()
    assert all(p.name.isdecimal() for p in tmp_path.iterdir()) and len(list(tmp_path.iterdir())) == 2
