"""Encoded bytes to pixels, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import simplejpeg
from jaxtyping import Shaped, UInt8
from PIL import Image

from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images import formats
from cp2_jax.data.images.pixels import to_rgb, unusual_tiff, unusual_tiff_header

__all__ = [
    "UnreadableImage",
    "decode",
    "decode_once",
    "exif_orientation",
    "may_be_turned",
    "orientation",
    "upright",
    "upright_size",
]

_ORIENTATION = 0x0112  # the EXIF tag
_START_OF_SCAN = 0xDA
# Of `decode_once`: number of images, and bytes of each (64 x 64 pixels).
_KEPT, _SMALL = 4096, 12_288
_kept: dict[tuple[bytes, tuple[float, ...]], np.ndarray] = {}


def decode(
    data: bytes, name: str, value_range: Sequence[float] = (), turn: bool = True
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode an image to RGB.

    JPEG in RGB or gray goes through libjpeg-turbo, the rest through Pillow and OpenCV: CMYK and palettes are converted,
    more bits are scaled, transparency is laid over white (the original's `convert("RGB")` shows whatever colour is stored
    below transparent pixels). Of animations, the first frame.

    Args:
      data: the encoded image, in a format of `formats.FORMATS`.
      name: for messages.
      value_range: the values that become 0 and 255 in images of more than 8 bits; empty: see `pixels.to_rgb`.
      turn: apply the orientation that EXIF asks for.

    Raises:
      UnreadableImage: for empty, truncated, damaged or foreign data, pixels whose range cannot be known, and images beyond
        Pillow's limit against decompression bombs.
    """
    if data[:2] == b"\xff\xd8":
        pixels = _fast_jpeg(data)
        if pixels is not None:
            turned = turn and may_be_turned(data)
            return np.ascontiguousarray(upright(pixels, orientation(data)) if turned else pixels)
    try:
        image = formats.open_image(data, name)
    except UnreadableImage as error:
        if error.reason != formats.UNKNOWN:
            raise
        return np.ascontiguousarray(unusual_tiff(data, name, value_range))
    pixels = to_rgb(image, data, name, value_range)
    return np.ascontiguousarray(upright(pixels, exif_orientation(image)) if turn else pixels)


def decode_once(data: bytes, name: str, value_range: Sequence[float] = ()) -> UInt8[np.ndarray, "height width 3"]:
    """Return what `decode` does; small images, of which a process keeps the first few thousand, only once and read-only.

    Of a small PNG most of the time goes into reading its header. At most `_KEPT` images of `_SMALL` bytes are kept, and
    what they were encoded in: less than 100 MB.

    Args:
      data, name, value_range: see `decode`.

    Raises:
      UnreadableImage: see `decode`.
    """
    if len(data) > _SMALL:  # the key of a large file would take time in vain
        return decode(data, name, value_range)
    key = data, tuple(value_range)
    image = _kept.get(key)
    if image is None:
        image = decode(data, name, value_range)
        if len(_kept) < _KEPT and image.nbytes <= _SMALL:
            image.flags.writeable = False
            _kept[key] = image
    return image


def _fast_jpeg(data: bytes) -> np.ndarray | None:
    """Decode a plain RGB or gray JPEG by libjpeg-turbo; None where Pillow has to look: other colours, damage, size."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        limit = min(Image.MAX_IMAGE_PIXELS, formats.most_pixels(data, "JPEG"))
        if colors not in ("YCbCr", "RGB", "Gray") or height * width > limit:
            return None
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except Exception:  # ValueError for damage, KeyError for a kind of colours that the binding does not know
        return None


def may_be_turned(data: bytes) -> bool:
    """Say whether a JPEG may ask to be shown turned or mirrored (EXIF orientation), from a look at its header."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1 : position + 2] != bytes([_START_OF_SCAN]):
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    header = data[:position]
    return b"Exif\0\0" in header or b"tiff:Orientation" in header


def exif_orientation(image: Image.Image) -> int:
    """Return an opened image's EXIF orientation, 1 to 8. A damaged tag counts as none: the picture may still be good."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1
    return found if found in range(1, 9) else 1


def orientation(data: bytes) -> int:
    """Return the EXIF orientation of an encoded image, 1 (upright) to 8; 1 for what cannot be read."""
    try:
        return exif_orientation(formats.open_image(data, ""))
    except UnreadableImage:
        return 1


def upright(pixels: Shaped[np.ndarray, "height width *bands"], turned: int) -> Shaped[np.ndarray, "_ _ *bands"]:
    """Return a view of pixels, turned and mirrored as an EXIF orientation (1 to 8) asks."""
    if turned == 2:
        return pixels[:, ::-1]
    if turned == 3:
        return pixels[::-1, ::-1]
    if turned == 4:
        return pixels[::-1]
    if turned == 5:
        return pixels.swapaxes(0, 1)
    if turned == 6:
        return np.rot90(pixels, -1)
    if turned == 7:
        return pixels[::-1, ::-1].swapaxes(0, 1)
    if turned == 8:
        return np.rot90(pixels)
    return pixels


def upright_size(data: bytes, name: str, turn: bool = True) -> tuple[int, int]:
    """Return the (height, width) that `decode` will give, from the headers only; the arguments are those of `decode`.

    Raises:
      UnreadableImage: if even they cannot be read.
    """
    try:
        image = formats.open_image(data, name)
    except UnreadableImage as error:
        if error.reason != formats.UNKNOWN:
            raise
        return unusual_tiff_header(data, name)[0]
    width, height = image.size
    return (width, height) if turn and exif_orientation(image) >= 5 else (height, width)
