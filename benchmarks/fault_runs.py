"""The runs to which `faults.py` lets something happen: a tiny pretraining in processes that are forked when everything is
imported, which saves most of a short run's seconds."""

import atexit
import contextlib
import ctypes
import dataclasses
import faulthandler
import importlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np
from fault_kinds import DISK_SIZE, Fault, Story, mount
from PIL import Image

STEPS, SAVE_EVERY = 60, 3
LIMIT = 300  # seconds after which a run counts as hung


@dataclasses.dataclass
class Process:
    """A child of this process. status: None as long as it runs, negative for the signal that ended it."""

    pid: int
    status: int | None = None

    def ended(self) -> bool:
        """Say whether it is gone."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def show(self) -> None:
        """Let it write on stderr what each of its threads is doing."""
        if not self.ended():
            os.kill(self.pid, signal.SIGUSR1)
            time.sleep(1)

    def kill(self) -> None:
        """End it and the processes that it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        wait_for(self.ended, LIMIT)


def prepare() -> None:
    """Import what the runs need and set up this process as the command line does; start no device."""
    cache = pathlib.Path.home() / ".cache" / "cp2_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from cp2_jax.cli import main

    main.set_up()
    for module in ("configs.pretrain_demo", "pretraining.run", "runs.checkpoints"):
        importlib.import_module(f"cp2_jax.{module}")


def forked(call: Callable[[], int], out: pathlib.Path, err: pathlib.Path) -> Process:
    """Start `call` in a process, and a process group, of its own; it leaves with what `call` returns."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Process(pid)
    os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), number)
    faulthandler.register(signal.SIGUSR1)
    from cp2_jax.cli import errors

    status = call()
    if status:
        with contextlib.suppress(SystemExit):
            errors.leave(status)
    threading._shutdown()  # as at the end of a program, but not through the `finally` of the calls that forked this one
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def in_a_child(call: Callable[[], list[str]], folder: pathlib.Path) -> list[str]:
    """Return what `call` returns in a process of its own, for this one must not start a device."""
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)

    def work() -> int:
        try:
            found = call()
        except Exception:
            found = [traceback.format_exc()]
        answer.write_text(json.dumps(found))
        return 0

    process = forked(work, folder / "checks.log", folder / "checks.log")
    wait_for(process.ended, LIMIT)
    process.kill()
    return json.loads(answer.read_text()) if answer.exists() else ["the checks were killed"]


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until a condition holds; say whether it did within some seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def prepared(folder: pathlib.Path, fault: Fault) -> Story:
    """Make the images and the disk of a story."""
    story = Story(folder, fault.processes, fault.workers, fault.disk, fault.apart)
    (folder / "disk").mkdir(parents=True)
    story.images.mkdir()
    for index in range(24):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(story.images / f"{index:02d}.png")
    mount(story, DISK_SIZE)
    return story


def start(story: Story) -> list[Process]:
    """Start the run, or go on with it; what it prints begins anew."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for path in (story.out, story.err):
        path.unlink(missing_ok=True)
    return [forked(lambda i=index: work(story, i, port), story.out, story.err) for index in range(story.processes)]


def work(story: Story, index: int, port: int) -> int:
    """Be the run: what the command line does with a tiny pretraining."""
    from cp2_jax.cli import errors
    from cp2_jax.configs import pretrain_demo
    from cp2_jax.pretraining import run
    from cp2_jax.runs import distributed

    def train() -> None:
        if index:
            keep_compiled()
        if story.apart:
            own_view()
        if story.processes > 1:
            # One that was ended before the others found it is waited for in vain, for less than LIMIT.
            distributed.initialize(f"localhost:{port}", story.processes, index, start_timeout=60, heartbeat_timeout=10)
        run.train(config, story.workdir, stall_timeout=60.0)

    config = pretrain_demo.get_config()
    config.update_from_flattened_dict(
        {
            "steps": STEPS,
            "batch_size": 4,
            "bn_groups": 1,
            "save_every": SAVE_EVERY,
            "log_every": 1,
            "picture_every": 0,
            "probe_every": 0,
            "image_size": 16,
            "data.source": "folder",
            "data.path": str(story.images),
            "data.workers": story.workers,
            "loss.queue_size": 16,
            "augment.blur": 0.0,
            "model.resnet.width": 4,
            "model.resnet.stem_width": 4,
            "model.aspp.channels": 4,
            "model.aspp.dilations": (1, 2),
            "model.projection_dim": 8,
            "optimizer.warmup_steps": 1,
        }
    )
    return errors.guarded(train)


def keep_compiled() -> None:
    """Let this process keep what it compiles for the next start, most of a short run's time; JAX lets process 0 alone."""
    from jax._src import compiler, distributed

    write = compiler._cache_write

    def kept(*arguments, **options):
        number, distributed.global_state.process_id = distributed.global_state.process_id, 0
        try:
            write(*arguments, **options)
        finally:
            distributed.global_state.process_id = number

    compiler._cache_write = kept


def own_view() -> None:
    """Let what is mounted from here on for this process be seen by it alone; as for one on a host of its own."""
    if ctypes.CDLL(None, use_errno=True).unshare(0x20000):  # CLONE_NEWNS
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def differences(first: pathlib.Path, second: pathlib.Path) -> list[str]:
    """Name the metrics and arrays of two runs that are not the same to the last bit."""
    import jax

    from cp2_jax.runs.checkpoints import read
    from cp2_jax.runs.writers import VARYING, read_metrics

    lines = [read_metrics(run / "metrics.jsonl") for run in (first, second)]
    found = [] if len(lines[0]) == len(lines[1]) else [f"{len(lines[0])} and {len(lines[1])} lines of metrics"]
    for one, other in zip(*lines, strict=False):
        names = [n for n in one | other if not n.startswith(VARYING) and one.get(n) != other.get(n)]
        found += [f"step {one['step']}: {n}" for n in names]
    trees = [jax.tree_util.tree_leaves_with_path(read(run)[0]) for run in (first, second)]
    for (path, one), (_, other) in zip(*trees, strict=True):
        if np.asarray(one).tobytes() != np.asarray(other).tobytes():
            found.append(f"last checkpoint: {jax.tree_util.keystr(path)}")
    return found


def unreadable(directory: pathlib.Path) -> list[str]:
    """Name the complete checkpoints of a run that cannot be read whole."""
    from cp2_jax.runs.checkpoints import CheckpointError, read

    found = []
    for path in directory.glob("*"):
        if path.name.isdecimal():
            try:
                read(path)
            except CheckpointError as error:
                found.append(f"checkpoint {path.name}: {error}")
    return found
