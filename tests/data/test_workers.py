"""Decoding processes end with the process that they work for, however it ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

READER = """
import sys, time
from absl import flags
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.images.sources import ImageFolder

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    batches = pretrain_dataset(ImageFolder(sys.argv[1]), batch_size=2, image_size=8, seed=0, workers=1)
    next(batches)
    print("reading", flush=True)
    time.sleep(600)
"""


INTERRUPTED = """
import os, signal, sys, time
from absl import flags
from cp2_jax.data.images.batches import Batches
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import pretrain_dataset

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    signal.signal(signal.SIGINT, lambda *_: print("told", flush=True))
    source = ImageFolder(sys.argv[1])
    batches = Batches(pretrain_dataset(source, batch_size=2, image_size=8, seed=0, workers=2), source)
    print("starting", flush=True)
    sys.stdin.readline()
    for _ in range(3):
        next(batches)
    print("read", flush=True)
    batches.close()
"""


def children(parent: int) -> set[int]:
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if int(after_name[1]) == parent and after_name[0] != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.fixture
def images(tmp_path):
    for index in range(4):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    return tmp_path


def test_no_worker_outlives_a_killed_reader(images, tmp_path):
    script = tmp_path / "reader.py"
    script.write_text(READER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    reader = subprocess.Popen(
        [sys.executable, str(script), str(images)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert reader.stdout.readline() == "reading\n"
        workers = children(reader.pid)
        assert workers
    finally:
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    deadline = time.monotonic() + 60
    while any(pathlib.Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in workers if pathlib.Path(f"/proc/{pid}").exists()]


def test_ctrl_c_is_answered_by_the_parent_alone(images, tmp_path):
    """It reaches the whole group, here while workers are starting; they neither say anything nor end."""
    script = tmp_path / "reader.py"
    script.write_text(INTERRUPTED)
    reader = subprocess.Popen(
        [sys.executable, str(script), str(images)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    assert reader.stdout.readline() == "starting\n"
    while len(children(reader.pid)) < 2:
        time.sleep(0.05)
    for _ in range(5):
        os.killpg(reader.pid, signal.SIGINT)
        time.sleep(0.3)
    out, errors = reader.communicate("\n", timeout=120)
    assert reader.returncode == 0 and set(out.split()) == {"told", "read"}, errors
    assert "Traceback" not in errors and "KeyboardInterrupt" not in errors
