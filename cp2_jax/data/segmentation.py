"""Labelled images: pairs of image and mask, from folders or from TFDS.

Nothing is ever left out: an image without a mask, a mask of another size or with an unknown label is one error that
names the file, for a model trained or scored on fewer images is another model or another score.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax.data import decode, transforms
from cp2_jax.data.sources import SUFFIXES, SourceError, TfdsSource


class SegmentationError(SourceError):
    """Labelled data that cannot be used; the message names the file and what to do."""


def decode_mask(data: bytes, name: str) -> UInt8[np.ndarray, "height width"]:
    """Return a mask file's values: the indices of a palette PNG, the levels of a grey one.

    Raises:
      SegmentationError: if the file cannot be read, has colours or has 16 bits; the message names it.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception as error:
        raise SegmentationError(f"mask {name} cannot be read: {error}") from error
    if image.mode in ("P", "L", "1"):
        return np.array(image, np.uint8)
    if image.mode.startswith("I"):
        raise SegmentationError(f"mask {name} has 16 or 32 bits a pixel; labels are 8-bit: convert it")
    raise SegmentationError(
        f"mask {name} is an image of mode {image.mode}, not of labels; store class indices (grey or palette PNG)"
    )


def label_table(
    num_classes: int, label_map: Sequence[tuple[int, int]] = (), ignore_label: int = 255
) -> Int16[np.ndarray, 256]:
    """Return, int16 [256], the training label of each value that a mask may hold; -1 for a value that it must not hold.

    Values in [0, num_classes) and `ignore_label` stand for themselves unless `label_map`, pairs (value, label), says
    otherwise: ((11, 255),) ignores CamVid's void class, ((0, 255), (1, 0), (2, 1), ...) is ADE20K's shift.

    Raises:
      SegmentationError: if `label_map` maps to neither a class nor `ignore_label`, or there is no room for the latter.
    """
    if not 0 < num_classes <= ignore_label <= 255:
        raise SegmentationError(f"{num_classes} classes and ignored label {ignore_label} do not fit into 8 bits")
    table = np.full(256, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[ignore_label] = ignore_label
    for value, label in label_map:
        if not (0 <= value <= 255 and (0 <= label < num_classes or label == ignore_label)):
            raise SegmentationError(
                f"data.label_map has ({value}, {label}): needs a mask value in 0-255 and a label "
                f"in 0-{num_classes - 1} or {ignore_label}"
            )
        table[value] = label
    return table


@dataclasses.dataclass(frozen=True)
class FolderPairs:
    """Encoded pairs from two lists of files."""

    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        return self.images[index].read_bytes(), self.masks[index].read_bytes()

    def names(self, index: int) -> tuple[str, str]:
        return str(self.images[index]), str(self.masks[index])


@dataclasses.dataclass(frozen=True)
class TfdsPairs:
    """Encoded pairs from the features `image` and `segmentation_mask` of a TFDS split."""

    source: TfdsSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        record = self.source[index]
        return record["image"], record["segmentation_mask"]

    def names(self, index: int) -> tuple[str, str]:
        name = self.source.name(index)
        return f"{name}/image", f"{name}/segmentation_mask"


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


def find_pairs(
    root: str | Path,
    split: str,
    images: str = "images",
    labels: str = "labels",
    image_suffix: str = "",
    label_suffix: str = "",
) -> FolderPairs:
    """Match images and masks by name, whatever their extensions.

    Args:
      root: the data set.
      split: a sub-folder of both `images` and `labels` (at any depth below, as Cityscapes' cities), or a text file
        below `root` with one name a line (VOC's ImageSets/Segmentation/train.txt), relative to both.
      images, labels: folders below `root`.
      image_suffix, label_suffix: ends of the file names before the extension that are not part of the common name
        (Cityscapes: "_leftImg8bit", "_gtFine_labelIds"); files without them are passed over.

    Raises:
      SegmentationError: for a missing folder, an empty split, an image without a mask, a name in the split file without
        an image, or two files that only differ in their extension; the message names them.
    """
    root = Path(root).expanduser().absolute()
    listed = root / split if split.endswith(".txt") else None
    below = "" if listed else split
    image_files = _stems(root / images / below, image_suffix)
    mask_files = _stems(root / labels / below, label_suffix)
    if listed:
        if not listed.is_file():
            raise SegmentationError(f"no such split file: {listed}; set data.split or data.eval_split")
        # Some lists have image and mask, or a leading slash, on each line: the image's name is what counts.
        lines = [line.split()[0].lstrip("/") for line in listed.read_text().splitlines() if line.strip()]
        names = [str(Path(line).with_suffix("")) if Path(line).suffix.lower() in SUFFIXES else line for line in lines]
    else:
        names = list(image_files)
    if not names:
        raise SegmentationError(f"no image in {listed or root / images / below}")
    for name in names:
        if name not in image_files:
            raise SegmentationError(f"{listed} names {name}, but there is no such image in {root / images}")
        if name not in mask_files:
            raise SegmentationError(
                f"image {image_files[name]} has no mask: {root / labels / below / (name + label_suffix)}.png is missing"
            )
    return FolderPairs(tuple(image_files[n] for n in names), tuple(mask_files[n] for n in names))


@dataclasses.dataclass(frozen=True)
class Examples:
    """Decoded pairs with training labels.

    pairs: where they come from. table: see `label_table`. indices: those of `pairs` that are used, in order.
    """

    pairs: FolderPairs | TfdsPairs
    table: np.ndarray
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """Return where the image lies."""
        return self.pairs.names(int(self.indices[index]))[0]

    def stem(self, index: int) -> str:
        """Return a name for files made from the image: its own without folder and extension, or its number."""
        name = self.name(index)
        return Path(name).stem if isinstance(self.pairs, FolderPairs) else f"{int(self.indices[index]):06d}"

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) from the mask's header alone."""
        data, name = self.pairs[int(self.indices[index])][1], self.pairs.names(int(self.indices[index]))[1]
        try:
            with Image.open(io.BytesIO(data)) as mask:
                return mask.size[::-1]
        except Exception as error:
            raise SegmentationError(f"mask {name} cannot be read: {error}") from error

    def load(self, index: int) -> tuple[transforms.Image, transforms.Mask]:
        """Return image, uint8 [height, width, 3] RGB, and training labels, uint8 [height, width].

        Raises:
          decode.UnreadableImage: naming the image.
          SegmentationError: naming the mask, for what `decode_mask` refuses, another size than the image's, or a value
            that `table` does not know.
        """
        image_data, mask_data = self.pairs[int(self.indices[index])]
        image_name, mask_name = self.pairs.names(int(self.indices[index]))
        image, mask = decode.decode(image_data, image_name), decode_mask(mask_data, mask_name)
        if image.shape[:2] != mask.shape:
            raise SegmentationError(
                f"mask {mask_name} is {mask.shape[1]}x{mask.shape[0]} but image {image_name} is "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        if (unknown := present[self.table[present] < 0]).size:
            raise SegmentationError(
                f"mask {mask_name} has value {', '.join(map(str, unknown))}, which is neither a class nor ignored; "
                "set data.num_classes or data.label_map"
            )
        return image, self.table.astype(np.uint8)[mask]


def open_examples(data: ConfigDict, split: str, limit: float = 0, seed: int = 0) -> Examples:
    """Open one split of `config.data`.

    Args:
      data: source ("folder" or "tfds"), path, images, labels, image_suffix, label_suffix, num_classes, label_map,
        ignore_label.
      split: see `find_pairs`, or a TFDS split.
      limit: 0 takes all images, below 1 that share of them (at least one), else that many: chosen at random by `seed`,
        the smaller choice always part of the larger, whatever else the run's seed is.

    Raises:
      SegmentationError, SourceError: if the data is not there, or `limit` asks for more images than there are.
      KeyError: for an unknown source.
    """
    if not data.path:
        raise SegmentationError("data.path is empty; set it to the data set's folder")
    pairs = {
        "folder": lambda: find_pairs(
            data.path, split, data.images, data.labels, data.image_suffix, data.label_suffix
        ),
        "tfds": lambda: TfdsPairs(TfdsSource(data.path, split, ("image", "segmentation_mask"))),
    }[data.source]()
    indices = np.arange(len(pairs))
    if limit:
        count = max(1, round(limit * len(pairs))) if limit < 1 else int(limit)
        if count > len(pairs):
            raise SegmentationError(f"data.limit asks for {count} images, but {split} has {len(pairs)}")
        indices = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    return Examples(pairs, label_table(data.num_classes, data.label_map, data.ignore_label), indices)
