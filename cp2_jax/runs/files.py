"""Paths that people type, and what goes wrong when files are written, in words."""

import contextlib
import errno
import os
import pathlib
import sys
from collections.abc import Iterator

from cp2_jax.options import ConfigError
from cp2_jax.paths import AnyPath, BucketPath, at

_REASONS = {
    errno.ENOSPC: ("the disk is full", "make room, then run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "make room, then run the same command again"),
    errno.EROFS: ("the file system is read-only", "mount it for writing, or use another folder"),
    errno.EACCES: ("permission denied", "use a folder that you may write"),
    errno.EPERM: ("not permitted", "use a folder that you may write"),
    errno.ENOTDIR: ("there is a file where a folder is needed", "use another folder"),
    errno.EEXIST: ("there is a file where a folder is needed", "use another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "use another folder"),
    errno.EIO: ("the disk cannot be read or written", "look what is wrong with it, then run the same command again"),
    errno.ESTALE: ("the network file system has lost the folder", "mount it again, then run the same command again"),
}


class WriteError(Exception):
    """A file or folder of a run cannot be written; the message names it and says what to do."""


def expand(path: str | os.PathLike | AnyPath) -> AnyPath:
    """Return a path that was typed as an absolute one, with the home directory in place of `~`; or one in a bucket.

    Raises:
      ConfigError: see `paths.at`; or the path is no text, which the library that writes checkpoints needs.
    """
    path = at(path)
    if isinstance(path, BucketPath):
        return path
    absolute = os.path.abspath(path)
    if "\0" in absolute or any("\udc80" <= letter <= "\udcff" for letter in absolute):
        shown = absolute.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        utf8 = sys.getfilesystemencoding() == "utf-8"
        instead = "use another name" if utf8 else "set LC_ALL=C.UTF-8, for this locale has ASCII alone"
        raise ConfigError(f"{shown}: a path of a run or a checkpoint has to be UTF-8 text; {instead}")
    return pathlib.Path(absolute)


def reason(error: BaseException | str) -> str | None:
    """Return in words why a file could not be written, or None for another kind of error.

    Args:
      error: an `OSError`, or an error (or its text) of a library that passes on what the operating system said.
    """
    if isinstance(error, OSError) and error.errno in _REASONS:
        return _REASONS[error.errno][0]
    text = str(error)
    return next((words for number, (words, _) in _REASONS.items() if os.strerror(number) in text), None)


@contextlib.contextmanager
def written(place: str | AnyPath) -> Iterator[None]:
    """Turn errors of writing inside into `WriteError`.

    Args:
      place: the file or folder that is named where the operating system names none.

    Raises:
      WriteError: with the reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        raise WriteError(f"{error.filename or place}: {': '.join(_REASONS[error.errno])}") from error
