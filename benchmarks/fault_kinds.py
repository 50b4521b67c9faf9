"""What can happen to a run, for `faults.py`: each fault takes the running story and a process of it, and returns what puts
things right afterwards."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable


@dataclasses.dataclass
class Story:
    """A run with its images and its work directory, and the processes that are at work on it now."""

    folder: pathlib.Path
    seed: int
    processes: int = 1
    workers: int = 0
    mounted: bool = False

    @property
    def workdir(self) -> pathlib.Path:
        return self.folder / "disk" / "run"

    @property
    def images(self) -> pathlib.Path:
        return self.folder / "images"

    def complete(self) -> set[int]:
        """Return the steps whose checkpoints are complete."""
        return {int(p.name) for p in (self.workdir / "checkpoints").glob("*") if p.name.isdecimal()}

    def last_step(self) -> int:
        """Return the last step in `metrics.jsonl`."""
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def killed(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """SIGKILL, as by the kernel when memory ends."""
    os.killpg(process.pid, signal.SIGKILL)
    return lambda: None


def terminated(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """SIGTERM, as by a scheduler."""
    process.send_signal(signal.SIGTERM)
    return lambda: None


def interrupted(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """Ctrl-C, which reaches all processes of the terminal."""
    os.killpg(process.pid, signal.SIGINT)
    return lambda: None


def disk_full(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """Another program fills the disk of the work directory."""
    filler = story.folder / "disk" / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65536))
    return filler.unlink


def read_only(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """The file system is mounted read-only, as after an error of the disk."""
    disk = str(story.folder / "disk")
    for _ in range(200):  # refused while a file is being written
        if subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode == 0:
            break
        time.sleep(0.005)
    return lambda: subprocess.run(["mount", "-o", "remount,rw", disk], check=True)


def images_gone(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """The disk with the images goes away."""
    away = story.folder / "away"
    story.images.rename(away)
    return lambda: away.rename(story.images)


def worker_killed(story: Story, process: subprocess.Popen) -> Callable[[], None]:
    """A process that decodes is killed."""
    for child in _children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return lambda: None


def both(*faults: Callable) -> Callable:
    """Several faults, one right after the other."""

    def happen(story: Story, process: subprocess.Popen) -> Callable[[], None]:
        mends = [fault(story, process) for fault in faults]
        return lambda: [mend() for mend in mends]

    return happen


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens. mount: needs a file system of its own; processes, workers: of the run."""

    happen: Callable
    mount: bool = False
    processes: int = 1
    workers: int = 0
    share: int = 1


FAULTS = {
    "SIGKILL": Fault(killed, share=6),
    "SIGTERM": Fault(terminated, share=3),
    "Ctrl-C": Fault(interrupted),
    "full disk": Fault(disk_full, mount=True, share=2),
    "read-only disk": Fault(read_only, mount=True, share=2),
    "images vanish": Fault(images_gone, share=2),
    "worker killed": Fault(worker_killed, workers=1, share=2),
    "one of two processes killed": Fault(killed, processes=2),
    "full disk, then SIGKILL": Fault(both(disk_full, killed), mount=True),
    "images vanish, then SIGTERM": Fault(both(images_gone, terminated)),
    "read-only disk, then SIGTERM": Fault(both(read_only, terminated), mount=True),
}


def _children(parent: int) -> list[int]:
    """Return the direct children of a process that decode images, not Python's own resource tracker."""
    path = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    found = [int(number) for number in path.read_text().split()] if path.exists() else []
    return [child for child in found if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]
