"""Images in tar shards, as WebDataset and ImageNet's own archives have them."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from cp2_jax.data import listing, notices, shards, tar, walking
from cp2_jax.data.errors import SourceError
from cp2_jax.data.images.formats import SUFFIXES


class TarSource:
    """The images in tar files, in the order of the files and of their members; or those that a list names.

    Any image is one read away (see `tar.open_members`), so that order, resumption and replacement are those of a folder.
    Members are chosen by suffix; others, such as labels, are counted in one warning.

    Attributes:
      root: the folder that all files are in.

    Args:
      path: see `shards.find_files`.
      listed: a text file with a member a line, "FILE.tar/MEMBER", or MEMBER alone where only one file has it; empty: all.

    Raises:
      SourceError: for files that are missing, compressed or cut off, if there is no image, or for a list that names what is
        not there.
    """

    def __init__(self, path: str | os.PathLike | Sequence[str | os.PathLike], listed: str | os.PathLike = ""):
        members = tar.open_members(path)
        self.root = shards.common_folder(members.shards)
        suffixes = [os.path.splitext(name)[1].lower() for name in members.all_names()]
        images = np.flatnonzero([suffix in SUFFIXES for suffix in suffixes])
        others = collections.Counter(suffix or "no suffix" for suffix in suffixes if suffix not in SUFFIXES)
        remark = walking.remark(os.fspath(path) if isinstance(path, str | os.PathLike) else self.root, others)
        if not images.size:
            raise SourceError(
                f"no image found in {shards.all_of(members.shards)}{f'; {remark}' if remark else ''}; set data.path"
            )
        if remark:
            notices.say_once(remark)
        shards.say_empty(members.shards, members.without(images), "image")
        self._members = members.chosen(images) if len(images) < len(members) else members
        half = suffixes.count(".png") * 2 == images.size
        if half and not listed and (masks := _like_masks(self._members)):
            notices.say_once(
                f"{len(masks)} PNGs have the names of JPEGs beside them, such as {self.name(masks[0])}: they look like "
                "masks, and are taken for photographs. Name the photographs alone in a list (data.list)"
            )
        if listed:
            roots = shards.roots(path, self.root)
            path_of_list, lines = listing.read_list(listed, roots[0])
            names = [self.name(index) for index in range(len(self))]
            inside = self._members.all_names()
            self._members = self._members.chosen(listing.find(path_of_list, lines, roots, names, inside))

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> bytes:
        """Return the encoded bytes of an image.

        Raises:
          UnreadableImage: if they cannot be read.
          SourceError: if the file was changed after it was opened.
        """
        return self._members.read(index)

    def expect(self, index: int) -> None:
        """Say that an image will be asked for soon, see `files.expect`."""
        self._members.expect(index)

    def names(self) -> Sequence[str]:
        """Return "FILE.tar/MEMBER" of all images, files relative to `root`: whether a data set is the one that it was."""
        shard = shards.short_names(self._members.shards, self.root)
        inside = zip(self._members.shard.tolist(), self._members.all_names(), strict=True)
        return [f"{shard[number]}/{member}" for number, member in inside]

    def name(self, index: int) -> str:
        """Return where an image is to be found, "FILE.tar/MEMBER"."""
        return self._members.name(index)


def _like_masks(members: tar.Members) -> list[int]:
    """Return which images are probably the masks of others: PNGs, if each has a JPEG of its name in its file, and each
    JPEG one of them."""
    names = [os.path.splitext(os.path.basename(name)) for name in members.all_names()]
    kinds = [suffix.lower() for _, suffix in names]
    found = {".png": [], ".jpg": []}
    for index, (shard, (stem, _), kind) in enumerate(zip(members.shard.tolist(), names, kinds, strict=True)):
        found[".png" if kind == ".png" else ".jpg"].append(((shard, stem), index))
    photos, masks = ({key for key, _ in found[kind]} for kind in (".jpg", ".png"))
    jpegs = all(kind in (".png", ".jpg", ".jpeg") for kind in kinds)
    return [index for _, index in found[".png"]] if jpegs and photos == masks else []


def open_tar(where: Any) -> TarSource:
    """Open the source that `where` (see `sources.Where`) describes.

    Raises:
      SourceError: see `TarSource`.
    """
    return TarSource(where.path, where.list)
