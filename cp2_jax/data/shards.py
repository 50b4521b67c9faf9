"""Which files a data set of several files has: patterns, folders, lists."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cp2_jax.data import files, text, walking
from cp2_jax.data.errors import SourceError
from cp2_jax.paths import AnyPath, BucketPath

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 10**6


def expand_braces(pattern: str) -> list[str]:
    """Return the texts that a pattern describes: "{0000..0003}" counts, "{a,b}" lists, as WebDataset and the shell write.

    Raises:
      SourceError: for a pattern of more than a million files.
    """
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    inside, found = match[1], []
    if counted := _RANGE.fullmatch(inside):
        first, last = int(counted[1]), int(counted[2])
        if abs(last - first) > _MOST:
            raise SourceError(f"{pattern} stands for more than {_MOST} files; is there a figure too many?")
        width = max(len(counted[1]), len(counted[2])) if counted[1].startswith("0") or counted[2].startswith("0") else 0
        step = 1 if last >= first else -1
        options = [f"{number:0{width}d}" for number in range(first, last + step, step)]
    elif "," in inside:
        options = inside.split(",")
    else:  # no pattern, but a name with braces
        rest = expand_braces(pattern[match.end() :])
        return [pattern[: match.end()] + end for end in rest]
    for option in options:
        found += expand_braces(pattern[: match.start()] + option + pattern[match.end() :])
    return found


def find_files(path: str | os.PathLike | Sequence[str | os.PathLike], suffix: str, what: str) -> list[AnyPath]:
    """Return the files of a data set, absolute, in order.

    Args:
      path: a file, on a disk or in a bucket (gs://, s3://); a pattern with "{0000..1023}", "{a,b}", "*" or "?"; several of
        these joined by "::"; a folder, whose files with `suffix` at any depth are taken in order of their names; a text
        file (.txt) with one of these a line, relative to its folder; or a sequence of these.
      suffix: such as ".tar".
      what: such files, for messages, such as "tar shards".

    Raises:
      SourceError: if a file is missing, or there is none; it says which and how many.
    """
    if isinstance(path, str | os.PathLike):
        parts = os.fspath(path).split("::")
    else:
        parts = [os.fspath(one) for one in path]
    found = [file for part in parts for file in _find(part, suffix, what)]
    missing = _missing(found)
    if missing:
        more = f" (and {len(missing) - 1} more of {len(found)})" if missing[1:] else ""
        raise SourceError(f"no such file: {missing[0]}{more}; set data.path to the {what}")
    if not found:
        raise SourceError(f"no {suffix} file in {', '.join(parts)}; set data.path to the {what}")
    return found


def _missing(found: Sequence[AnyPath]) -> list[AnyPath]:
    """Return which files are not there; in a bucket, by one list of each folder."""
    parents = {file.parent for file in found if isinstance(file, BucketPath)}
    there = {parent / name for parent in parents for name in parent.files()}
    return [file for file in found if not (file in there if isinstance(file, BucketPath) else file.is_file())]


def _find(part: str, suffix: str, what: str) -> list[AnyPath]:
    path = files.place(part)
    if isinstance(path, BucketPath):
        return _find_in_bucket(path, suffix, what)
    if path.is_dir():
        found = walking.walk(path, {suffix})
        if found.closed:
            raise SourceError(f"this folder may not be entered: {found.closed[0]}; ask for the right to read it")
        return [path / name for name in found.files]
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in text.read_lines(path)]
        return [file for line in lines if line for file in _find(os.path.join(path.parent, line), suffix, what)]
    found: list[AnyPath] = []
    for one in expand_braces(str(path)):
        if os.path.lexists(one) or not glob.has_magic(one):
            found.append(Path(one))
        else:
            found += sorted(Path(match) for match in glob.glob(one, recursive=True))
    return found


def _find_in_bucket(path: BucketPath, suffix: str, what: str) -> list[AnyPath]:
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in text.read_lines(path)]
        return [
            file
            for line in lines
            if line
            for file in _find(line if "://" in line else f"{path.parent}/{line}", suffix, what)
        ]
    found: list[AnyPath] = []
    for one in map(files.place, expand_braces(str(path))):
        if glob.has_magic(one.key):
            found += [match for match in one.parent.glob(one.name) if match.suffix]
        elif one.suffix.lower() == suffix:
            found.append(one)
        else:
            names = [name for name in one.files() if name.lower().endswith(suffix) and walking.is_data(name)]
            found += [one / name for name in sorted(names, key=lambda name: name.split("/"))] or [one]
    return found
