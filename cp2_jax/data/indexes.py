"""Indexes of large files, made once and kept beside them, or in the user's cache where that may not be written."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cp2_jax.data import files

FOLDER = ".cp2_index"
_FORMAT = 1  # raise it when the arrays come to mean something else

Arrays = dict[str, Shaped[np.ndarray, " entries"]]


def places(file: Path, name: str) -> list[Path]:
    """Return where the index of a file may be: beside it, and in the cache.

    Args:
      name: of the kind of index; several may belong to a file.
    """
    here = hashlib.sha256(str(file.parent).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cp2_jax" / "indexes" / here
    return [folder / f"{file.name}.{name}.npz" for folder in (file.parent / FOLDER, cache)]


def load(file: Path, name: str) -> Arrays | None:
    """Return the arrays of an index, any shape; None if there is none that was made from the file as it is now.

    Raises:
      OSError: if the file itself is not there.
    """
    stamp = files.stamp(file)
    for place in places(file, name):
        try:
            with np.load(place, allow_pickle=False) as stored:
                arrays = dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError):  # absent, or cut off while it was written
            continue
        if tuple(arrays.pop("made_from", ())) == (_FORMAT, *stamp):
            return arrays
    return None


def make(file: Path, name: str, build: Callable[[Path], Arrays]) -> tuple[Arrays, bool]:
    """Return the arrays of a file's index, any shape, made and kept if there is none yet; and whether it was kept.

    An index is written under another name and renamed, so that two processes may make it at once.

    Args:
      build: file → arrays.

    Raises:
      What `build` raises.
    """
    stamp = files.stamp(file)
    arrays = build(file)
    for place in places(file, name):
        unfinished = place.with_name(f"{place.name}.{os.getpid()}")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "wb") as out:
                np.savez(out, made_from=np.array([_FORMAT, *stamp], np.int64), **arrays)
            unfinished.replace(place)
            return arrays, True
        except OSError:  # a disk that is read-only or full
            unfinished.unlink(missing_ok=True) if unfinished.parent.is_dir() else None
    return arrays, False
