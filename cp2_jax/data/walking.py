"""The files below a folder, found in one way for images and for masks."""

from __future__ import annotations

import collections
import dataclasses
import os
import stat
from collections.abc import Collection, Iterator, Mapping

from cp2_jax.data import files

# Folders that programs make beside users' images: thumbnails, waste bins, snapshots. Hidden ones need no entry.
_NOT_DATA = frozenset(
    {"@eadir", "__macosx", "__pycache__", "lost+found", "#recycle", "@recycle", "$recycle.bin", "#snapshot"}
    | {"@recently-snapshot", "system volume information"}
)
_NO_IMAGES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "predictions.json"})
# What `cp2 predict` wrote, beside this file, is not what it was made from.
_PREDICTED, _PREDICTIONS = "predictions.json", frozenset({"masks", "overlays"})
_NO_FILE = "no ordinary file"


@dataclasses.dataclass(frozen=True)
class Found:
    """What is below a folder.

    Attributes:
      files: paths of the files that were asked for, relative to the folder, "/" between their parts, sorted by parts.
      passed_over: number of other files by suffix, in lower case ("no suffix" for none).
      closed: a line for each folder that may not be entered.
    """

    files: list[str]
    passed_over: dict[str, int]
    closed: list[str]

    def remark(self, root: str | os.PathLike) -> str:
        """Return "DIR: 3 files passed over: .txt 2, .heic 1", or "" if there are none."""
        return remark(root, self.passed_over)


def remark(root: str | os.PathLike, passed_over: Mapping[str, int]) -> str:
    """Return a line on the files that were not taken, by suffix; "" if there are none."""
    count = sum(passed_over.values())
    if not count:
        return ""
    kinds = sorted(passed_over.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{kind} {number}" for kind, number in kinds[:12])
    more = f", and {len(kinds) - 12} more kinds" if len(kinds) > 12 else ""
    return files.as_text(f"{root}: {count} file{'s' if count > 1 else ''} passed over: {shown}{more}")


def is_data(path: str) -> bool:
    """Say whether a path inside an archive is a user's file: not hidden, nor in a folder that a program made for itself."""
    *folders, name = path.split("/")
    hidden = any(part.startswith(".") and part not in (".", "..") for part in (*folders, name))
    return not hidden and not any(folder.lower() in _NOT_DATA for folder in folders) and name.lower() not in _NO_IMAGES


def walk(root: str | os.PathLike, suffixes: Collection[str]) -> Found:
    """Find the files with given suffixes at any depth below a folder.

    Hidden files and folders (a leading dot) and folders that programs make for themselves (`@eaDir`, `__MACOSX`,
    `lost+found` and the like; what `cp2 predict` wrote) are left out. Links to folders are followed, after everything that
    lies in its own place; no folder is entered twice, so that links in a circle come to an end. A link that leads nowhere
    counts as the file that its name says: reading it gives the error that names it. Pipes, sockets and devices are never
    opened.

    Args:
      root: an existing folder.
      suffixes: in lower case, such as ".png"; upper case in names is taken too.
    """
    search = _Search(os.fspath(root), frozenset(suffixes))
    search.below("")
    links = 0
    while search.links:  # sorted within each folder, and found in a sorted order
        links += 1
        search.below(search.links.popleft())
    if links:
        search.files.sort(key=lambda path: path.split("/"))
    return Found(search.files, dict(search.passed_over), search.closed)


class _Search:
    """The state of one walk: `files` is sorted by parts as long as no link is followed."""

    def __init__(self, root: str, suffixes: frozenset[str]):
        self.root, self.suffixes = root, suffixes
        self.files: list[str] = []
        self.passed_over: collections.Counter[str] = collections.Counter()
        self.closed: list[str] = []
        self.links: collections.deque[str] = collections.deque()
        self._entered: set[str] = set()

    def below(self, start: str) -> None:
        """Take in what lies below the folder `start` (relative to the root), links to folders apart."""
        open_folders = [self._subfolders(start)]
        while open_folders:  # a stack, for folders may be nested deeper than Python's calls
            subfolder = next(open_folders[-1], None)
            if subfolder is None:
                open_folders.pop()
            else:
                open_folders.append(self._subfolders(subfolder))

    def _subfolders(self, folder: str) -> Iterator[str]:
        """Take in the files of one folder; its subfolders are yielded where they stand in the order of names."""
        path = os.path.join(self.root, folder) if folder else self.root
        real = os.path.realpath(path)
        if real in self._entered:
            return
        self._entered.add(real)
        try:
            with os.scandir(path) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.closed.append(f"{path}: {error.strerror or error}")
            return
        prefix = f"{folder}/" if folder else ""
        others = _NOT_DATA | (_PREDICTIONS if any(entry.name == _PREDICTED for entry in entries) else frozenset())
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            kind = _kind(entry)
            if kind == "folder":
                if name.lower() not in others:
                    yield prefix + name
            elif kind == "link to a folder":
                if name.lower() not in others:
                    self.links.append(prefix + name)
            else:
                self._take(prefix + name, name, kind)

    def _take(self, path: str, name: str, kind: str) -> None:
        suffix = os.path.splitext(name)[1].lower()
        if kind == "file" and suffix in self.suffixes:
            self.files.append(path)
        elif name.lower() not in _NO_IMAGES:
            self.passed_over[(suffix or "no suffix") if kind == "file" else kind] += 1


def _kind(entry: os.DirEntry) -> str:
    """Say what an entry is. Only for links this reads the disk."""
    try:
        if not entry.is_symlink():
            if entry.is_dir(follow_symlinks=False):
                return "folder"
            return "file" if entry.is_file(follow_symlinks=False) else _NO_FILE
        mode = entry.stat().st_mode
    except OSError:  # it leads nowhere, or in a circle
        return "file"
    if stat.S_ISDIR(mode):
        return "link to a folder"
    return "file" if stat.S_ISREG(mode) else _NO_FILE
