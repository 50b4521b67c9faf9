"""Images and words put together: every block is a uint8 RGB array, and a picture is blocks above and beside each other."""

import functools
import io
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from cp2_jax.paths import AnyPath, at

Block = UInt8[np.ndarray, "height width 3"]

PAPER, INK = (255, 255, 255), (30, 30, 30)
GAP, MARGIN = 8, 12  # pixels between blocks, and around a picture
HIGHEST = 4096  # rows of an image that is enlarged, or shown in a table
NARROWEST = 100  # columns of words


def save_png(path: str | AnyPath, picture: Block):
    """Write a picture, making its folder if need be."""
    path, encoded = at(path), io.BytesIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(encoded, format="PNG")
    path.write_bytes(encoded.getbuffer())


def enlarged(
    image: Shaped[np.ndarray, "height width *channels"], least: int = 224
) -> Shaped[np.ndarray, "height2 width2 *channels"]:
    """Return an image, or a mask, with each pixel repeated until the width is at least `least` pixels; of one that is very
    narrow, as often as `HIGHEST` rows allow."""
    factor = max(1, min(-(-least // image.shape[1]), HIGHEST // image.shape[0]))
    return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def paper(height: int, width: int) -> Block:
    """Return an empty block."""
    return np.full((height, width, 3), PAPER, np.uint8)


def above(blocks: Sequence[Block], gap: int = GAP) -> Block:
    """Stack blocks from top to bottom; narrower ones are filled up with paper."""
    width = max(block.shape[1] for block in blocks)
    rows = []
    for block in blocks:
        rows += [_widened(block, width), paper(gap, width)]
    return np.concatenate(rows[:-1])


def beside(blocks: Sequence[Block], gap: int = GAP) -> Block:
    """Put blocks from left to right; lower ones are filled up with paper below."""
    height = max(block.shape[0] for block in blocks)
    columns = []
    for block in blocks:
        filled = np.pad(block, ((0, height - block.shape[0]), (0, 0), (0, 0)), constant_values=255)
        columns += [filled, paper(height, gap)]
    return np.concatenate(columns[:-1], axis=1)


def framed(block: Block) -> Block:
    """Return a block with paper around it."""
    return np.pad(block, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), constant_values=255)


def text(words: str, width: int, size: int = 14, align: float = 0.0) -> Block:
    """Return words as a block of the given width, broken into as many lines as they need.

    Args:
      align: where they stand, from 0 (left) over 0.5 (in the middle) to 1 (right).
    """
    lines = [line for part in words.split("\n") for line in _wrap(_drawable(part), width, size)]
    step = round(1.35 * size)
    image = Image.new("RGB", (width, step * len(lines)), PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        left = max(0, round(align * (width - _length(line, size))))
        draw.text((left, step * number), line, fill=INK, font=_font(size))
    return np.asarray(image)


def legend(entries: Sequence[tuple[str, Sequence[int]]], width: int) -> Block:
    """Return patches of colour with names beside them, in as many rows as they need.

    Args:
      entries: name and RGB colour of each.
    """
    size = patch = 14
    step = round(1.6 * size)
    entries = [(_drawable(name), color) for name, color in entries]
    places, left, top = [], 0, 0
    for name, _ in entries:
        taken = patch + 6 + int(_length(name, size)) + 16
        if left and left + taken - 16 > width:
            left, top = 0, top + step
        places.append((left, top))
        left += taken
    image = Image.new("RGB", (width, top + step), PAPER)
    draw = ImageDraw.Draw(image)
    for (name, color), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top + 2, left + patch, top + 2 + patch), fill=tuple(map(int, color)), outline=(110, 110, 110))
        draw.text((left + patch + 6, top + 1), name, fill=INK, font=_font(size))
    return np.asarray(image)


def table(
    columns: Sequence[tuple[str, Sequence[Block]]],
    title: str = "",
    captions: Sequence[str] = (),
    below: Callable[[int], Block] | None = None,
) -> Block:
    """Return images in columns under the columns' titles.

    Args:
      columns: title and images of each; all columns have the same number of images.
      title: of the whole, above.
      captions: words below each row.
      below: makes the last block, such as a legend, for the table's width.

    Raises:
      ValueError: if the columns, or the captions, differ in length.
    """
    rows = list(zip(*(images for _, images in columns), strict=True))
    # A picture may be one pixel wide; a title is not.
    widths = [max(NARROWEST, *(row[column].shape[1] for row in rows)) for column in range(len(columns))]
    heads = [text(head, width, align=0.5) for (head, _), width in zip(columns, widths, strict=True)]
    lowest = max(head.shape[0] for head in heads)
    body = [beside([np.concatenate([paper(lowest - head.shape[0], head.shape[1]), head]) for head in heads])]
    width = body[0].shape[1]
    for row, caption in zip(rows, captions or [""] * len(rows), strict=True):
        body.append(beside([_widened(cell, width) for cell, width in zip(row, widths, strict=True)]))
        if caption:
            body.append(text(caption, width, 12))
    first = [text(title, width, 16)] if title else []
    return framed(above([*first, *body, *([below(width)] if below else [])]))


def figure(width: float, height: float):
    """Return an empty matplotlib figure, in inches of 100 pixels: a bare one, without global state or a display."""
    from matplotlib.figure import Figure  # here: it takes a third of a second, which every entry point would wait for

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def render(drawn) -> Block:
    """Return what a matplotlib figure shows."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with matplotlib.rc_context({"font.size": 10}):
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()  # twice: the first time, the layout takes labels for smaller than they are
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _widened(block: Block, width: int) -> Block:
    return np.pad(block, ((0, 0), (0, width - block.shape[1]), (0, 0)), constant_values=255)


@functools.cache
def _font(size: int):
    import matplotlib  # for the font that it brings, which has the letters of most European languages

    return ImageFont.truetype(str(pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _length(line: str, size: int) -> float:
    return _font(size).getlength(line)


def _drawable(words: str) -> str:
    """Return words that a font can be asked for: names of files may have characters that are none (a tab, a bell)."""
    return "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in words)


def _wrap(part: str, width: int, size: int) -> list[str]:
    """Break at spaces, and within a word that is longer than a line (a file's name)."""
    lines, line = [], ""
    for word in part.split(" "):
        longer = f"{line} {word}" if line else word
        if _length(longer, size) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while _length(word, size) > width and len(word) > 1:
            fits = next((n for n in range(len(word) - 1, 0, -1) if _length(word[:n], size) <= width), 1)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return [*lines, line]
