"""Which files a data set of several files has: patterns, folders, lists."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cp2_jax.data import files, notices, text, walking
from cp2_jax.data.errors import SourceError
from cp2_jax.paths import AnyPath, BucketPath

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 10**6
_COMPRESSED_TAR = re.compile(r"(.*)(\.tgz|\.tar\.(gz|bz2|xz|zst|lz4))", re.IGNORECASE)


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
        if lists := [part for part in parts if part.lower().endswith(".txt")]:
            raise SourceError(
                f"no such file: {missing[0]}{more}; {lists[0]} is to name {what}, one a line, not what is inside of them"
            )
        bucket = ", or no such bucket" if isinstance(missing[0], BucketPath) else ""
        raise SourceError(f"no such file{bucket}: {missing[0]}{more}; set data.path to the {what}")
    if not found:
        raise SourceError(f"no {suffix} file in {', '.join(parts)}; set data.path to the {what}")
    return found


def common_folder(found: Sequence[AnyPath]) -> AnyPath:
    """Return the folder that all of some files are in, at any depth; that of the first where they have none in common."""
    folder = found[0].parent
    if len({isinstance(file, BucketPath) for file in found}) > 1:
        return folder
    while not all(file.is_relative_to(folder) for file in found):
        if folder == folder.parent:
            return found[0].parent
        folder = folder.parent
    return folder


def roots(path: str | os.PathLike | Sequence[str | os.PathLike], folder: AnyPath) -> list[AnyPath]:
    """Return what a list's lines may be relative to: `data.path`, if that is a folder in which the files are, and `folder`.

    Args:
      path: see `find_files`.
      folder: of `common_folder`.
    """
    given = files.place(path) if isinstance(path, str | os.PathLike) else folder
    above = isinstance(given, BucketPath) == isinstance(folder, BucketPath) and folder.is_relative_to(given)
    return list(dict.fromkeys([given, folder] if above else [folder]))


def short_names(found: Sequence[AnyPath], folder: AnyPath) -> list[str]:
    """Return the names of files relative to a folder, which stay the same if the data set is moved as a whole."""
    prefix = f"{files.as_text(folder).rstrip('/')}/"
    return [files.as_text(file).removeprefix(prefix) for file in found]


def say_empty(found: Sequence[AnyPath], empty: Sequence[int], what: str) -> None:
    """Warn of files that have nothing to give, which are more often a mistake than meant.

    Args:
      found: all files.
      empty: numbers of those without.
      what: is not in them, such as "image".
    """
    if len(empty):
        more = ", ".join(str(found[number]) for number in empty[:5]) + (", …" if len(empty) > 5 else "")
        notices.say_once(f"{len(empty)} of {len(found)} files have no {what} and give nothing: {more}")


def all_of(found: Sequence[AnyPath]) -> str:
    """Return what to call all files of a data set together."""
    return str(found[0]) if len(found) == 1 else f"any of {len(found)} files, {found[0]} the first"


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
        found = walking.walk(path, {suffix, ".tgz", ".gz", ".bz2", ".xz", ".zst", ".lz4"})
        if found.closed:
            raise SourceError(f"this folder may not be entered: {found.closed[0]}; ask for the right to read it")
        return [path / name for name in _of_folder(found.files, suffix, path)]
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


def _of_folder(names: Sequence[str], suffix: str, folder: AnyPath) -> list[str]:
    """Return the files of a folder that are shards; refuse tar files that are only there compressed.

    Raises:
      SourceError: naming the first of them: without it, images would be missing in silence.
    """
    found = [name for name in names if name.lower().endswith(suffix)]
    packed = [(name, match[1]) for name in names if suffix == ".tar" and (match := _COMPRESSED_TAR.fullmatch(name))]
    plain = frozenset(found)
    alone = [name for name, stem in packed if f"{stem}.tar" not in plain]
    if alone:
        more = f" (and {len(alone) - 1} more)" if alone[1:] else ""
        raise SourceError(
            f"{folder / alone[0]}{more} is compressed, and images in it cannot be reached one by one: unpack it to a plain "
            ".tar, or set data.path to a pattern without it"
        )
    return found


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Say whether the parts of a name match those of a pattern, as `glob.glob(recursive=True)` has it."""
    if not pattern or not name:
        return not pattern and not name
    if pattern[0] == "**":
        deeper = len(name) > 1 and not name[0].startswith(".") and _matches(name[1:], pattern)
        return deeper or _matches(name, pattern[1:])
    hidden = name[0].startswith(".") and not pattern[0].startswith(".")
    return not hidden and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _match_in_bucket(pattern: BucketPath) -> list[BucketPath]:
    parts = pattern.key.split("/")
    first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    folder = files.place(f"{pattern.scheme}://{pattern.bucket}/{'/'.join(parts[:first])}")
    names = sorted(name.split("/") for name in folder.files())
    return [folder / "/".join(name) for name in names if _matches(name, parts[first:])]


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
        if glob.has_magic(one.key) and not one.is_file():
            found += _match_in_bucket(one)
        elif one.suffix.lower() == suffix:
            found.append(one)
        else:
            names = sorted(filter(walking.is_data, one.files()), key=lambda name: name.split("/"))
            found += [one / name for name in _of_folder(names, suffix, one)] or ([] if names else [one])
    return found
