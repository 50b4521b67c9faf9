"""Checksums of a checkpoint's files: whether they are still what was written."""

import json
import pathlib
import zlib

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

NAME = "checksums.json"


class Damaged(Exception):
    """A checkpoint's files are not those that were written."""


def write(step: pathlib.Path) -> None:
    """Write the checksums of a step's files beside them."""
    (step / NAME).write_text(json.dumps(_checksums(step)), encoding="utf-8")


def _checksums(step: pathlib.Path) -> dict[str, int]:
    # Orbax touches its own note beside them (_CHECKPOINT_METADATA) once more at the renaming.
    files = (path for item in ("state", "meta") for path in sorted((step / item).rglob("*")) if path.is_file())
    return {str(path.relative_to(step)): _checksum(path) for path in files}


def _checksum(path: pathlib.Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            checksum = zlib.crc32(block, checksum)
    return checksum


def verify(step: pathlib.Path) -> bool:
    """Compare a step's files with their checksums; return False if it has none (an older checkpoint).

    Raises:
      Damaged: naming the first file that differs.
    """
    path = step / NAME
    if not path.exists():
        return False
    try:
        recorded = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise Damaged(f"file {path.name} is not readable: {error}") from error
    found = _checksums(step)
    for name, checksum in recorded.items():
        if found.get(name) != checksum:
            raise Damaged(f"file {name} is {'changed' if name in found else 'missing'}")
    return True


def agree(step: pathlib.Path) -> bool:
    """Let the first process verify a step, and all return or raise what it found.

    Raises:
      Damaged: see `verify`.
    """
    if jax.process_count() == 1:
        return verify(step)
    try:
        verdict = int(verify(step)) if jax.process_index() == 0 else 0
    except Damaged as error:
        logging.warning("%s", error)
        verdict = 2
    verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
    if verdict == 2:
        raise Damaged("its files are not those that were written")
    return bool(verdict)
