"""The lock of a work directory in a bucket: an object for each process that holds it or wants to."""

import contextlib
import json
import logging
import os
import random
import secrets
import socket
import threading
import time

from cp2_jax.paths import BucketError, BucketPath

FOLDER = ".lock"
BEAT = 15.0  # seconds between two signs of life


class Taken(Exception):
    """Another process holds the lock, or has taken it; carries what is known of it."""

    def __init__(self, holder: dict):
        super().__init__(holder)
        self.holder = holder


class BucketLock:
    """The lock, and the thread that shows that its holder lives.

    Each process writes an object of its own, then looks whether another one is there; if so it takes its own away. Buckets
    list an object as soon as it is written, so that of two processes at least one sees the other: never do both hold. No
    condition on writing is needed, which servers keep in different ways. An object that does not change for `patience`
    seconds, or whose process is gone from this very host, is left over and removed; its process, should it still live,
    notices that (`check`).

    Args:
      workdir: in a bucket.
      patience: in seconds.

    Raises:
      Taken: another process holds it.
      BucketError: the bucket cannot be read or written.
    """

    def __init__(self, workdir: BucketPath, patience: float):
        self._folder, self._patience, self._lost = workdir / FOLDER, patience, {}
        self._since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._mine = self._folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
        self._take()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Look whether the lock is still held.

        Raises:
          Taken: another process took it, because there was no sign of life of this one.
        """
        if self._lost:
            raise Taken(self._lost)

    def release(self) -> None:
        """Let others in."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(BucketError):
            self._mine.unlink(missing_ok=True)

    def _take(self) -> None:
        for _ in range(8):
            for other, holder in self._others().items():
                if self._lives(other, holder):
                    raise Taken(holder)
                other.unlink(missing_ok=True)
            self._write("wants")
            others = self._others()
            if not others:
                self._write("holds")
                return
            self._mine.unlink(missing_ok=True)
            holding = [holder for holder in others.values() if holder.get("state") == "holds"]
            if holding:
                raise Taken(holding[0])
            time.sleep(random.uniform(0.1, 2.0))  # both stepped back; who comes first gets it
        raise Taken(next(iter(others.values())))

    def _write(self, state: str) -> None:
        mine = {"host": socket.gethostname(), "process": os.getpid(), "space": space(), "state": state}
        mine |= {"since": self._since, "beat": time.time()}
        self._mine.write_text(json.dumps(mine), encoding="utf-8")

    def _others(self) -> dict[BucketPath, dict]:
        found = {}
        for path in self._folder.iterdir():
            if path != self._mine:
                with contextlib.suppress(FileNotFoundError):  # released since it was listed
                    found[path] = _parsed(path.read_text("utf-8"))
        return found

    def _lives(self, other: BucketPath, holder: dict) -> bool:
        if holder.get("host") == socket.gethostname() and holder.get("space") == space():
            return holder.get("process") != os.getpid() and _runs(holder.get("process"))
        end = time.monotonic() + self._patience
        logging.warning(
            "process %s on %s has held %s, and may have been killed: up to %.0f s are waited for a sign of life",
            holder.get("process", "?"),
            holder.get("host", "another host"),
            self._folder.parent,
            self._patience,
        )
        while time.monotonic() < end:
            time.sleep(min(2.0, self._patience / 4))
            try:
                if _parsed(other.read_text("utf-8")).get("beat") != holder.get("beat"):  # clocks differ: only changes count
                    return True
            except FileNotFoundError:
                return False
        return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(BucketError):  # the next one may go through
                if not self._mine.is_file():
                    self._lost = next(iter(self._others().values()), {"host": "another host"})
                    return
                self._write("holds")


def space() -> str:
    """Return what numbers of processes are relative to: two containers of one name may be in different ones."""
    try:
        return os.readlink("/proc/self/ns/pid") + open("/proc/sys/kernel/random/boot_id").read().strip()
    except OSError:
        return ""


def _runs(process: int | None) -> bool:
    try:
        os.kill(int(process or 0) or -1, 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _parsed(text: str) -> dict:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
