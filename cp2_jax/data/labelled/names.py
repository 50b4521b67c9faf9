"""Names that images and masks have in common, as they stand in folders and in users' lists."""

from __future__ import annotations

import dataclasses
import os
import unicodedata
from collections.abc import Mapping
from pathlib import Path

from cp2_jax.data.images.formats import SUFFIXES


def key(name: str) -> str:
    """Return a name as it is compared: accents in one form (macOS and Linux write them in different ones)."""
    return unicodedata.normalize("NFC", name)


def without_extension(name: str) -> str:
    """Return a path without an image's extension, if it has one."""
    stem, extension = os.path.splitext(name)
    return stem if extension.lower() in SUFFIXES else name


@dataclasses.dataclass(frozen=True)
class Named:
    """The images, or the masks, of a folder by name.

    Attributes:
      folder: where they are.
      part: the folder as the config gives it, such as "JPEGImages".
      suffix: end of the file names that is not part of the common name.
      files: path of each, by the name that images and masks share (relative, without extension, see `key`).
    """

    folder: Path
    part: str
    suffix: str
    files: Mapping[str, Path]

    def find(self, text: str) -> str | None:
        """Return the common name that a text in a list means, or None.

        The text may be that name, or a path with or without extension and suffix, relative to the folder or to the data
        set, or absolute, in quotation marks, or with backslashes.
        """
        text = text.strip()
        for form in dict.fromkeys((text, text.strip("\"'"), text.strip("\"'").replace("\\", "/"))):
            for path in self._relative(form):
                name = key(without_extension(path))
                for candidate in (key(path), name, name.removesuffix(self.suffix)):
                    if candidate in self.files:
                        return candidate
        return None

    def _relative(self, path: str) -> list[str]:
        """Return what a path may mean relative to the folder, the most literal meaning first."""
        meanings = [path, os.path.normpath(path).lstrip("/") if path else path]
        if os.path.isabs(path):
            for base in (str(self.folder), os.path.realpath(self.folder)):
                if path.startswith(base.rstrip("/") + "/"):
                    meanings.insert(0, os.path.normpath(os.path.relpath(path, base)))
        # Relative to the data set, or absolute on another machine: what follows the folder's own name.
        marker = f"/{self.part.strip('/')}/"
        before, found, after = f"/{path}".rpartition(marker)
        return [*meanings, os.path.normpath(after)] if found and len(marker) > 2 and after else meanings


@dataclasses.dataclass(frozen=True)
class Entry:
    """What a line of a list means: names of image and mask, each None where there is none of the kind that it gives."""

    image: str | None
    mask: str | None


def read_entry(line: str, images: Named, masks: Named) -> Entry:
    """Find out which image, and which mask, a line of a list means.

    The whole line is the image's name if there is such an image, for names may have spaces. Otherwise the longest beginning
    that is one, up to a space, tab, comma or semicolon, is the image; the rest is the mask if it is a path. (VOC's lists by
    class have 1 or -1 there, which means nothing here.)
    """
    image = images.find(line)
    if image is not None:
        return Entry(image, image)
    for place in reversed([index for index, letter in enumerate(line) if letter in " \t,;"]):
        image, rest = images.find(line[:place]), line[place:].strip(" \t,;\r")
        if image is None:
            continue
        mask = masks.find(rest)
        if mask is None and not ("/" in rest or "\\" in rest or without_extension(rest.strip("\"'")) != rest.strip("\"'")):
            mask = image
        return Entry(image, mask)
    return Entry(None, None)
