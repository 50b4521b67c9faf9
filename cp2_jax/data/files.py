"""The one place where data is opened: to read from elsewhere than the local disk, change this module alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def place(path: str | os.PathLike) -> Path:
    """Return a path as a user typed it, absolute and with `~` expanded."""
    return Path(path).expanduser().absolute()


def read(path: str | os.PathLike) -> bytes:
    """Return the bytes of a file.

    Raises:
      OSError: if it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read()


def read_range(path: str | os.PathLike, offset: int, size: int) -> bytes:
    """Return `size` bytes of a file from `offset` on; fewer if the file ends before.

    Raises:
      OSError: if it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while size > 0 and (part := os.pread(descriptor, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)
    finally:
        os.close(descriptor)


def open_binary(path: str | os.PathLike) -> BinaryIO:
    """Return a file object that can seek, for libraries that want one.

    Raises:
      OSError: if it cannot be opened.
    """
    return open(path, "rb")


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """Return (size in bytes, time of the last change in ns), by which a changed file is recognised.

    Raises:
      OSError: if there is no such file.
    """
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def as_text(path: str | os.PathLike) -> str:
    """Return a path for messages and for names of new files: bytes that are not UTF-8 are written as `\\xe9`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
