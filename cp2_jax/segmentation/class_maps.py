"""Class maps as files and pictures: palette PNGs with a data set's own values and colours."""

import io

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from cp2_jax import pictures
from cp2_jax.paths import AnyPath, at


def class_colors(data: ConfigDict) -> UInt8[np.ndarray, "256 3"]:
    """Return the colour of each label: those of `config.data.class_colors`, VOC's palette for the rest."""
    colors = pictures.class_colors(256)
    if data.class_colors:
        colors[: len(data.class_colors)] = np.array(data.class_colors, np.uint8)
    return colors


def overlay_colors(data: ConfigDict) -> UInt8[np.ndarray, "classes 3"] | None:
    """Return the colours for pictures: those of `config.data.class_colors`; None, for bright ones, if there are none."""
    return np.array(data.class_colors, np.uint8) if data.class_colors else None


def mask_values(data: ConfigDict) -> UInt8[np.ndarray, "256"]:
    """Return the value that the data set's own masks have for each label, by `config.data.label_map` backwards.

    Cityscapes' server takes its 34 ids, ADE20K's begins with 1. Of several values of one label, the last one listed.
    """
    values = np.arange(256, dtype=np.uint8)
    for value, label in data.label_map:
        if label != data.ignore_label and isinstance(value, int):  # colours: the label itself
            values[label] = value
    return values


def save_class_map(
    path: str | AnyPath,
    predicted: UInt8[np.ndarray, "height width"],
    colors: UInt8[np.ndarray, "256 3"] | None = None,
    values: UInt8[np.ndarray, "256"] | None = None,
    source: str = "",
) -> None:
    """Write a class map as a PNG of indices with a palette, as VOC's server takes it.

    Args:
      colors: of each label; VOC's palette by default.
      values: that are written for each label, see `mask_values`; the label itself by default.
      source: noted in the file, see `source_of`.
    """
    path, encoded = at(path), io.BytesIO()
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = pictures.class_colors(256) if colors is None else colors
    values = np.arange(256, dtype=np.uint8) if values is None else values
    palette = np.zeros((256, 3), np.uint8)
    palette[values[::-1]] = colors[::-1]  # of labels with the same value, the first one's colour
    picture = Image.fromarray(values[predicted])
    picture.putpalette(palette.tobytes())
    notes = PngImagePlugin.PngInfo()
    if source:
        notes.add_itxt("Source", source)
    picture.save(encoded, format="PNG", pnginfo=notes)
    path.write_bytes(encoded.getbuffer())


def source_of(path: str | AnyPath) -> str:
    """Return the `source` that `save_class_map` has noted in a file, "" for other files."""
    try:
        with Image.open(path) as picture:
            return str(getattr(picture, "text", {}).get("Source", ""))
    except (OSError, ValueError, SyntaxError):
        return ""
