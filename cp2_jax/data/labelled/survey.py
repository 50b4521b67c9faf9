"""What the masks of a split have in common: signs that their values do not mean what the config says."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Int

from cp2_jax.data import notices
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.labelled.colors import Color, ColorTable
from cp2_jax.data.labelled.masks import Mask, read_mask

SAMPLES = 64


def used_colors(mask: Mask, present: Int[np.ndarray, " values"]) -> dict[int, Color]:
    """Return the palette's colour of each value that a mask has, without colours that several of the values share.

    Args:
      present: the values that occur.
    """
    if mask.palette is None:
        return {}
    colors = {int(value): tuple(map(int, mask.palette[value])) for value in present if value < len(mask.palette)}
    shared = [color for color in set(colors.values()) if list(colors.values()).count(color) > 1]
    return {value: color for value, color in colors.items() if color not in shared}


@dataclasses.dataclass
class Palettes:
    """The palettes of the masks seen so far: value and mask in which a colour was met, colour and mask of a value."""

    by_color: dict[Color, tuple[int, str]] = dataclasses.field(default_factory=dict)
    by_value: dict[int, tuple[Color, str]] = dataclasses.field(default_factory=dict)

    def conflict(self, colors: dict[int, Color], place: str) -> str:
        """Return what is wrong if a colour means another value in this mask than in an earlier one, else ""."""
        for value, color in colors.items():
            known, where = self.by_color.get(color, (value, ""))
            if known != value:
                return (
                    f"colour {color} is value {known} in the palette of mask {where} but value {value} in mask {place}: "
                    "the order of their palettes differs, so that values do not say the class; give all masks one palette"
                )
        return ""

    def add(self, colors: dict[int, Color], place: str) -> None:
        """Remember a mask's colours; say once if a value has changed its colour."""
        for value, color in colors.items():
            before, where = self.by_value.setdefault(value, (color, place))
            self.by_color.setdefault(color, (value, place))
            if before != color:
                notices.say_once(
                    f"value {value} has colour {before} in the palette of mask {where} but {color} in mask {place}; values "
                    "are taken for the class, not colours: look whether that is right",
                    "palette colours",
                )


def remark_on_other_order(
    colors: dict[int, Color],
    table: Int[np.ndarray, "256"],
    names: Sequence[str],
    color_table: ColorTable | None,
    place: str,
) -> None:
    """Say once if a palette has a class's colour at the value of another class: the class file may be in another order.

    Args:
      colors: see `used_colors`.
      table: training label of each value.
      names: of the classes.
      color_table: of the classes' colours.
      place: of the mask.
    """
    if color_table is None or color_table.problem:
        return
    for value, color in colors.items():
        meant, label = color_table.value_of(color), int(table[value])
        if meant is None or not 0 <= label < len(names) or table[meant] == label:
            continue
        other = names[table[meant]] if table[meant] < len(names) else "ignored pixels"
        notices.say_once(
            f"value {value}, which is class {names[label]}, has the colour {color} of {other} in the palette of mask "
            f"{place}: look whether the classes are listed in the order of the masks' values, which say the class",
            "palette and class colours",
        )
        return


def only_one_class(pixels: Int[np.ndarray, "256"], names: Sequence[str], ignore_label: int, split: str, masks: str) -> str:
    """Return a warning if all labelled pixels are of one class, else "".

    Args:
      pixels: number of pixels of each label after mapping, [256].
      names: of the classes.
      masks: which masks were counted, such as "all 40 masks".
    """
    labelled = np.flatnonzero(pixels[: len(names)])
    ignored = int(pixels[ignore_label])
    if len(labelled) > 1 or not pixels.sum():
        return ""
    have = f"only {names[labelled[0]]} is" if len(labelled) else "nothing is"
    absent = [name for label, name in enumerate(names) if label not in labelled]
    text = f"{split}: {have} labelled in {masks}, no pixel is {' or '.join(absent[:5])}"
    if not ignored:
        return text
    share = 100 * ignored / int(pixels.sum())
    label = list(names).index(absent[0])
    return (
        f"{text}, and {ignore_label} (ignored) covers {share:.1f}%: is {ignore_label} the class {absent[0]}? Then set "
        f"data.label_map=(({ignore_label}, {label}),) with data.ignore_label={ignore_label - 1}; if it is to be ignored, "
        f"set data.label_map=(({ignore_label}, {ignore_label}),)"
    )


def _remark_on_absent(pixels: Int[np.ndarray, "256"], names: Sequence[str], split: str, which: str) -> None:
    """Say which classes no mask of a split has."""
    if absent := [name for name, count in zip(names, pixels, strict=False) if not count]:
        some = " or ".join(absent[:5]) + (" or …" if len(absent) > 5 else "")
        notices.say_once(
            f"{split}: no pixel is {some} in {which}; if that is wrong, look whether the classes are in the order of "
            "the masks' values"
        )


def shared_images(train: Any, test: Any, split: str, eval_split: str) -> str:
    """Return a warning if images are both trained on and scored, else "".

    Args:
      train, test: `Examples`.
      split, eval_split: what `data.split` and `data.eval_split` say.
    """
    if all(hasattr(examples.pairs, "names") for examples in (train, test)):
        trained = {train.places(index)[0] for index in range(len(train))}
        shared = [place for index in range(len(test)) if (place := test.places(index)[0]) in trained]
        such = f", such as {shared[0]}" if shared else ""
    else:  # packed: all would have to be read to be compared
        shared, such = list(range(len(test))) if split == eval_split else [], ""
    if not shared:
        return ""
    return (
        f"{len(shared)} of the {len(test)} images that are scored (data.eval_split={eval_split!r}) are also trained on "
        f"(data.split={split!r}){such}: the score says how well they are remembered, not how the model does on other "
        "images; give lists or folders that have no image in common"
    )


def look(
    pairs: Any,
    table: Int[np.ndarray, "256"],
    names: Sequence[str],
    ignore_label: int,
    split: str,
    confirmed: bool,
    color_table: ColorTable | None = None,
) -> Palettes:
    """Look at some masks of a split before it is used.

    Args:
      pairs: the split's; up to 64 masks, spread evenly, are read.
      table: training label of each value, -1 for unknown ones.
      names: of the classes; empty where they are not known.
      confirmed: the config says itself what becomes of the ignored value.
      color_table: of masks that are pictures.

    Returns:
      The palettes seen, for `Examples.load` to hold others against.

    Raises:
      SegmentationError: if the order of palettes differs, or masks hold one class and ignored pixels alone. Masks that
        cannot be read are passed over; loading them gives their error.
    """
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(SAMPLES, len(pairs))).astype(int))
    palettes, pixels = Palettes(), np.zeros(256, np.int64)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda index: _read(pairs, int(index), color_table), chosen):
            if found is None:
                continue
            count, colors, place = found
            if problem := palettes.conflict(colors, place):
                raise SegmentationError(problem)
            palettes.add(colors, place)
            remark_on_other_order(colors, table, names, color_table, place)
            known = table >= 0
            np.add.at(pixels, table[known], count[known])
    which = f"all {len(pairs)} masks" if len(chosen) == len(pairs) else f"{len(chosen)} of {len(pairs)} masks"
    if warning := only_one_class(pixels, names, ignore_label, split, which) if names else "":
        if pixels[ignore_label] and not confirmed:
            raise SegmentationError(warning)
        notices.say_once(warning)
    elif pixels.any() and len(chosen) == len(pairs):
        _remark_on_absent(pixels, names, split, which)
    return palettes


def _read(pairs: Any, index: int, table: ColorTable | None) -> tuple[np.ndarray, dict[int, Color], str] | None:
    try:
        place = pairs.places(index)[1]
        mask = read_mask(pairs[index][1], place, table=table)
    except (SegmentationError, UnreadableImage):
        return None
    count = np.bincount(mask.values.ravel(), minlength=256)
    return count, used_colors(mask, np.flatnonzero(count)), place
