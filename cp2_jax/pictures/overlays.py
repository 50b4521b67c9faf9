"""Class maps over images: colours, outlines, and a legend that names them."""

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from cp2_jax.pictures import canvas
from cp2_jax.pictures.palettes import bright_colors

_UNLABELLED = (170, 170, 170)
_STRENGTH = 0.55  # of the colour over the image
_LARGEST = 640  # columns of one image in a table


def overlay(
    image: UInt8[np.ndarray, "height width 3"],
    predicted: Int[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"],
    names: Sequence[str],
    colors: UInt8[np.ndarray, "classes 3"] | None = None,
    ignore: int = 255,
    caption: str = "",
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show one image with its classes: coloured, outlined, and named below with their share of the image.

    Args:
      image: at its own size; one less than 320 pixels wide is enlarged, up to 4,096 rows.
      predicted: class of each pixel. Class 0 stays clear if its name is "background".
      names: of the classes, by index.
      colors: of the classes; `bright_colors` by default.
      ignore: the label of pixels that do not count, which are striped grey.
      caption: what stands below, such as the file's name and the score.

    Raises:
      ValueError: for a class without a name.
    """
    table = _colors(names, colors, np.unique(predicted), ignore)
    painted = paint(canvas.enlarged(image, 320), canvas.enlarged(predicted, 320), table, _clear(names), ignore)
    entries = _entries(predicted, names, table, ignore)
    width = max(canvas.NARROWEST, painted.shape[1])
    words = [canvas.text(caption, width)] if caption else []
    return canvas.framed(canvas.above([painted, *words, canvas.legend(entries, width)]))


def predictions(
    images: UInt8[np.ndarray, "batch height width 3"],
    labels: Int[np.ndarray, "batch height width"] | UInt8[np.ndarray, "batch height width"],
    predicted: Int[np.ndarray, "batch height width"] | UInt8[np.ndarray, "batch height width"],
    names: Sequence[str],
    ignore: int = 255,
    colors: UInt8[np.ndarray, "classes 3"] | None = None,
    captions: Sequence[str] = (),
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show images, ground truth and predictions, with a legend of the classes that occur.

    Args:
      images, labels, predicted: one row of the picture each; wide ones are made smaller.
      names, colors, ignore: as in `overlay`.
      captions: what stands below each row, such as the file's name and the score.

    Raises:
      ValueError: for a class without a name.
    """
    both = np.stack([labels, predicted])
    table = _colors(names, colors, np.unique(both), ignore)
    columns = {"image": [], "ground truth": [], "prediction": []}
    for row, image in enumerate(images):
        image, *maps = (_fitted(array) for array in (image, *both[:, row]))
        painted = [paint(image, classes, table, _clear(names), ignore) for classes in maps]
        for cells, cell in zip(columns.values(), (image, *painted), strict=True):
            cells.append(cell)
    entries = _entries(both, names, table, ignore, shares=False)
    return canvas.table(list(columns.items()), captions=captions, below=functools.partial(canvas.legend, entries))


def paint(
    image: UInt8[np.ndarray, "height width 3"],
    labels: Int[np.ndarray, "height width"] | UInt8[np.ndarray, "height width"],
    colors: UInt8[np.ndarray, "labels 3"],
    clear: Sequence[int] = (),
    ignore: int = 255,
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an image with the colours of its labels laid over it and a line in full colour around each region.

    Below the colours the image is grey, so that an orange cat does not look like another class than a white one.

    Args:
      colors: by label.
      clear: labels that are left as they are.
      ignore: the label whose pixels are striped grey.
    """
    strength = np.full(labels.shape, _STRENGTH, np.float32)
    strength[np.isin(labels, list(clear))] = 0
    y, x = np.indices(labels.shape)
    unlabelled = labels == ignore
    strength[unlabelled] = np.where(((y + x) // 6 % 2 == 0)[unlabelled], 0.8, 0.3)
    line = max(1, round(max(labels.shape) / 300))
    kernel = np.ones((2 * line + 1, 2 * line + 1), np.uint8)
    for label in np.unique(labels):
        if label in clear or label == ignore:
            continue
        region = (labels == label).astype(np.uint8)
        # Beyond the image's border the region goes on: there is no line.
        inner = cv2.erode(region, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1)
        strength[(region > 0) & (inner == 0)] = 1
    strength = strength[..., None]
    grey = np.where(strength > 0, image.mean(axis=-1, keepdims=True), image)
    return np.round(grey * (1 - strength) + colors[labels] * strength).astype(np.uint8)


def _clear(names: Sequence[str]) -> tuple[int, ...]:
    return (0,) if names and names[0].lower() in ("background", "nothing", "void", "unlabelled", "unlabeled") else ()


def _colors(names, colors, occurring, ignore: int) -> UInt8[np.ndarray, "labels 3"]:
    nameless = [int(c) for c in occurring if c != ignore and not 0 <= c < len(names)]
    if nameless:
        raise ValueError(f"classes {nameless} occur, but only {len(names)} names were given")
    if colors is None:  # a clear class needs none of the bright ones
        skipped = len(_clear(names))
        colors = np.concatenate([np.full((skipped, 3), 255, np.uint8), bright_colors(len(names) - skipped)])
    table = np.full((max(256, ignore + 1), 3), _UNLABELLED, np.uint8)
    table[: len(names)] = colors[: len(names)]
    table[ignore] = _UNLABELLED
    return table


def _entries(labels, names, table, ignore: int, shares: bool = True) -> list[tuple[str, np.ndarray]]:
    """Return the legend: the classes that occur, the largest first if their shares are shown."""
    occurring, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable") if shares else np.arange(len(occurring))
    entries = []
    for place in order:
        label, share = int(occurring[place]), counts[place] / labels.size
        name = "not labelled" if label == ignore else names[label]
        name += " (left clear)" if label in _clear(names) else ""
        color = (255, 255, 255) if label in _clear(names) else table[label]
        entries.append((f"{name} {_percent(share)}" if shares else name, color))
    return entries


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.01 else "<1%"


def _fitted(array: np.ndarray) -> np.ndarray:
    """Return an image or a class map at a size that suits a table."""
    height, width = array.shape[:2]
    scale = min(_LARGEST / width, canvas.HIGHEST / height)
    if scale >= 1:
        return canvas.enlarged(array)
    kind = cv2.INTER_AREA if array.ndim == 3 else cv2.INTER_NEAREST
    small = np.ascontiguousarray(array if array.ndim == 3 else array.astype(np.int32))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(small.astype(np.float32) if array.ndim == 2 else small, size, interpolation=kind).astype(array.dtype)
