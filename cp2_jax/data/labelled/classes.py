"""The classes of a data set from a small text file: names, and colours if it has them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from cp2_jax.data import files, text
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.labelled import layouts, sources

# Other ways to write all lines of the file, and the way of `read_classes`: CVAT's `name:r,g,b:parts:actions`, and SegNet's
# `r g b name`.
_OTHERS = (
    (r"([^:]+):(\d+),\s*(\d+),\s*(\d+):[^:]*:[^:]*", r"\1 \2 \3 \4"),
    (r"(\d+)[,\s]+(\d+)[,\s]+(\d+)[,\s]+(.*[^\d,\s].*)", r"\4 \1 \2 \3"),
)


def read_classes(path: str | Path) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Read one class a line, in the order of the mask values: `name` or `name red green blue`.

    Separators are spaces, tabs or commas, so that a name may have several words; empty lines and those that begin with
    a `#` are passed over. Where every line begins with the number of its class (`0 background`, `1: square`), the numbers
    are no part of the names. CVAT's `labelmap.txt` and LabelMe's `labels.txt` are read too, and so are files with the
    colours in front and tables with the heading `name,r,g,b`.

    Returns:
      Names, and RGB colours: one for each name, or none.

    Raises:
      SegmentationError: naming file and line, for a colour that is none, a name given twice, a line without a colour
        where others have one, numbers that are not 0, 1, 2, …; or for a file that cannot be read or has fewer than two
        names.
    """
    return parse_classes(text.read_lines(path, SegmentationError), str(path))


def parse_classes(lines: Sequence[str], path: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Return names and colours from the lines of a class file; `path` is for messages. See `read_classes`.

    Raises:
      SegmentationError: as there.
    """
    names, colors, numbers = [], [], []
    stated = [(number, line.strip()) for number, line in enumerate(lines, 1)]
    stated = [(number, line) for number, line in stated if line.strip(" ,\t") and not line.startswith("#")]
    if stated and re.search(r"[,\s](r|red)[,\s]+(g|green)[,\s]+(b|blue)$", stated[0][1], re.IGNORECASE):
        del stated[0]  # a table's heading, `name,r,g,b`
    if stated and stated[0][1] == "__ignore__":
        del stated[0]  # LabelMe's labels.txt: number -1, `_background_` is 0
    rewrite = next((one for one in _OTHERS if stated and all(re.fullmatch(one[0], line) for _, line in stated)), None)
    for number, line in stated:
        words = re.findall(r"[^,\s]+", re.sub(*rewrite, line) if rewrite else line)
        has_color = len(words) > 3 and all(re.fullmatch(r"\d+", word) for word in words[-3:])
        color = tuple(int(word) for word in words[-3:]) if has_color else ()
        if color and max(color) > 255:
            raise SegmentationError(f"{path}, line {number}: {color} is no colour; give red, green and blue in 0-255")
        names.append(" ".join(words[:-3] if has_color else words))
        colors.append(color)
        numbers.append(number)
    names = _without_numbers(names, path)
    for place, name in enumerate(names):
        if name in names[:place]:
            raise SegmentationError(f"{path}, line {numbers[place]}: class {name!r} is there already")
    if len(names) < 2:
        raise SegmentationError(f"{path} names {len(names)} classes; give 2 or more, one a line, background included")
    plain = [n for n, color in zip(numbers, colors, strict=True) if not color]
    if plain and len(plain) < len(colors):
        raise SegmentationError(f"{path}, line {plain[0]}: no colour, but other lines have one")
    return tuple(names), () if plain else tuple(colors)


def _without_numbers(names: list[str], path: str) -> list[str]:
    """Return names without the numbers of their classes, if all have one."""
    parts = [re.fullmatch(r"(\d{1,9})[:.)=]? (.+)", name) for name in names]
    if not names or not all(parts):
        return names
    given = [int(part[1]) for part in parts]
    for index, number in enumerate(given):
        if number != index:
            pairs = ", ".join(f"({n}, {i})" for i, n in enumerate(given[:3])) + ", …" * (len(given) > 3)
            raise SegmentationError(
                f"{path} gives class {parts[index][2]!r} the number {number}, but by its place in the file it is class "
                f"{index}: take the numbers away, and if the masks hold them, set data.label_map=({pairs})"
            )
    return [part[2] for part in parts]


def resolve(config: ConfigDict) -> None:
    """Take names, colours and number of classes from the file `data.classes`, if a finetuning config names one.

    The file is looked for as given, then below `data.path`, or beside the packed files that it names. Where it is not,
    `data.class_names` counts. A resolved config says everything itself: a checkpoint's needs the file no more.

    Raises:
      SegmentationError: if there is no such file, it is wrong (see `read_classes`), or `data.num_classes` is set and
        is another number.
    """
    data = config.data
    if not data.classes:
        return
    root = files.place(data.path)
    sources.refuse_bucket(data)  # before it is said that the file is not there
    if data.get("source") in ("tar", "parquet") and not root.is_dir():  # a pattern: the folder before what varies
        root = files.place(os.path.dirname(re.split(r"::|[{*?\[]", data.path)[0]))
    if data.path and not root.is_dir():
        raise SegmentationError(f"data.path={root} is {'a file, not a folder' if root.exists() else 'not there'}")
    places = [files.place(data.classes), root / data.classes]
    path = next((place for place in places if place.is_file()), None)
    if path is None and data.class_names:
        data.num_classes = config.model.num_classes = len(data.class_names)
        return
    if path is None and not data.path:
        raise SegmentationError("data.path is empty; set it to the data set's folder")
    if path is None:
        write = "write one, with the name of a class on each line in the order of the mask values, or say in data.classes"
        raise SegmentationError(f"no file {places[-1]}: {layouts.instead_of_classes(root) or f'{write} where it is'}")
    names, colors = read_classes(path)
    if data.num_classes and data.num_classes != len(names):
        few = "few" if len(names) < data.num_classes else "many"
        raise SegmentationError(f"{path} has too {few} names: {len(names)}, but data.num_classes={data.num_classes}")
    data.num_classes = config.model.num_classes = len(names)
    data.class_names, data.class_colors = names, colors
