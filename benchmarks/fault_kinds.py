"""What can happen to a run, for `faults.py`: each fault takes the running story and one process of it, and returns what
puts things right afterwards."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
from collections.abc import Callable

DISK_SIZE = 10_000_000  # bytes of the small file systems


@dataclasses.dataclass
class Story:
    """A run with its images and its work directory. disk: "" for the folder's own, tmpfs or ext4 for one of its own."""

    folder: pathlib.Path
    processes: int = 1
    workers: int = 0
    disk: str = ""
    apart: bool = False

    @property
    def root(self) -> pathlib.Path:
        return self.folder / "disk"

    @property
    def workdir(self) -> pathlib.Path:
        return self.root / "run"

    @property
    def images(self) -> pathlib.Path:
        return self.folder / "images"

    @property
    def out(self) -> pathlib.Path:
        return self.folder / "out.log"

    @property
    def err(self) -> pathlib.Path:
        return self.folder / "err.log"

    def complete(self) -> set[int]:
        """Return the steps whose checkpoints are complete."""
        return {int(p.name) for p in (self.workdir / "checkpoints").glob("*") if p.name.isdecimal()}

    def last_step(self) -> int:
        """Return the last step in `metrics.jsonl`."""
        path = self.workdir / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0


def mount(story: Story, size: int) -> None:
    """Give a story the small file system that it asks for."""
    if story.disk == "tmpfs":
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", story.root], check=True)
    elif story.disk == "ext4":
        image = story.folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(4 * size)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, story.root], check=True)


def unmount(story: Story) -> None:
    """Take the file system away; nothing is at work on it any more."""
    if story.disk:
        subprocess.run(["umount", story.root], check=False)


def killed(story: Story, pid: int) -> Callable[[], None]:
    """SIGKILL, as by the kernel when memory ends."""
    os.killpg(pid, signal.SIGKILL)
    return lambda: None


def terminated(story: Story, pid: int) -> Callable[[], None]:
    """SIGTERM, as by a scheduler."""
    os.kill(pid, signal.SIGTERM)
    return lambda: None


def interrupted(story: Story, pid: int) -> Callable[[], None]:
    """Ctrl-C, which reaches all processes of the terminal."""
    os.killpg(pid, signal.SIGINT)
    return lambda: None


def disk_full(story: Story, pid: int) -> Callable[[], None]:
    """Another program fills the disk of the work directory."""
    assert story.root.is_mount(), "the disk of the whole machine would be filled"
    filler = story.root / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        for _ in range(DISK_SIZE // 4096 + 1):
            file.write(bytes(4096))
    return lambda: filler.unlink(missing_ok=True)


def read_only(story: Story, pid: int) -> Callable[[], None]:
    """The kernel mounts the file system read-only, as it does after an error of the disk: open files fail as well."""
    subprocess.run(["sync", "-f", story.root], check=True)
    subprocess.run(["mount", "-o", "remount,abort", story.root], check=True)

    def mend() -> None:
        unmount(story)
        subprocess.run(["fsck.ext4", "-p", story.folder / "disk.img"], check=False, capture_output=True)
        subprocess.run(["mount", "-o", "loop", story.folder / "disk.img", story.root], check=True)

    return mend


def images_gone(story: Story, pid: int) -> Callable[[], None]:
    """The disk with the images goes away."""
    away = story.folder / "away"
    story.images.rename(away)
    return lambda: away.rename(story.images)


def images_gone_for_one(story: Story, pid: int) -> Callable[[], None]:
    """The disk with the images goes away on one host: an empty one lies over it, in this process's view alone."""
    subprocess.run(["nsenter", f"--mount=/proc/{pid}/ns/mnt", "mount", "-t", "tmpfs", "none", story.images], check=True)
    return lambda: None


def frozen(story: Story, pid: int) -> Callable[[], None]:
    """SIGSTOP: it is there and does nothing, as on a host that hangs."""
    os.kill(pid, signal.SIGSTOP)
    return lambda: None


def worker_killed(story: Story, pid: int) -> Callable[[], None]:
    """A process that decodes is killed."""
    for child in _children(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return lambda: None


def both(*faults: Callable) -> Callable:
    """Several faults, one right after the other."""

    def happen(story: Story, pid: int) -> Callable[[], None]:
        mends = [fault(story, pid) for fault in faults]
        return lambda: [mend() for mend in mends]

    return happen


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens.

    Attributes:
      disk: the file system it needs, which takes root.
      processes, workers: of the run.
      share: of all faults.
      victim: index of the process to which it happens.
      apart: each process has its own view of the file systems, as on a host of its own; takes root.
      stays: the process to which it happens does not end by itself.
    """

    happen: Callable
    disk: str = ""
    processes: int = 1
    workers: int = 0
    share: int = 2
    victim: int = -1
    apart: bool = False
    stays: bool = False


FAULTS = {
    "SIGKILL": Fault(killed, share=8),
    "SIGTERM": Fault(terminated, share=5),
    "Ctrl-C": Fault(interrupted, share=4),
    "full disk": Fault(disk_full, disk="tmpfs", share=5),
    "read-only disk": Fault(read_only, disk="ext4", share=4),
    "images vanish": Fault(images_gone, share=3),
    "worker killed": Fault(worker_killed, workers=1),
    "one of two processes killed": Fault(killed, processes=2, share=1),
    "first of two processes killed": Fault(killed, processes=2, share=1, victim=0),
    "one of two processes frozen": Fault(frozen, processes=2, share=1, stays=True),
    "first of two processes frozen": Fault(frozen, processes=2, share=1, victim=0, stays=True),
    "images vanish for one of two processes": Fault(images_gone_for_one, processes=2, share=1, apart=True),
    "worker of one of two processes killed": Fault(worker_killed, processes=2, workers=1, share=1),
    "one of two processes ended by SIGTERM": Fault(terminated, processes=2, share=1),
    "full disk of two processes": Fault(disk_full, disk="tmpfs", processes=2, share=1),
    "full disk, then SIGKILL": Fault(both(disk_full, killed), disk="tmpfs"),
    "full disk, then SIGTERM": Fault(both(disk_full, terminated), disk="tmpfs"),
    "images vanish, then SIGTERM": Fault(both(images_gone, terminated)),
    "read-only disk, then SIGTERM": Fault(both(read_only, terminated), disk="ext4"),
    "worker killed, then Ctrl-C": Fault(both(worker_killed, interrupted), workers=1, share=1),
}


def _children(parent: int) -> list[int]:
    """Return the direct children of a process that decode images, not Python's own resource tracker."""
    path = pathlib.Path(f"/proc/{parent}/task/{parent}/children")
    found = [int(number) for number in path.read_text().split()] if path.exists() else []
    return [child for child in found if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes()]
