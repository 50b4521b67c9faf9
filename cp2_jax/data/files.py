"""The one place where data is opened, on a disk or in a bucket."""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import stat
import threading
from typing import Any, BinaryIO

from cp2_jax.data.errors import SourceError
from cp2_jax.data.ranges import Ranges
from cp2_jax.paths import AnyPath, BucketPath, at, stores

_MOST = 8192  # parts that are on their way from a bucket before anybody wants them


class Changed(Exception):
    """A file is not what it was when its index was made."""


def place(path: str | os.PathLike | BucketPath) -> AnyPath:
    """Return a path as a user typed it, absolute and with `~` expanded.

    Raises:
      ConfigError: see `paths.at`.
    """
    return at(path).absolute()


def read(path: str | AnyPath) -> bytes:
    """Return the bytes of a file. Of a pipe or a device, which might never end, nothing is read.

    Raises:
      OSError, BucketError: if it cannot be read.
    """
    path = at(path)
    if isinstance(path, BucketPath):
        return path.read_bytes()
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is opened at once
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "no ordinary file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_range(path: str | AnyPath, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on; fewer if the file ends before.

    Raises:
      OSError, BucketError: if it cannot be read.
    """
    if isinstance(path, BucketPath):
        return stores.read(path, offset, offset + size)[0]
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while size > 0 and (part := os.pread(descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


def read_unchanged(path: AnyPath, known: tuple[int, int], offset: int, size: int) -> bytes:
    """As `read_range`, of a file whose stamp is known.

    In a bucket this is one request: its answer says which generation of the object it is of.

    Raises:
      Changed: if the file was changed.
      SourceError: if it is gone from its bucket.
      OSError, BucketError: if it cannot be read.
    """
    if not isinstance(path, BucketPath):
        check(path, known)
        return read_range(path, offset, size)
    future = _expected.take((path, offset, size))
    try:
        if future is None:
            data, generation = stores.read(path, offset, offset + size)
        else:
            data, generation = stores.finish(path, future, offset, offset + size)
    except FileNotFoundError as error:
        raise SourceError(f"{path} is gone from its bucket; put it back, then run the same command again") from error
    if _number(generation) != known[1]:
        raise Changed
    return data


def expect(path: AnyPath, offset: int, size: int) -> None:
    """Say that `read_unchanged` will be called for this soon: what is in a bucket is asked for now."""
    if isinstance(path, BucketPath):
        _expected.add((path, offset, size))


class _Expected:
    """Requests under way, for all threads of a process."""

    def __init__(self):
        self._futures, self._lock = collections.OrderedDict(), threading.Lock()

    def add(self, key: tuple[BucketPath, int, int]) -> None:
        path, offset, size = key
        with self._lock:
            if key in self._futures or not size:
                return
            self._futures[key] = stores.start(path, offset, offset + size)
            while len(self._futures) > _MOST:
                self._futures.popitem(last=False)

    def take(self, key: tuple[BucketPath, int, int]) -> Any:
        with self._lock:
            return self._futures.pop(key, None)


_expected = _Expected()


def open_binary(path: str | AnyPath) -> BinaryIO:
    """Return a file object that can seek, for libraries that want one.

    Raises:
      OSError: if it cannot be opened.
    """
    return Ranges(path) if isinstance(path, BucketPath) else open(path, "rb")


def stamp(path: str | AnyPath) -> tuple[int, int]:
    """Return what differs when a file was changed: (size in bytes, time of the last change in ns).

    Of an object in a bucket (-1, a number for its generation).

    Raises:
      OSError, BucketError: if there is no such file.
    """
    if isinstance(path, BucketPath):
        return -1, _number(stores.read(path, 0, 0)[1])
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def check(path: str | AnyPath, known: tuple[int, int]) -> None:
    """Compare a file's stamp with that of before.

    Raises:
      Changed: if it is another.
      OSError, BucketError: see `stamp`.
    """
    if stamp(path) != known:
        raise Changed


def _number(generation: bytes) -> int:
    return int.from_bytes(hashlib.sha256(generation).digest()[:7], "big")


def as_text(path: str | AnyPath) -> str:
    """Return a path for messages and for names of new files: bytes that are not UTF-8 are written as `\\xe9`."""
    if isinstance(path, BucketPath):
        return str(path)
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def as_path(text: str) -> str:
    """Return a text as the name of a new file: its UTF-8 bytes, also where the locale takes file names for ASCII."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape"))


def relative(text: str, root: str | AnyPath) -> str:
    """Return what `as_text` made of a path below a folder as a path from that folder on."""
    return os.path.relpath(text, as_text(root))
