"""Lists of images: which of a source's images are used, a path or member a line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int

from cp2_jax.data import files, notices, text
from cp2_jax.data.errors import SourceError
from cp2_jax.paths import AnyPath


def read_list(listed: str | os.PathLike, root: AnyPath) -> tuple[AnyPath, list[str]]:
    """Return the path of a list and its lines; empty lines and those that begin with "# " are left out.

    A line that occurs more than once counts as often as it occurs, and a warning says so.

    Args:
      listed: looked for as given, then below `root`.
      root: the value of data.path.

    Raises:
      SourceError: if there is no such file, it is no text, or it is empty.
    """
    places = [files.place(listed), root / listed]
    path = next((one for one in places if one.is_file()), None)
    if path is None:
        raise SourceError(f"no such list: {' or '.join(dict.fromkeys(map(str, places)))}; set data.list")
    lines = [line.strip() for line in text.read_lines(path)]
    lines = [line for line in lines if line and not line.startswith("# ")]
    if not lines:
        raise SourceError(f"list {path} names no image; data.list takes a path a line, relative to data.path")
    if repeated := len(lines) - len(set(lines)):
        notices.say_once(f"{path}: {repeated} lines are there already; each counts as often as it is listed")
    return path, lines


def below(line: str, root: Path) -> str:
    """Return a line of a list as a path relative to `root`: absolute paths below it are shortened, "./" is left out."""
    path = os.path.normpath(line)
    if os.path.isabs(path):
        for base in (str(root), os.path.realpath(root)):
            if path.startswith(base.rstrip("/") + "/"):
                return os.path.relpath(path, base)
    return path


def missing(root: Path, names: Sequence[str]) -> list[int]:
    """Return which of the files are not there. Links that lead nowhere count as there: reading them names them."""
    with ThreadPoolExecutor(16) as pool:  # a disk far away answers many at once
        there = pool.map(lambda name: os.path.lexists(root / name), names, chunksize=256)
        return [index for index, good in enumerate(there) if not good]


def find(
    path: AnyPath, lines: Sequence[str], roots: Sequence[AnyPath], names: Sequence[str], short: Sequence[str]
) -> Int[np.ndarray, " lines"]:
    """Return the number of the image that each line of a list means.

    Args:
      path: of the list, for messages.
      lines: see `read_list`.
      roots: what lines may be relative to, the likeliest first.
      names: of all images, absolute.
      short: of all images, which count where only one image has that name.

    Raises:
      SourceError: naming the first line that is no image's, or that is several images' name.
    """
    by_name = {name: index for index, name in enumerate(names)}
    by_short: dict[str, int] = {}
    for index, name in enumerate(short):
        by_short[name] = -1 if name in by_short else index
    found = []
    for line in lines:
        index = next((by_name[full] for root in roots if (full := str(root / line)) in by_name), None)
        index = by_short.get(os.path.normpath(line).lstrip("/")) if index is None else index
        if index is None or index < 0:
            what = (
                "but there is no such image"
                if index is None
                else "but several files have it: name the file too, FILE.tar/NAME"
            )
            raise SourceError(f"{path} names {line}, {what} in {roots[0]}; its lines are names relative to data.path")
        found.append(index)
    return np.array(found, np.int64)
