"""Masks that are pictures: the class of a pixel is said by its colour."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from cp2_jax.data import notices
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.images import formats, pixels

Color = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class ColorTable:
    """The mask value of each colour, for `values`.

    Attributes:
      packed: the colours as red · 65536 + green · 256 + blue, rising.
      values: of each; what a mask of class numbers would hold.
      problem: why colours cannot be told apart, "" where they can.
    """

    packed: Int[np.ndarray, " colors"]
    values: UInt8[np.ndarray, " colors"]
    problem: str = ""

    def value_of(self, color: Color) -> int | None:
        """Return the mask value of a colour, None for a colour that is not in the table."""
        number = (color[0] << 16) + (color[1] << 8) + color[2]
        place = int(np.searchsorted(self.packed, number))
        return int(self.values[place]) if place < len(self.packed) and self.packed[place] == number else None


def is_color(value: object) -> bool:
    """Say whether the first part of a pair in `data.label_map` is a colour: (red, green, blue)."""
    return isinstance(value, Sequence) and len(value) == 3 and all(isinstance(n, int) and 0 <= n <= 255 for n in value)


def color_table(
    class_colors: Sequence[Color],
    class_names: Sequence[str],
    label_map: Sequence[tuple],
    table: Int[np.ndarray, "256"],
) -> ColorTable | None:
    """Return the table of `config.data`, None where it says nothing of colours.

    Args:
      class_colors, class_names: of the classes.
      label_map: what `data.label_map` says of colours, such as ((224, 224, 192), 255), goes before the classes' colours.
      table: training label of each mask value (see `examples.label_table`). A colour gets a value that has its label, so
        that all that holds for masks of class numbers holds here.
    """
    labels: dict[Color, int] = {tuple(color): int(label) for color, label in label_map if is_color(color)}
    problem = ""
    for label, color in enumerate(map(tuple, class_colors)):
        first = labels.setdefault(color, label)
        if first != label and not any(is_color(given) and tuple(given) == color for given, _ in label_map):
            problem = f"classes {class_names[first]} and {class_names[label]} have the same colour {color}"
    if not labels:
        return None
    known = {color: np.flatnonzero(table == label) for color, label in labels.items()}
    values = {(r << 16) + (g << 8) + b: found[0] for (r, g, b), found in known.items() if found.size}
    order = sorted(values)
    return ColorTable(np.array(order, np.int32), np.array([values[number] for number in order], np.uint8), problem)


def values(image: Image.Image, data: bytes, name: str, table: ColorTable | None) -> UInt8[np.ndarray, "height width"]:
    """Return the mask values of a picture: those of its colours, or its own numbers where all three bands are one.

    OpenCV and many a labelling program write masks of class numbers as three equal bands. They are read as numbers where
    that is all they can mean: `table` lacks some of their levels of grey, and says the same of the others. A line says so
    once.

    Args:
      image: opened, in colours.
      data: what it was opened from.
      name: for messages.

    Raises:
      SegmentationError: it has colours and there is no table, a colour is not in it, or pixels are transparent or of more
        than 8 bits.
      UnreadableImage: the picture cannot be read.
    """
    no_labels = (
        f"mask {name} is an image of mode {image.mode}, not of labels; store class indices (grey or palette PNG), or, "
        "if colours say the class, give all classes theirs in classes.txt: name red green blue"
    )
    if image.mode not in ("RGB", "RGBA"):
        raise SegmentationError(no_labels)
    if table is not None and table.problem:
        raise SegmentationError(f"mask {name} has colours, but {table.problem}: give each its own")
    if pixels.depth(image, data)[0] > 8:
        raise SegmentationError(f"mask {name} has colours of more than 8 bits; store 8 bits")
    picture = np.asarray(formats.load(image, name))
    grey = bool((picture[..., 0] == picture[..., 1]).all() and (picture[..., 0] == picture[..., 2]).all())
    if table is None and not grey:
        raise SegmentationError(no_labels)
    if picture.shape[-1] == 4 and (picture[..., 3] != 255).any():
        raise SegmentationError(
            f"mask {name} has transparent pixels, whose class is not clear; store it without transparency"
        )
    return _numbers(picture[..., 0], name) if table is None else _by_color(picture, grey, name, table)


def _numbers(band: UInt8[np.ndarray, "height width"], name: str) -> UInt8[np.ndarray, "height width"]:
    notices.say_once(
        f"mask {name} is grey in three equal bands; its levels are class numbers, here and in other masks of this kind",
        "equal bands",
    )
    return np.ascontiguousarray(band)


def _by_color(
    picture: UInt8[np.ndarray, "height width bands"], grey: bool, name: str, table: ColorTable
) -> UInt8[np.ndarray, "height width"]:
    red, green, blue = (picture[..., band].astype(np.int32) for band in range(3))
    packed = (red << 16) + (green << 8) + blue
    place = np.searchsorted(table.packed, packed).clip(max=len(table.packed) - 1)
    unknown = table.packed[place] != packed
    if not unknown.any():
        return table.values[place]
    if not grey:
        raise SegmentationError(f"mask {name} has {_told(packed[unknown])}")
    if ((other := table.values[place]) != red)[~unknown].any():
        level = int(red[~unknown & (other != red)][0])
        raise SegmentationError(
            f"mask {name} is grey in three equal bands, of which {level} is one class as a colour and another as a number: "
            "store one band, if it holds class numbers"
        )
    return _numbers(picture[..., 0], name)


def _told(unknown: Int[np.ndarray, " pixels"]) -> str:
    found, counts = np.unique(unknown, return_counts=True)
    number = int(found[counts.argmax()])
    color = (number >> 16, number >> 8 & 255, number & 255)
    if len(found) > 8:
        return (
            f"{len(found)} colours that are no class's, such as {color}; so many show that it was resized with smoothing, "
            "stored as JPEG once, or is a picture"
        )
    others = f" (and {len(found) - 1} more colours)" if len(found) > 1 else ""
    return (
        f"the colour {color}{others} in {len(unknown)} pixels, which is no class's; add the class, or set "
        f"data.label_map=(({color}, 255),) to ignore it"
    )
