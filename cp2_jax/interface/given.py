"""What a caller gives as an image: a path, encoded bytes, an array, a PIL image; or several of these."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cp2_jax.data import notices
from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images import pixels
from cp2_jax.data.images.decoding import decode, exif_orientation
from cp2_jax.interface import kinds
from cp2_jax.paths import at


def several(images: Any) -> list | None:
    """Return the images of a list, a generator (such as `folder.rglob("*.jpg")`) or an array of names; None for one image.

    An array of pixels is one image, and so are a path, a text and bytes.
    """
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return None
    if isinstance(images, np.ndarray):
        return list(images.ravel()) if images.dtype.kind in "OU" else None
    if isinstance(images, Mapping) or hasattr(images, "shape"):
        return None
    return list(images) if isinstance(images, Iterable) else None


def read(
    image: Any, value_range: Sequence[float] = (), turn: bool = True
) -> tuple[str, UInt8[np.ndarray, "height width 3"]]:
    """Return (name, RGB pixels) of an image.

    Args:
      image: a path, encoded bytes, an array or a PIL image.
      value_range: of the run, see `pixels.to_rgb`.
      turn: turn files as their EXIF orientation asks. PIL images and arrays are taken as they are.

    Raises:
      UnreadableImage: for what is no image, with the reason.
    """
    if isinstance(image, str | os.PathLike):
        path = at(image)
        if path.is_dir():
            raise UnreadableImage(str(path), f"it is {kinds.kind_of(path)}; give a file, or a list of files")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UnreadableImage(str(path), error.strerror or str(error)) from error
        return str(path), decode(data, str(path), value_range, turn)
    if isinstance(image, bytes):
        return "", decode(image, "image", value_range, turn)
    if isinstance(image, Image.Image):
        return _from_pillow(image, value_range, turn)
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise UnreadableImage(type(image).__name__, "give a path, an array, a PIL image, or a list of these")
    return "", _from_array(np.asarray(image), value_range)


def _from_pillow(image: Image.Image, value_range: Sequence[float], turn: bool) -> tuple[str, UInt8[np.ndarray, "_ _ 3"]]:
    name = getattr(image, "filename", "") or ""
    if turn and exif_orientation(image) != 1:
        notices.say_once(
            f"the PIL image {name or image!r} asks by its EXIF orientation to be turned. PIL does not turn it, and it is "
            "taken as PIL has it: give the path of the file, or PIL.ImageOps.exif_transpose(image)",
            "turned PIL image",
        )
    return name, pixels.from_pillow(image, name or "PIL image", value_range)


def _from_array(array: np.ndarray, value_range: Sequence[float]) -> UInt8[np.ndarray, "height width 3"]:
    if array.ndim != 3 or array.shape[-1] != 3:
        advice = {2: ": grey? give numpy.stack([image] * 3, axis=-1)", 4: ": give a list of images"}.get(array.ndim, "")
        if array.ndim == 3:
            turned = ": move the channels to the end" if array.shape[0] == 3 else ""
            advice = {1: ": grey? give image.repeat(3, axis=-1)", 4: ": leave the fourth channel out"}
            advice = advice.get(array.shape[-1], turned)
        raise UnreadableImage("array", f"its shape is {array.shape}, not (height, width, 3){advice}")
    if not array.size:
        raise UnreadableImage("array", f"its shape is {array.shape}: it has no pixel")
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return pixels.from_deep_array(array, "array", value_range)
    if not np.issubdtype(array.dtype, np.floating):
        raise UnreadableImage("array", f"its type is {array.dtype}; give uint8 in 0-255, or float in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (0 <= low and high <= 1):  # also NaN
        raise UnreadableImage("array", f"its floats lie between {low:g} and {high:g}; give them in [0, 1], or uint8")
    return np.rint(array * 255).astype(np.uint8)
