"""Pairs of image and mask that are records of a file of many."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cp2_jax.data import notices, parquet, shards, tar
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.images.formats import SUFFIXES
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.labelled.masks import header_size
from cp2_jax.data.labelled.pairs import by_name, share_folder
from cp2_jax.paths import AnyPath


@dataclasses.dataclass(frozen=True)
class TfdsPairs:
    """Encoded pairs from the features `image` and `segmentation_mask` of a TFDS split, and `name` where it has one."""

    source: TfdsSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored."""
        record = self.source[index]
        return record["image"], record["segmentation_mask"]

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask lie, for messages."""
        place, name = self.source.name(index), self._name(index)
        place = f"{place} ({name})" if name else place
        return f"{place}/image", f"{place}/segmentation_mask"

    def stem(self, index: int) -> str:
        """Return the name of files made from the image: that under which it was prepared, or its number."""
        return self._name(index) or f"{index:06d}"

    def size(self, index: int, turn: bool = True) -> tuple[int, int]:
        """Return (height, width) from the mask's header; see `masks.header_size`.

        Raises:
          SegmentationError: naming a mask that cannot be read.
        """
        return header_size(self[index][1], self.places(index)[1], turn)

    def _name(self, index: int) -> str:
        name = self.source.record(index).get("name") or b""
        return name.decode() if isinstance(name, bytes) else str(name)


def _mask_of(read: Any, index: int) -> bytes:
    """Read a mask; an error names it as one."""
    try:
        return read(index)
    except UnreadableImage as error:
        raise SegmentationError(f"mask {error.name} cannot be read: {error.reason}") from error


@dataclasses.dataclass(frozen=True)
class TarPairs:
    """Encoded pairs that are members of tar files; `names` are what image and mask of a pair have in common."""

    images: tar.Members
    masks: tar.Members
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored.

        Raises:
          UnreadableImage, SegmentationError: naming an image, or a mask, that cannot be read.
        """
        return self.images.read(index), _mask_of(self.masks.read, index)

    def expect(self, index: int) -> None:
        """Say that a pair will be asked for soon, see `files.expect`."""
        self.images.expect(index)
        self.masks.expect(index)

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask are to be found, "FILE.tar/MEMBER"."""
        return self.images.name(index), self.masks.name(index)

    def stem(self, index: int) -> str:
        """Return the name of files made from the image: with the shard's, for another may have the same names."""
        if len(self.images.shards) == 1:
            return self.names[index]
        return f"{self._stems[self.images.shard[index]]}/{self.names[index]}"

    @functools.cached_property
    def _stems(self) -> list[str]:
        return _stems(self.images.shards)

    def size(self, index: int, turn: bool = True) -> tuple[int, int]:
        """Return (height, width) from the mask's header; see `masks.header_size`.

        Raises:
          SegmentationError: naming a mask that cannot be read.
        """
        return header_size(_mask_of(self.masks.read, index), self.places(index)[1], turn)


def _stems(given: Sequence[AnyPath]) -> list[str]:
    """Return the files' names without extension, with folders where they are in several: all different."""
    return [os.path.splitext(name)[0] for name in shards.short_names(given, shards.common_folder(given))]


def _refuse_twice(given: Sequence[AnyPath]) -> None:
    """Refuse a file that is given twice: its images would count twice in a score."""
    for path, count in collections.Counter(map(str, given)).items():
        if count > 1:
            raise SegmentationError(f"{path} is given {count} times; name it once (data.path, data.split)")


def open_tar_pairs(path: str | os.PathLike | Sequence[str], layout: Mapping[str, str]) -> TarPairs:
    """Match images and masks that lie in the same tar file, by name.

    A pair is NAME.jpg and NAME.png, or NAME with `image_suffix` and `label_suffix`, as members of one file. If members lie
    in the folders `images` and `labels`, these are matched as in a folder.

    Args:
      path: see `shards.find_files`.
      layout: `images`, `labels`, `image_suffix`, `label_suffix`; see `pairs.match_pairs`.

    Raises:
      SegmentationError: for an image without a mask, or two members that only differ in their extension, naming the file;
        for a shard that is given twice.
      SourceError: see `tar.open_members`.
    """
    members = tar.open_members(path)
    _refuse_twice(members.shards)
    names = members.all_names()
    images, masks, common = [], [], []
    of_shards = np.split(np.arange(len(members)), np.flatnonzero(np.diff(members.shard)) + 1)
    for numbers in of_shards:
        inside = {
            names[number]: int(number) for number in numbers if os.path.splitext(names[number])[1].lower() in SUFFIXES
        }
        if not inside:
            continue
        shard = members.shards[members.shard[numbers[0]]]
        found, labels = _in_shard(shard, list(inside), layout)
        if alone := [str(mask) for name, mask in labels.items() if name not in found]:
            notices.say_once(f"{len(alone)} masks of {shard} have no image and are not used, such as {alone[0]}", "alone")
        for name, image in found.items():
            if name not in labels:
                wanted = f"{name}{layout['label_suffix']}.png"
                if str(image) == wanted:  # a PNG alone may be either
                    raise SegmentationError(f"{shard}/{image} is alone: there is no image, or no mask, of the same name")
                raise SegmentationError(
                    f"image {shard}/{image} has no mask: there is no member {wanted} in this file{_alike(image, inside)}"
                )
            images.append(inside[str(image)])
            masks.append(inside[str(labels[name])])
            common.append(name)
    if not common:
        raise SegmentationError(
            f"no pair of image and mask in {shards.all_of(members.shards)}; set data.path and data.split"
        )
    shards.say_empty(members.shards, members.without(np.array(images)), "pair of image and mask")
    return TarPairs(members.chosen(np.array(images)), members.chosen(np.array(masks)), tuple(common))


def _alike(image: Path, inside: Iterable[str]) -> str:
    """Return which member is probably the mask of an image, and what to set for it to be found; "" if there is none."""
    base = image.name.partition(".")[0]
    other = next((one for one in inside if one != str(image) and Path(one).name.partition(".")[0] == base), "")
    keys = (
        "data.images and data.labels" if Path(other).parent != image.parent else "data.image_suffix and data.label_suffix"
    )
    return f" ({other} is there: set {keys})" if other else ""


def _in_shard(shard: AnyPath, inside: list[str], layout: Mapping[str, str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Return images and masks of a tar file by name: paths are names of members."""
    suffixes = layout["image_suffix"], layout["label_suffix"]
    parts = [f"{layout[key].strip('/')}/" for key in ("images", "labels")]
    sorts = [[name for name in inside if name.startswith(part)] for part in parts]
    if parts[0] == parts[1] or "/" in parts or not all(sorts):
        return tuple(by_name(Path(), paths, s) for paths, s in zip(share_folder(inside, *suffixes), suffixes, strict=True))
    short = ([name[len(part) :] for name in names] for part, names in zip(parts, sorts, strict=True))
    return tuple(by_name(Path(part), paths, s) for part, paths, s in zip(parts, short, suffixes, strict=True))


@dataclasses.dataclass(frozen=True)
class ParquetPairs:
    """Encoded pairs that stand in two columns of Parquet files."""

    images: parquet.Column
    masks: parquet.Column

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """File and row of each pair, which a resumed run compares."""
        return tuple(self.images.short_names())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored.

        Raises:
          UnreadableImage, SegmentationError: naming a row whose image, or mask, cannot be read.
        """
        return self.images.read(index), _mask_of(self.masks.read, index)

    def expect(self, index: int) -> None:
        """Say that a pair will be asked for soon, see `files.expect`."""
        self.images.expect(index)
        self.masks.expect(index)

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask are to be found, "FILE.parquet#ROW/COLUMN"."""
        return tuple(f"{column.place(index)}/{column.name}" for column in (self.images, self.masks))

    def stem(self, index: int) -> str:
        """Return the name of files made from the image: file and row."""
        file, _, row = self.names[index].rpartition("#")
        return f"{os.path.splitext(file)[0]}_{int(row):06d}"

    def size(self, index: int, turn: bool = True) -> tuple[int, int]:
        """Return (height, width) from the mask's header; see `masks.header_size`.

        Raises:
          SegmentationError: naming a mask that cannot be read.
        """
        return header_size(_mask_of(self.masks.read, index), self.places(index)[1], turn)


def open_parquet_pairs(path: str | os.PathLike | Sequence[str], image_column: str, mask_column: str) -> ParquetPairs:
    """Open images and masks that stand in two columns of the same rows.

    Args:
      path: see `shards.find_files`.

    Raises:
      SegmentationError: if a file is given twice.
      SourceError: see `parquet.open_column`.
    """
    images = parquet.open_column(path, image_column, "data.image_column")
    _refuse_twice(images.files)
    return ParquetPairs(images, parquet.open_column(path, mask_column, "data.mask_column"))
