"""Encoded pairs of image and mask: matched by name in folders, or the records of a TFDS data set."""

from __future__ import annotations

import collections
import dataclasses
import functools
import io
from pathlib import Path

from PIL import Image

from cp2_jax.data.images.sources import SUFFIXES, SourceError, TfdsSource


class SegmentationError(SourceError):
    """Labelled data that cannot be used; the message names the file and what to do."""


@dataclasses.dataclass(frozen=True)
class FolderPairs:
    """Encoded pairs from two lists of files; `names` are what image and mask have in common, without extension."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        return self.images[index].read_bytes(), self.masks[index].read_bytes()

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask lie, for messages."""
        return str(self.images[index]), str(self.masks[index])

    @functools.cached_property
    def _ambiguous(self) -> frozenset[str]:
        counted = collections.Counter(Path(name).name for name in self.names)
        return frozenset(name for name, count in counted.items() if count > 1)

    def stem(self, index: int) -> str:
        """Return the name of files made from the image: its own, with its folders where another has the same."""
        name = self.names[index]
        return name if Path(name).name in self._ambiguous else Path(name).name

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) from the mask's header alone."""
        return _header_size(self.masks[index], str(self.masks[index]))


@dataclasses.dataclass(frozen=True)
class TfdsPairs:
    """Encoded pairs from the features `image` and `segmentation_mask` of a TFDS split, and `name` where it has one."""

    source: TfdsSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
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

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) from the mask's header alone."""
        return _header_size(io.BytesIO(self[index][1]), self.places(index)[1])

    def _name(self, index: int) -> str:
        name = self.source.records[index].get("name", b"")
        return name.decode() if isinstance(name, bytes) else str(name)


def _header_size(file, name: str) -> tuple[int, int]:
    try:
        with Image.open(file) as mask:
            return mask.size[::-1]
    except Exception as error:
        raise SegmentationError(f"mask {name} cannot be read: {error}") from error


def match_pairs(
    root: str | Path,
    split: str,
    images: str = "images",
    labels: str = "labels",
    image_suffix: str = "",
    label_suffix: str = "",
) -> tuple[FolderPairs, list[str]]:
    """Match images and masks by name, whatever their extensions.

    Args:
      root: the data set.
      split: a sub-folder of both `images` and `labels` (at any depth below, as Cityscapes' cities), or a text file
        below `root` with one name a line (VOC's ImageSets/Segmentation/train.txt), relative to both.
      images, labels: folders below `root`; with "{split}" in them, the split's name goes there (SegNet's CamVid has
        train and trainannot: "{split}" and "{split}annot").
      image_suffix, label_suffix: ends of the file names before the extension that are not part of the common name
        (Cityscapes: "_leftImg8bit", "_gtFine_labelIds"); files without them are passed over.

    Returns:
      The pairs, and a line for each image without a mask and each name in the split file without an image or given
      twice.

    Raises:
      SegmentationError: for a missing folder or split file, an empty split, or two files that only differ in their
        extension; the message names them.
    """
    root = Path(root).expanduser().absolute()
    listed = root / split if split.endswith(".txt") else None
    folders = [root / _folder(part, "" if listed else split) for part in (images, labels)]
    image_files, mask_files = (_stems(f, s) for f, s in zip(folders, (image_suffix, label_suffix), strict=True))
    problems = []
    if listed:
        names = _listed_names(listed)
        problems = [f"{listed} names {n} {count} times" for n, count in collections.Counter(names).items() if count > 1]
    else:
        names = list(image_files)
    if not names:
        raise SegmentationError(f"no image in {listed or folders[0]}")
    paired = []
    for name in dict.fromkeys(names):
        if name not in image_files:
            problems.append(f"{listed} names {name}, but there is no such image in {folders[0]}")
        elif name not in mask_files:
            wanted = folders[1] / (name + label_suffix)
            problems.append(f"image {image_files[name]} has no mask: {wanted}.png is missing")
        else:
            paired.append(name)
    pairs = FolderPairs(tuple(image_files[n] for n in paired), tuple(mask_files[n] for n in paired), tuple(paired))
    return pairs, problems


def find_pairs(root: str | Path, split: str, **layout: str) -> FolderPairs:
    """Return the pairs of `match_pairs`, which has the same arguments, if all are complete.

    Raises:
      SegmentationError: as `match_pairs`, and for the first of the problems that it finds.
    """
    pairs, problems = match_pairs(root, split, **layout)
    if problems:
        more = f" (and {len(problems) - 1} more problems; prepare_data.py --check lists them)" if problems[1:] else ""
        raise SegmentationError(problems[0] + more)
    return pairs


def _folder(part: str, split: str) -> str:
    return part.replace("{split}", split) if "{split}" in part else f"{part}/{split}"


def _listed_names(listed: Path) -> list[str]:
    if not listed.is_file():
        raise SegmentationError(f"no such split file: {listed}; set data.split or data.eval_split")
    # Some lists have image and mask, or a leading slash, on each line: the image's name is what counts.
    lines = [line.split()[0].lstrip("/") for line in listed.read_text().splitlines() if line.strip()]
    return [str(Path(line).with_suffix("")) if Path(line).suffix.lower() in SUFFIXES else line for line in lines]


def _stems(folder: Path, suffix: str) -> dict[str, Path]:
    """Return the images below a folder by relative path without extension and without `suffix`."""
    if not folder.is_dir():
        raise SegmentationError(f"no such folder: {folder}; set data.path, data.images and data.labels")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not stem.endswith(suffix):
            continue
        stem = stem.removesuffix(suffix)
        if stem in found:
            raise SegmentationError(f"{found[stem]} and {path} differ only in their extension; keep one of them")
        found[stem] = path
    return found
