"""Runs whose work directory and images are in buckets, on servers of both kinds."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import bucket_run, packing, servers
from helpers.paths import ROOT

from cp2_jax import paths
from cp2_jax.options import ConfigError
from cp2_jax.runs import bucket_lock, bucket_steps, checksums, lock, settings
from cp2_jax.runs.bucket_checkpoints import BucketCheckpoints, open_checkpoints
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints, read, read_variables, write_variables
from cp2_jax.runs.spool import Spool
from cp2_jax.runs.writers import Writer, read_metrics

STATE = {"params": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}, "step": jnp.int32(4)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The same images as a folder, a tar file and a Parquet file, and the unbroken run on the folder."""
    root = tmp_path_factory.mktemp("images")
    packing.folder(root / "folder")
    packing.write_tar(root / "x.tar", packing.IMAGES)
    packing.write_parquet(root / "x.parquet", list(packing.IMAGES.values()), compression="none")
    return root, bucket_run.train("folder", root / "folder", root / "unbroken")


def same(ours, theirs):
    assert ours[0] == theirs[0]
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])


def test_killed_and_resumed_it_is_the_unbroken_run(bucket, images):
    """Images in a tar file in the bucket, killed without a warning while a checkpoint may be half carried over."""
    root, unbroken = images
    (bucket / "x.tar").write_bytes((root / "x.tar").read_bytes())
    bucket_run.killed("tar", bucket / "x.tar", bucket / "run", after=5)
    left = bucket_steps.complete(bucket / "run" / "checkpoints")
    assert set(left) <= {"2", "4"} and "8" not in left
    same(bucket_run.train("tar", bucket / "x.tar", bucket / "run"), unbroken)
    assert set(bucket_steps.complete(bucket / "run" / "checkpoints")) == {"2", "4", "6", "8"}
    names = set((bucket / "run").files())
    assert {"config.json", "overview.txt", "metrics.jsonl", "pictures/curves.png"} <= names
    assert any(name.startswith("tensorboard/events") for name in names) and not any(".lock" in name for name in names)


def test_parquet_in_a_bucket_gives_the_same_losses(bucket, images):
    root, unbroken = images
    (bucket / "data" / "x.parquet").write_bytes((root / "x.parquet").read_bytes())
    same(bucket_run.train("parquet", bucket / "data", bucket / "run"), unbroken)


def test_a_checkpoint_is_complete_or_not_there(bucket, proxy):
    """The server refuses the very last file: what is there does not count, and is gone after the next start."""
    directory = bucket / "checkpoints"
    saver = open_checkpoints(directory)
    saver.save(2, STATE, {"kind": "toy"})
    saver.wait()
    proxy.fault = lambda method, path: "403" * (method in ("PUT", "POST") and checksums.NAME in path)
    saver.save(4, STATE, {"kind": "toy"})
    with pytest.raises(CheckpointError, match=f"saving step 4 to {directory} failed: .*this account may not write"):
        saver.wait()
    proxy.fault = servers.nothing
    assert saver.latest_step() == 2 and (directory / "4").is_dir()
    saver.close()
    again = BucketCheckpoints(directory)
    assert not (directory / "4").exists()
    restored, meta = again.restore(STATE)
    assert meta == {"kind": "toy"} and restored["params"]["b"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, restored, STATE)
    with pytest.raises(
        CheckpointError, match=r"another model than the config describes:\n  params/w: .*\(2, 3\), this run \(5,\)"
    ):
        again.restore(STATE | {"params": {"w": jnp.ones(5), "b": STATE["params"]["b"]}})
    again.close()


def test_old_steps_go_and_damaged_ones_are_set_aside(bucket, caplog):
    directory = bucket / "checkpoints"
    saver = BucketCheckpoints(directory, keep=2)
    for step in (1, 2, 3):
        saver.save(step, STATE | {"step": jnp.int32(step)}, {"iterator": step})
    saver.save(3, STATE, {})  # is there already
    saver.wait()
    assert list(bucket_steps.complete(directory)) == ["2", "3"] and saver.latest_meta() == {"iterator": 3}
    with pytest.raises(CheckpointError, match="step 1 was not saved: .* holds step 3"):
        saver.save(1, STATE, {})
    gone = next(name for name in (directory / "3").files() if "/d/" in name)
    (directory / "3" / gone).unlink()
    assert read(bucket)[1] == {"iterator": 2}  # a work directory is the bucket itself
    assert int(saver.restore(STATE)[0]["step"]) == 2
    assert f"is damaged (file {gone} is missing); moved to {directory}/3.damaged" in caplog.text
    assert (directory / "3.damaged" / "meta" / "metadata").is_file() and list(bucket_steps.complete(directory)) == ["2"]
    saver.save(3, STATE | {"step": jnp.int32(33)}, {"iterator": 33})  # reached once more: what is new is carried over
    saver.wait()
    restored, meta = saver.restore(STATE)
    assert int(restored["step"]) == meta["iterator"] == 33
    bucket_steps.remove(directory / "3")
    (directory / "2" / "meta" / "metadata").write_text("{}")
    with pytest.raises(CheckpointError, match="2: file meta/metadata is changed\nPut back a copy"):
        saver.restore(STATE)
    saver.close()


def test_a_step_is_the_same_on_a_disk(bucket, tmp_path):
    """Copied from a bucket to a disk, it is a checkpoint there; and converted models go into buckets."""
    saver = BucketCheckpoints(bucket / "checkpoints")
    saver.save(7, STATE, {"kind": "toy"})
    saver.close()
    for name in (bucket / "checkpoints").files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((bucket / "checkpoints" / name).read_bytes())
    local = Checkpoints(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, local.restore(STATE)[0], STATE)
    local.close()
    write_variables(f"{bucket}/converted", {"params": {"w": np.ones(3)}}, {"file": "x"})
    assert read_variables(f"{bucket}/converted")[1] == {"file": "x"}
    with pytest.raises(CheckpointError, match="holds a checkpoint already"):
        write_variables(f"{bucket}/converted", {"params": {}}, {})
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read(bucket / "elsewhere")


def test_one_run_at_a_time(bucket):
    with lock.held(bucket) as check:
        check()
        with pytest.raises(lock.Busy, match=f"process {os.getpid() + 1} on .* is at work in {bucket}"):
            hold_as(bucket, pid=os.getpid() + 1)
    assert not (bucket / bucket_lock.FOLDER).is_dir()
    with lock.held(bucket):
        pass


def hold_as(bucket, pid):
    """Try to take the lock of this process as another process of this host would, which finds its number alive."""
    path = next((bucket / bucket_lock.FOLDER).iterdir())
    holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"process": pid, "space": "another"}))
    changing = threading.Thread(
        target=lambda: (time.sleep(0.4), path.write_text(json.dumps(holder | {"process": pid, "beat": 1})))
    )
    changing.start()
    try:
        with lock.held(bucket, patience=3):
            pass
    finally:
        changing.join()


def test_what_a_dead_holder_left_is_taken_away(bucket):
    """On this host at once; on another when it gave no sign of life for long enough, and then it notices."""
    mine = {"host": socket.gethostname(), "space": bucket_lock.space(), "state": "holds", "beat": time.time()}
    dead = bucket / bucket_lock.FOLDER / "1-dead.json"
    dead.write_text(json.dumps(mine | {"process": 2**22 + 1}))
    begin = time.monotonic()
    with lock.held(bucket, patience=60):
        assert time.monotonic() - begin < 20 and not dead.exists()
    dead.write_text(json.dumps(mine | {"host": "elsewhere", "process": 7}))
    with lock.held(bucket, patience=0.5):
        assert not dead.exists()


def test_a_holder_that_lost_the_lock_stops(bucket, monkeypatch):
    monkeypatch.setattr(bucket_lock, "BEAT", 0.1)
    with lock.held(bucket) as check:
        for path in (bucket / bucket_lock.FOLDER).iterdir():
            path.unlink()
        (bucket / bucket_lock.FOLDER / "2.json").write_text(json.dumps({"host": "elsewhere", "process": 7}))
        end = time.monotonic() + 20
        with pytest.raises(lock.Busy, match="no sign of life for too long: process 7 on elsewhere"):
            while time.monotonic() < end:
                check()
                time.sleep(0.05)


def test_of_many_that_want_it_one_holds(bucket, monkeypatch):
    """Threads with the numbers of processes of their own, all at the same moment."""
    inside, most, won = [], [], []

    def want(number):
        monkeypatch.setattr(bucket_lock.BucketLock, "_lives", lambda self, other, holder: True)
        try:
            held = bucket_lock.BucketLock(bucket, 1)
        except bucket_lock.Taken:
            return
        inside.append(number)
        most.append(len(inside))
        won.append(number)
        time.sleep(0.2)
        inside.remove(number)
        held.release()

    threads = [threading.Thread(target=want, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most, default=0) <= 1


def test_metrics_grow_in_a_bucket_and_are_cut_on_resuming(bucket):
    with Writer(bucket, 4) as writer:
        for step in (1, 2):
            writer.scalars(step, {"loss": float(step)})
        writer.flush()
        assert [line["step"] for line in read_metrics(bucket / "metrics.jsonl")] == [1, 2]
        writer.scalars(3, {"loss": 3.0})
        writer.image(3, "square", np.zeros((4, 4, 3), np.uint8))
    assert [line["step"] for line in read_metrics(bucket / "metrics.jsonl")] == [1, 2, 3]
    assert (bucket / "pictures" / "square_0000003.png").is_file()
    with Writer(bucket, 4, start_step=2) as writer:
        assert writer.last["step"] == 2
    assert [line["step"] for line in read_metrics(bucket / "metrics.jsonl")] == [1, 2]


def test_a_spool_tries_again(bucket, proxy, caplog):
    proxy.fault = lambda method, path: "403" * (method != "GET")
    spool = Spool(bucket, every=0.05)
    (spool.folder / "x.txt").write_text("1")
    end = time.monotonic() + 20
    while "it is tried again" not in caplog.text and time.monotonic() < end:
        time.sleep(0.05)
    with pytest.raises(paths.BucketError, match="may not write it"):
        spool.flush()
    proxy.fault = servers.nothing
    spool.close()
    assert (bucket / "x.txt").read_text() == "1"


def test_a_bucket_that_goes_away_ends_the_run_with_one_line(bucket, proxy, images, monkeypatch):
    """Nothing that was complete is lost; the same command goes on."""
    if proxy.scheme == "s3":
        pytest.skip("what is asked again is the same for both kinds, see tests/paths/test_buckets.py")
    root, unbroken = images
    monkeypatch.setenv("CP2_BUCKET_PATIENCE", "1")
    proxy.fault = lambda method, path: "503" * (method in ("PUT", "POST") and "checkpoints/6" in path.replace("%2F", "/"))
    with pytest.raises(paths.Unreachable, match="saving step 6 .* failed: .* could not be reached for 1 s"):
        bucket_run.train("tar", root / "x.tar", bucket / "run")
    proxy.fault = servers.nothing
    assert "4" in bucket_steps.complete(bucket / "run" / "checkpoints")
    same(bucket_run.train("tar", root / "x.tar", bucket / "run"), unbroken)


def two_processes(workdir, act):
    """Run the toy of tests/helpers/processes.py in two processes with two devices each; return texts and statuses."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "tests/helpers/processes.py", "--config=configs/pretrain_demo.py", f"--workdir={workdir}"]
    command += [
        f"--coordinator=localhost:{port}",
        "--num_processes=2",
        "--steps=10",
        f"--act={act}",
        "--heartbeat_timeout=10",
    ]
    options = {"cwd": ROOT, "env": environment, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [subprocess.Popen([*command, f"--process_id={index}"], **options) for index in range(2)]
    try:
        return [(process.communicate(timeout=240), process.returncode) for process in both]
    finally:
        for process in both:
            process.kill()


def test_two_processes_share_a_bucket_and_no_disk(bucket, proxy):
    """One is killed; restarted, both end where an unbroken run ends, though only the first one writes."""
    if proxy.scheme == "s3":
        pytest.skip("takes long, and does what it does with the other kind")
    (_, (_, killed)) = two_processes(bucket / "run", "kill")
    assert killed == -signal.SIGKILL
    assert bucket_steps.complete(bucket / "run" / "checkpoints")
    results = two_processes(bucket / "run", "kill")
    assert [status for _, status in results] == [0, 0], results
    begun = int(re.search(r"starting at (\d+) with 2 processes, 4 devices", results[0][0][0])[1])
    assert 2 <= begun <= 5 and f"ended at 10 with {float(sum(28 + 8 * n for n in range(10)))}" in results[0][0][0]


def test_no_secret_goes_into_a_config(tmp_path):
    config = bucket_run.config("tar", "s3://key:secret@bucket/x.tar")
    with pytest.raises(ConfigError, match="config.data.path has a key, password or signature inside") as caught:
        settings.check_config(tmp_path, config)
    assert "secret" not in str(caught.value) and not (tmp_path / "config.json").exists()
