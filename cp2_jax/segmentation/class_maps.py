"""Class maps as files and pictures: palette PNGs with a data set's own values and colours, overlays, a folder of images."""

import collections
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax import pictures
from cp2_jax.data.images.decoding import UnreadableImage, decode, upright_size
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.segmentation.predictor import make_predictor


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
        if label != data.ignore_label:
            values[label] = value
    return values


def save_class_map(
    path: str | pathlib.Path,
    predicted: UInt8[np.ndarray, "height width"],
    colors: UInt8[np.ndarray, "256 3"] | None = None,
    values: UInt8[np.ndarray, "256"] | None = None,
) -> None:
    """Write a class map as a PNG of indices with a palette, as VOC's server takes it.

    Args:
      colors: of each label; VOC's palette by default.
      values: that are written for each label, see `mask_values`; the label itself by default.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    colors = pictures.class_colors(256) if colors is None else colors
    values = np.arange(256, dtype=np.uint8) if values is None else values
    palette = np.zeros((256, 3), np.uint8)
    palette[values[::-1]] = colors[::-1]  # of labels with the same value, the first one's colour
    picture = Image.fromarray(values[predicted])
    picture.putpalette(palette.tobytes())
    picture.save(path, format="PNG")


def predict_folder(
    config: ConfigDict, variables: Any, images: ImageFolder, output: str | pathlib.Path, own_values: bool = False
) -> Iterator[str]:
    """Write `output/masks` and `output/overlays` of every image of a folder, each at its own size and place.

    Args:
      config, variables: a finetuned model's.
      own_values: write what the data set's masks have (see `mask_values`), not class indices.

    Yields:
      For each image "", or why it could not be read; the others are predicted all the same.
    """
    predictor, variables = make_predictor(config), jax.device_put(variables)
    colors, values = class_colors(config.data), mask_values(config.data) if own_values else None
    relative = [pathlib.Path(images.name(index)).relative_to(images.root) for index in range(len(images))]
    alike = collections.Counter(path.with_suffix("") for path in relative)
    sizes, readable = [], []
    for index in range(len(images)):
        try:
            sizes.append(upright_size(images[index], images.name(index)))
            readable.append(index)
        except UnreadableImage as error:
            yield str(error)
    for batch in predictor.plan(sizes, 1, config.evaluation.programs):
        index = readable[batch.indices[0]]
        try:
            image = decode(images[index], images.name(index), tuple(config.data.get("value_range", ())))
        except UnreadableImage as error:
            yield str(error)
            continue
        predicted = np.asarray(predictor.predict(variables, predictor.inputs([image], batch), batch)[0])
        predicted = predicted[: image.shape[0], : image.shape[1]]
        # a.jpg and a.png beside each other keep their extensions.
        path = relative[index]
        name = path.with_suffix(".png") if alike[path.with_suffix("")] == 1 else path.with_name(f"{path.name}.png")
        save_class_map(pathlib.Path(output) / "masks" / name, predicted, colors, values)
        drawn = pictures.overlay(image, predicted, config.data.class_names, overlay_colors(config.data), caption=str(path))
        pictures.save_png(pathlib.Path(output) / "overlays" / name, drawn)
        yield ""
