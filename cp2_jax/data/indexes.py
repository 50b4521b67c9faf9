"""Indexes of large files, made once and kept beside them, or in the user's cache where that may not be written."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from cp2_jax import paths
from cp2_jax.data import files
from cp2_jax.data.ahead import ahead
from cp2_jax.paths import AnyPath, BucketError, BucketPath, Unreachable, save_as
from cp2_jax.runs import progress

FOLDER = ".cp2_index"
_FORMAT = 1  # raise it when the arrays come to mean something else

Arrays = dict[str, Shaped[np.ndarray, " entries"]]


def places(file: AnyPath, name: str) -> list[AnyPath]:
    """Return where the index of a file may be: beside it, and in the cache.

    Args:
      name: of the kind of index; several may belong to a file.
    """
    here = hashlib.sha256(str(file.parent).encode("utf-8", "surrogateescape")).hexdigest()[:16]
    told = os.environ.get("XDG_CACHE_HOME")
    cache = Path(told) / "cp2_jax" if told else paths.cache()
    folders = [file.parent / FOLDER, *([cache / "indexes" / here] if cache else [])]
    return [folder / f"{file.name}.{name}.npz" for folder in folders]


def load(file: AnyPath, name: str) -> Arrays | None:
    """Return the arrays of an index, any shape; None if there is none that was made from the file as it is now.

    Raises:
      OSError: if the file itself is not there; BucketError: if its bucket cannot be read.
    """
    stamp = files.stamp(file)
    for place in places(file, name):
        try:
            source = io.BytesIO(files.read(place)) if isinstance(place, BucketPath) else place
            with np.load(source, allow_pickle=False) as stored:
                arrays = dict(stored)
        except Unreachable:
            raise
        except (OSError, BucketError, ValueError, EOFError, zipfile.BadZipFile, KeyError):  # absent, or cut off
            continue
        if tuple(arrays.pop("made_from", ())) == (_FORMAT, *stamp):
            return arrays
    return None


def make(file: AnyPath, name: str, build: Callable[[AnyPath], Arrays]) -> tuple[Arrays, bool]:
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
        try:
            with save_as(place) as unfinished, open(unfinished, "wb") as out:
                np.savez(out, made_from=np.array([_FORMAT, *stamp], np.int64), **arrays)
            return arrays, True
        except (OSError, BucketError):  # a disk that is read-only or full, a bucket that may only be read
            continue
    return arrays, False


def load_or_make(
    found: Sequence[AnyPath], name: str, build: Callable[[AnyPath], Arrays], what: str
) -> tuple[list[Arrays], list[tuple[int, int]], bool]:
    """Return the indexes of files, any shape; their stamps; and whether all new ones were kept.

    Args:
      name, build: see `make`.
      what: is done if some are made, for the progress.

    Raises:
      What `build` raises.
    """
    with ThreadPoolExecutor(32 if isinstance(found[0], BucketPath) else 8) as pool:
        stamps = list(pool.map(files.stamp, found))
        loaded = dict(zip(found, pool.map(lambda file: load(file, name), found), strict=True))
    new, kept = [file for file in found if loaded[file] is None], True
    if new:
        at_once = 8 if isinstance(found[0], BucketPath) else 1  # a disk is quickest with one after the other
        with ThreadPoolExecutor(at_once) as pool:
            made = ahead(pool, ((make, file, name, build) for file in new), at_once)
            for file, (arrays, this) in zip(new, progress.track(made, what, len(new)), strict=True):
                loaded[file] = arrays
                kept = kept and this
    return [loaded[file] for file in found], stamps, kept
