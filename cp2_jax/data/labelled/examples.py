"""Labelled images: pairs of image and mask, from folders or from TFDS.

Nothing is ever left out: an image without a mask, a mask of another size or with an unknown label is one error that
names the file, for a model trained or scored on fewer images is another model or another score.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int16, UInt8
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax.data.images import decoding
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.labelled import transforms
from cp2_jax.data.labelled.pairs import FolderPairs, SegmentationError, TfdsPairs, find_pairs


def decode_mask(data: bytes, name: str) -> UInt8[np.ndarray, "height width"]:
    """Return a mask file's values: the indices of a palette PNG, the levels of a grey one.

    Raises:
      SegmentationError: if the file cannot be read, has colours, has 16 bits, or is a JPEG; the message names it.
    """
    try:
        with Image.open(io.BytesIO(data)) as header:
            mode, kind = header.mode, header.format
        if kind == "JPEG":
            raise SegmentationError(f"mask {name} is a JPEG, which changes labels; store it as PNG")
        if mode.startswith("I") or mode == "F":
            raise SegmentationError(f"mask {name} has 16 or 32 bits a pixel; labels are 8-bit: convert it")
        if mode not in ("P", "L", "1"):
            raise SegmentationError(
                f"mask {name} is an image of mode {mode}, not of labels; store class indices (grey or palette PNG)"
            )
        return decoding.decode_mask(data, name).astype(np.uint8)
    except SegmentationError:
        raise
    except Exception as error:
        raise SegmentationError(f"mask {name} cannot be read: {error}") from error


def label_table(
    num_classes: int, label_map: Sequence[tuple[int, int]] = (), ignore_label: int = 255
) -> Int16[np.ndarray, "256"]:
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
class Examples:
    """Decoded pairs with training labels.

    pairs: where they come from. table: see `label_table`. indices: those of `pairs` that are used, in order. advice: what
    to do about a value that `table` does not know.
    """

    pairs: FolderPairs | TfdsPairs
    table: np.ndarray
    indices: np.ndarray
    advice: str = "set data.num_classes or data.label_map"

    def __len__(self) -> int:
        return len(self.indices)

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask lie, for messages."""
        return self.pairs.places(int(self.indices[index]))

    def stem(self, index: int) -> str:
        """Return a name, unique in the split, for files made from the image."""
        return self.pairs.stem(int(self.indices[index]))

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored."""
        return self.pairs[int(self.indices[index])]

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width) from the mask's header alone."""
        return self.pairs.size(int(self.indices[index]))

    def load(self, index: int) -> tuple[transforms.Image, transforms.Mask]:
        """Return image, uint8 [height, width, 3] RGB, and training labels, uint8 [height, width].

        Raises:
          decode.UnreadableImage: naming the image.
          SegmentationError: naming the mask, for what `decode_mask` refuses, another size than the image's, or a value
            that `table` does not know.
        """
        image_data, mask_data = self.encoded(index)
        image_name, mask_name = self.places(index)
        image, mask = decoding.decode(image_data, image_name), decode_mask(mask_data, mask_name)
        if image.shape[:2] != mask.shape:
            raise SegmentationError(
                f"mask {mask_name} is {mask.shape[1]}x{mask.shape[0]} but image {image_name} is "
                f"{image.shape[1]}x{image.shape[0]}"
            )
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        if (unknown := present[self.table[present] < 0]).size:
            raise SegmentationError(
                f"mask {mask_name} has value {', '.join(map(str, unknown))}, which is neither a class nor ignored; "
                f"{self.advice}"
            )
        return image, self.table.astype(np.uint8)[mask]


def open_examples(
    data: ConfigDict, split: str, limit: float = 0, seed: int = 0, pairs: FolderPairs | None = None
) -> Examples:
    """Open one split of `config.data`.

    Args:
      data: source ("folder" or "tfds"), path, images, labels, image_suffix, label_suffix, classes, num_classes, label_map,
        ignore_label.
      split: see `find_pairs`, or a TFDS split.
      limit: 0 takes all images, below 1 that share of them (at least one), else that many: chosen at random by `seed`,
        the smaller choice always part of the larger, whatever else the run's seed is.
      pairs: the split's, if they are matched already.

    Raises:
      SegmentationError, SourceError: if the data is not there, or `limit` asks for more images than there are.
      KeyError: for an unknown source.
    """
    if not data.path:
        raise SegmentationError("data.path is empty; set it to the data set's folder")
    pairs = {
        "folder": lambda: find_pairs(data.path, split, **layout(data)) if pairs is None else pairs,
        "tfds": lambda: TfdsPairs(TfdsSource(data.path, split, ("image", "segmentation_mask"))),
    }[data.source]()
    indices = np.arange(len(pairs))
    if limit:
        count = max(1, round(limit * len(pairs))) if limit < 1 else int(limit)
        if count > len(pairs):
            raise SegmentationError(f"data.limit asks for {count} images, but {split} has {len(pairs)}")
        indices = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    table = label_table(data.num_classes, data.label_map, data.ignore_label)
    advice = "set data.num_classes or data.label_map"
    if data.classes:
        advice = f"{data.classes} names {data.num_classes} classes: add the missing ones, or set data.label_map"
    return Examples(pairs, table, indices, advice)


def layout(data: ConfigDict) -> dict[str, str]:
    """Return the arguments of `match_pairs` that say where things are, from `config.data`."""
    return {key: data[key] for key in ("images", "labels", "image_suffix", "label_suffix")}
