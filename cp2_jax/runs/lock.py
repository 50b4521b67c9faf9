"""One run at a time in a work directory: a lock that names who holds it and is free as soon as that process is gone."""

import contextlib
import fcntl
import json
import os
import pathlib
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from cp2_jax.paths import AnyPath, BucketPath, at
from cp2_jax.runs.bucket_lock import BucketLock, Taken

NAME = ".lock"
_BEAT = 15.0  # seconds between two signs of life
_PATIENCE = 60.0  # seconds without one after which a process of another host is taken for gone


class Busy(Exception):
    """Another run is at work in the work directory; the message names its process and host."""


@contextlib.contextmanager
def held(workdir: str | AnyPath, patience: float = _PATIENCE) -> Iterator[Callable[[], None]]:
    """Hold the work directory for the processes of this run; all of them call it, the first one locks.

    Gives a function that raises `Busy` if the lock was lost, which only happens in a bucket (see `bucket_lock`).

    On one host the operating system gives the lock back when its holder dies, however it dies. Network file systems may not
    tell hosts of one another's locks, so the holder also touches the file every 15 seconds: a lock of another host that
    has not been touched for `patience` seconds is taken over.

    Args:
      workdir: exists.
      patience: in seconds.

    Raises:
      Busy: somebody else holds it.
      OSError, BucketError: the work directory cannot be written.
    """
    problem, lock, workdir = "", None, at(workdir)
    if jax.process_index() == 0:
        try:
            lock = BucketLock(workdir, patience) if isinstance(workdir, BucketPath) else _Lock(workdir, patience)
        except Busy as error:
            problem = str(error)
        except Taken as error:
            problem = _message(workdir, error.holder)
    if jax.process_count() > 1:
        busy = bool(multihost_utils.broadcast_one_to_all(np.int32(bool(problem))))
        problem = problem or "the work directory is in use, see the message of process 0" * busy
    if problem:
        raise Busy(problem)

    def check() -> None:
        try:
            lock.check() if isinstance(lock, BucketLock) else None
        except Taken as error:
            raise Busy(f"this process gave no sign of life for too long: {_message(workdir, error.holder)}") from error

    try:
        yield check
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """The open and locked file, and the thread that touches it."""

    def __init__(self, workdir: pathlib.Path, patience: float):
        self._path = workdir / NAME
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._take(patience)
        except BaseException:
            os.close(self._file)
            raise
        self._released = threading.Event()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def _take(self, patience: float) -> None:
        locked = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(_message(self._path.parent, _read(self._file))) from None
        except OSError:
            locked = False  # a file system without locks: the signs of life alone have to do
        holder = _read(self._file)
        here = holder.get("host") == socket.gethostname()
        gone = here and (locked or not _runs(holder.get("process")))
        if holder and not gone and _alive(self._path, self._file, patience):
            raise Busy(_message(self._path.parent, holder))
        mine = {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(mine).encode(), 0)

    def _beat(self) -> None:
        while not self._released.wait(_BEAT):
            with contextlib.suppress(OSError):
                os.utime(self._file)

    def release(self) -> None:
        """Let others in. The file stays, empty: removing it would let two processes lock two files of one name."""
        self._released.set()
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
        os.close(self._file)


def _read(file: int) -> dict:
    """Return what the holder wrote; empty if nobody holds the lock."""
    try:
        found = json.loads(os.pread(file, 1000, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _runs(process: object) -> bool:
    """Say whether there is a process of this number on this host."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except OSError:  # somebody else's
        return True
    return True


def _alive(path: pathlib.Path, file: int, patience: float) -> bool:
    """Say whether the process that holds it touches the file; clocks of hosts may differ, so only changes count."""
    first = os.fstat(file).st_mtime
    with tempfile.TemporaryFile(dir=path.parent, prefix=".lock_") as new:  # has the time of the clock that the lock has
        now = os.fstat(new.fileno()).st_mtime
    if now - first > 10 * max(patience, _BEAT):
        return False
    end = time.monotonic() + patience
    while time.monotonic() < end:
        time.sleep(min(1.0, patience / 4))
        if os.fstat(file).st_mtime != first:
            return True
    return False


def _message(workdir: AnyPath, holder: dict) -> str:
    who = f"process {holder['process']} on {holder['host']}" if "process" in holder else "another process"
    since = f" since {holder['since']}" if "since" in holder else ""
    return f"{who} is at work in {workdir}{since}: wait until it is done, stop it, or use another work directory"
