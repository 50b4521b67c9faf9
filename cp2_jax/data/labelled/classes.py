"""The classes of a data set from a small text file: names, and colours if it has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cp2_jax.data import files, text
from cp2_jax.data.errors import SegmentationError


def read_classes(path: str | Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Read one class a line, in the order of the mask values: `name` or `name red green blue`.

    Separators are spaces, tabs or commas, so that a name may have several words; empty lines and those that begin with
    a `#` are passed over.

    Returns:
      Names, and RGB colours: one for each name, or none.

    Raises:
      SegmentationError: naming file and line, for a colour that is none, a name given twice, a line without a colour
        where others have one; or for a file that cannot be read or has fewer than two names.
    """
    return parse_classes(text.read_lines(path, SegmentationError), str(path))


def parse_classes(lines: Sequence[str], path: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return names and colours from the lines of a class file; `path` is for messages. See `read_classes`.

    Raises:
      SegmentationError: as there.
    """
    names, colors, numbers = [], [], []
    for number, line in enumerate(lines, 1):
        words = [word for word in re.split(r"[,\s]+", line) if word]
        if not words or words[0].startswith("#"):
            continue
        has_color = len(words) > 3 and all(re.fullmatch(r"\d+", word) for word in words[-3:])
        color = tuple(int(word) for word in words[-3:]) if has_color else ()
        if color and max(color) > 255:
            raise SegmentationError(f"{path}, line {number}: {color} is no colour; give red, green and blue in 0-255")
        name = " ".join(words[:-3] if has_color else words)
        if name in names:
            raise SegmentationError(f"{path}, line {number}: class {name!r} is there already")
        names.append(name)
        colors.append(color)
        numbers.append(number)
    if len(names) < 2:
        raise SegmentationError(f"{path} names {len(names)} classes; give 2 or more, one a line, background included")
    plain = [n for n, color in zip(numbers, colors, strict=True) if not color]
    if plain and len(plain) < len(colors):
        raise SegmentationError(f"{path}, line {plain[0]}: no colour, but other lines have one")
    return tuple(names), () if plain else tuple(colors)


def resolve(config: ConfigDict) -> None:
    """Take names, colours and number of classes from the file `data.classes`, if a finetuning config names one.

    The file is looked for as given, then below `data.path`. A resolved config says everything itself, so that a
    checkpoint's needs the file no more.

    Raises:
      SegmentationError: if there is no such file, it is wrong (see `read_classes`), or `data.num_classes` is set and
        is another number.
    """
    data = config.data
    if not data.classes:
        return
    places = [files.place(data.classes), files.place(data.path) / data.classes]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise SegmentationError(
            f"no file {places[-1]}: write one, with the name of a class on each line in the order of the mask values, or "
            "say in data.classes where it is"
        )
    names, colors = read_classes(path)
    if data.num_classes and data.num_classes != len(names):
        few = "few" if len(names) < data.num_classes else "many"
        raise SegmentationError(f"{path} has too {few} names: {len(names)}, but data.num_classes={data.num_classes}")
    data.num_classes = config.model.num_classes = len(names)
    data.class_names, data.class_colors = names, colors
