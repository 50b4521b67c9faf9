"""Labelled images: pairs of image and mask, from folders or from TFDS.

Nothing is ever left out: an image without a mask, a mask of another size or with an unknown label is one error that
names the file, for a model trained or scored on fewer images is another model or another score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int16
from ml_collections import ConfigDict

from cp2_jax.data import notices
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.images import decoding
from cp2_jax.data.labelled import survey, transforms
from cp2_jax.data.labelled.colors import ColorTable, color_table, is_color
from cp2_jax.data.labelled.masks import Mask, read_mask
from cp2_jax.data.labelled.options import limited
from cp2_jax.data.labelled.pairs import find_pairs
from cp2_jax.data.labelled.sources import layout, open_pairs

__all__ = [
    "Examples",
    "SegmentationError",
    "find_pairs",
    "label_table",
    "layout",
    "open_examples",
]


def label_table(
    num_classes: int, label_map: Sequence[tuple[int, int]] = (), ignore_label: int = 255
) -> Int16[np.ndarray, "256"]:
    """Return, int16 [256], the training label of each value that a mask may hold; -1 for a value that it must not hold.

    Values in [0, num_classes) and `ignore_label` keep their meaning unless `label_map`, pairs (value, label), says
    otherwise: ((11, 255),) ignores CamVid's void class, ((0, 255), (1, 0), (2, 1), ...) is ADE20K's shift. Pairs (colour,
    label) are for masks of colours and change nothing here.

    Raises:
      SegmentationError: if `label_map` maps to neither a class nor `ignore_label`, or a value to two labels; or there is
        no room for `ignore_label`.
    """
    if not 0 < num_classes <= ignore_label <= 255:
        raise SegmentationError(f"{num_classes} classes and ignored label {ignore_label} do not fit into 8 bits")
    table = np.full(256, -1, np.int16)
    table[:num_classes] = np.arange(num_classes)
    table[ignore_label] = ignore_label
    given: dict[int | tuple, int] = {}
    for pair in label_map if isinstance(label_map, Sequence) else (label_map,):
        two = isinstance(pair, Sequence) and len(pair) == 2 and isinstance(pair[1], int)
        if not (two and (isinstance(pair[0], int) or is_color(pair[0]))):
            raise SegmentationError(
                f"data.label_map has {pair}: give pairs (value in the mask, label), such as ((255, 1),), or for masks in "
                "colours (colour, label), such as (((224, 224, 192), 255),)"
            )
        value, label = pair
        of_color = is_color(value)  # which `colors.color_table` reads
        if not ((of_color or 0 <= value <= 255) and (0 <= label < num_classes or label == ignore_label)):
            raise SegmentationError(
                f"data.label_map has ({value}, {label}): needs a mask value in 0-255 and a label "
                f"in 0-{num_classes - 1} or {ignore_label}"
            )
        value = tuple(value) if of_color else value
        if given.setdefault(value, label) != label:
            raise SegmentationError(f"data.label_map gives the mask value {value} two labels, {given[value]} and {label}")
        if not of_color:
            table[value] = label
    return table


@dataclasses.dataclass(frozen=True)
class Examples:
    """Decoded pairs with training labels.

    Attributes:
      pairs: where they come from, see `sources`.
      table: see `label_table`.
      indices: those of `pairs` that are used, in order.
      advice: what to do about a value that `table` does not know.
      value_range, exif: see `LabelledOptions`.
      palettes: those of some masks of the split; None: palettes are not compared.
      colors: the table of masks that are pictures; None: they are refused.
    """

    pairs: Any
    table: np.ndarray
    indices: np.ndarray
    advice: str = "set data.num_classes or data.label_map"
    value_range: tuple[float, ...] = ()
    exif: bool = True
    palettes: survey.Palettes | None = None
    colors: ColorTable | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask lie, for messages."""
        return self.pairs.places(int(self.indices[index]))

    def stem(self, index: int) -> str:
        """Return a name, unique in the split, for files made from the image."""
        return self.pairs.stem(int(self.indices[index]))

    def names(self) -> list[str]:
        """Return the names of the pairs that are used; none where the records of a data set have no names."""
        every = getattr(self.pairs, "names", ())
        return [every[index] for index in self.indices] if every else []

    def encoded(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored.

        Raises:
          UnreadableImage: naming an image that cannot be read.
          SegmentationError: naming a mask that cannot be read.
        """
        return self.pairs[int(self.indices[index])]

    def expect(self, index: int) -> None:
        """Say that a pair will be loaded soon; those in buckets are asked for now."""
        if hasattr(self.pairs, "expect"):
            self.pairs.expect(int(self.indices[index]))

    def size(self, index: int) -> tuple[int, int]:
        """Return (height, width), read from the mask's header only.

        Raises:
          SegmentationError: naming a mask that cannot be read.
        """
        return self.pairs.size(int(self.indices[index]), self.exif)

    def load(self, index: int) -> tuple[transforms.Image, transforms.Mask]:
        """Return an image and its labels; errors as `read`.

        Returns:
          The image, uint8 [height, width, 3] RGB, and training labels, uint8 [height, width].
        """
        image, mask, _ = self.read(index)
        return image, self.table.astype(np.uint8)[mask.values]

    def read(self, index: int) -> tuple[transforms.Image, Mask, Int[np.ndarray, "256"]]:
        """Return an image, its mask as stored, and the number of pixels of each of the mask's values.

        Raises:
          UnreadableImage: naming the image.
          SegmentationError: naming the mask, for what `read_mask` refuses, another size than the image's, a value that
            `table` does not know, or a palette of another order than those of the other masks.
        """
        image_data, mask_data = self.encoded(index)
        image_name, mask_name = self.places(index)
        image = decoding.decode(image_data, image_name, self.value_range, self.exif)
        mask = read_mask(mask_data, mask_name, self.exif, self.colors)
        if image.shape[:2] != mask.values.shape:
            raise SegmentationError(
                f"mask {mask_name} is {mask.values.shape[1]}x{mask.values.shape[0]} but image {image_name} is "
                f"{image.shape[1]}x{image.shape[0]}{self._turned(image_data, image.shape[:2] == mask.values.shape[::-1])}"
            )
        self._remark_on_orientation(image_data, image_name, mask_data)
        pixels = np.bincount(mask.values.ravel(), minlength=256)
        present = np.flatnonzero(pixels)
        if (unknown := present[self.table[present] < 0]).size:
            raise SegmentationError(
                f"mask {mask_name} has value {_listed(unknown)}; {self.advice}{self._from_one(unknown)}"
            )
        if self.palettes is not None:
            if problem := self.palettes.conflict(survey.used_colors(mask, present), mask_name):
                raise SegmentationError(problem)
        return image, mask, pixels

    def _from_one(self, unknown: np.ndarray) -> str:
        """Return what to set if the masks count their classes from 1, as a single value just above the classes suggests."""
        count = int(np.argmax(self.table < 0))
        if unknown.tolist() != [count] or self.table[:count].tolist() != list(range(count)):
            return ""
        ignored = int(self.table.max())
        pairs = [(0, ignored), *((label + 1, label) for label in range(min(count, 3)))]
        listed = ", ".join(map(str, pairs)) + (", …" if count > 3 else "")
        return f"; if they count from 1 and 0 is to be ignored (reduce_zero_label), data.label_map=({listed})"

    def _turned(self, image_data: bytes, swapped: bool) -> str:
        """Return what to do where the sizes differ because EXIF turns the image but not the mask."""
        turned = decoding.orientation(image_data) if self.exif and swapped else 1
        if turned < 5:
            return ""
        return (
            f": the photo is turned by its EXIF orientation ({turned}), its mask is not; set data.exif=False if all masks "
            "are drawn on the photos as stored"
        )

    def _remark_on_orientation(self, image_data: bytes, image_name: str, mask_data: bytes) -> None:
        """Say once where EXIF turns the image but not the mask, and the sizes do not show whether that is right."""
        if not self.exif or image_data[:2] == b"\xff\xd8" and not decoding.may_be_turned(image_data):
            return
        turned = decoding.orientation(image_data)
        if turned == 1 or decoding.orientation(mask_data) != 1:
            return
        height, width = decoding.upright_size(image_data, image_name)
        if turned < 5 or height == width:
            notices.say_once(
                f"{image_name} is turned by its EXIF orientation ({turned}), and the size of its mask does not say "
                "whether the mask is for the photo as it is shown or as stored; in the second case set data.exif=False",
                "turned photo",
            )


def _listed(unknown: np.ndarray) -> str:
    shown = ", ".join(map(str, unknown[:8]))
    if len(unknown) <= 8:
        return f"{shown}, which is neither a class nor ignored"
    return (
        f"{shown} and {len(unknown) - 8} more, which are neither classes nor ignored (so many values show that "
        "the mask was resized with smoothing, stored as JPEG once, or is a picture)"
    )


def open_examples(data: ConfigDict, split: str, limit: float = 0, seed: int = 0, pairs: Any = None) -> Examples:
    """Open one split of `config.data`, and look at some of its masks.

    Args:
      data: source, path and what that source needs (see `sources`), classes, num_classes, class_names, label_map,
        ignore_label, value_range, exif.
      split: see `pairs.match_pairs`, or a TFDS split.
      limit: 0 takes all images, up to 1 that share of them (at least one), else that many: chosen at random by `seed`,
        the smaller choice is always part of the larger, and does not depend on the run's own seed.
      pairs: the split's, if they are matched already; their masks are not looked at then.

    Raises:
      SegmentationError, SourceError: if the data is not there, `limit` asks for more images than there are, or the masks
        cannot mean what the config says (see `survey.look`).
    """
    given = pairs is not None
    pairs = pairs if given else open_pairs(data, split)
    indices = np.arange(len(pairs))
    if limit:
        count = limited(limit, len(pairs), split)
        indices = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    table = label_table(data.num_classes, data.label_map, data.ignore_label)
    advice = "set data.num_classes or data.label_map"
    if data.classes:
        advice = f"{data.classes} names {data.num_classes} classes: add the missing ones, or set data.label_map"
    palettes, names = None, tuple(getattr(data, "class_names", ()))
    colors = color_table(getattr(data, "class_colors", ()), names, data.label_map, table)
    if not given:
        confirmed = data.ignore_label in [value for value, _ in data.label_map]
        palettes = survey.look(pairs, table, names, data.ignore_label, split, confirmed, colors)
    value_range, exif = tuple(getattr(data, "value_range", ())), getattr(data, "exif", True)
    return Examples(pairs, table, indices, advice, value_range, exif, palettes, colors)
