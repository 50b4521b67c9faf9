"""Decoded pixels of any kind to 8-bit RGB: more bits, palettes, transparency, further bands."""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Num, UInt8, UInt16
from PIL import Image, TiffImagePlugin

from cp2_jax.data import notices
from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images import formats

_WIDTH, _HEIGHT, _BITS, _BANDS, _SAMPLE_FORMAT = 256, 257, 258, 277, 339  # TIFF tags
_TIFF = (b"II*\0", b"MM\0*")
_SET_RANGE = "set data.value_range to the values that are to become black and white, such as (0, 3000)"
# 16-bit images that stay below this share of the range come out nearly black.
_DARK = 1 / 4

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # damaged files are reported by their names, here


def to_rgb(
    image: Image.Image, data: bytes, name: str, value_range: Sequence[float] = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an opened image as RGB; transparency is laid over white.

    Images of more than 8 bits are scaled: from `value_range` if that is given, else unsigned 16 bits from 0 to 65535. A
    fourth band that is called alpha but whose values are spread as a picture's are (infrared, for example) is left out. Of
    a TIFF of several pages the first is taken. All this is said in a warning, once.

    Args:
      image: opened by `formats.open_image`, loaded or not.
      data: what it was opened from.
      value_range: the values that become 0 and 255, in images of more than 8 bits; what lies outside is cut off.

    Raises:
      UnreadableImage: for damaged data, and where the range cannot be known: floats, signed numbers, 32 bits.
    """
    if image.format == "TIFF" and image.tag_v2.next:
        notices.say_once(f"{name} has several pages; the first is taken here and of other images of this kind", "pages")
    bits, signed = depth(image, data)
    if bits <= 8 and not signed:
        return _eight_bits(formats.load(image, name), name)
    return _from_deep(_values(image, data, name), bits, signed, name, value_range)


def from_pillow(image: Image.Image, name: str, value_range: Sequence[float] = ()) -> UInt8[np.ndarray, "height width 3"]:
    """Return a PIL image, opened or made by others, as `to_rgb` returns a file; it is not turned.

    Args:
      image: of any mode; name: for messages; value_range: see `to_rgb`.

    Raises:
      UnreadableImage: as `to_rgb`.
    """
    if not image.mode.startswith("I") and image.mode != "F":
        return _eight_bits(image, name)
    values = np.asarray(image)[..., None]
    deep = values.astype(np.int64) if values.dtype.kind in "iu" else values
    bits = 16 if image.mode.startswith("I;16") or image.format == "PNG" else 32  # older Pillows have 16-bit PNGs as "I"
    return _from_deep(deep, bits, False, name, value_range)


def from_deep_array(
    values: UInt16[np.ndarray, "height width 3"], name: str, value_range: Sequence[float] = ()
) -> UInt8[np.ndarray, "height width 3"]:
    """Return an array of 16-bit colours as a file of these would be read; name, value_range: see `to_rgb`."""
    return _from_deep(values, 16, False, name, value_range)


def _from_deep(
    values: Num[np.ndarray, "height width bands"], bits: int, signed: bool, name: str, value_range: Sequence[float]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return what is stored in more than 8 bits as RGB, see `to_rgb`."""
    if value_range:
        rgb = _scaled(values, *value_range)
        notices.say_once(
            f"data.value_range: {value_range[0]:g} and {value_range[1]:g} become 0 and 255 in images of more than 8 bits, "
            f"such as {name}",
            "value range",
        )
    elif values.dtype.kind == "f":
        raise UnreadableImage(name, f"floating-point pixels, whose range is unknown; {_SET_RANGE}")
    elif signed or bits > 16:
        kind = f"{'signed ' if signed else ''}{bits}-bit pixels"
        raise UnreadableImage(name, f"{kind}, whose range is unknown; {_SET_RANGE}, or convert the image to 8 bits")
    else:
        rgb = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, to the nearest
        _remark_on_dark(values, name)
    rgb = np.repeat(rgb, 3, axis=-1) if rgb.shape[-1] == 1 else rgb
    return rgb[..., :3] if rgb.shape[-1] == 3 else _over_white(rgb, name)


def _remark_on_dark(values: np.ndarray, name: str) -> None:
    highest = int(values[..., :3].max(initial=0))
    if 0 < highest < 65535 * _DARK:
        notices.say_once(
            f"{name} has 16 bits, but its values end at {highest} of 65535: it comes out nearly black. If all are so, "
            f"{_SET_RANGE.replace('(0, 3000)', f'(0, {highest})')}",
            "dark 16 bits",
        )


def depth(image: Image.Image, data: bytes) -> tuple[int, bool]:
    """Return bits of a band, and whether numbers are signed or floating-point, as far as Pillow's mode would not say it."""
    if image.format == "PNG":
        return data[24], False
    if image.format == "TIFF":
        tags = image.tag_v2
        bits, kinds = _tuple(tags.get(_BITS, 1)), _tuple(tags.get(_SAMPLE_FORMAT, 1))
        return max(bits, default=1), any(kind in (2, 3) for kind in kinds)
    if image.mode.startswith("I") or image.mode == "F":
        return 16, False  # PPM and JPEG 2000 say their range, and Pillow scales it to 16 bits
    return 8, False


def _tuple(value):
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _values(image: Image.Image, data: bytes, name: str) -> Num[np.ndarray, "height width bands"]:
    """Return what is stored in an image of more than 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(formats.load(image, name))
        return values[..., None].astype(np.int64 if values.dtype.kind in "iu" else values.dtype)
    return _by_opencv(data, (image.height, image.width), name)  # Pillow keeps the upper 8 bits of colours


def _by_opencv(data: bytes, size: tuple[int, int], name: str) -> Num[np.ndarray, "height width bands"]:
    """Return the stored values of an image of several bands of more than 8 bits."""
    if data[:4] == b"\x89PNG":
        _check_chunks(data, name)
    try:
        values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UnreadableImage(name, "damaged, or a kind of more than 8 bits that is not read") from error
    if values is None or values.shape[:2] != size:
        raise UnreadableImage(name, "damaged, or a kind of more than 8 bits that is not read")
    values = values.reshape(*values.shape[:2], -1)
    if values.shape[-1] not in (1, 3, 4):
        raise UnreadableImage(name, f"has {values.shape[-1]} bands; only images of 1, 3 or 4 are read")
    return values if values.shape[-1] == 1 else values[..., [2, 1, 0, 3][: values.shape[-1]]]


def _check_chunks(data: bytes, name: str) -> None:
    """Refuse a PNG with a chunk that is longer than the file: OpenCV would make room for it first, up to 2 GB."""
    position = 8
    while position + 8 <= len(data) and data[position + 4 : position + 8] != b"IEND":
        position += 12 + int.from_bytes(data[position : position + 4])
    if position + 8 > len(data):
        raise UnreadableImage(name, "image file is truncated")


def _scaled(values: np.ndarray, low: float, high: float) -> UInt8[np.ndarray, "..."]:
    """Return values with `low` and `high` at 0 and 255; what is no number (missing measurements) becomes 0."""
    scaled = (values.astype(np.float64) - low) * 255 / (high - low)
    return np.clip(np.nan_to_num(np.rint(scaled), nan=0.0, posinf=255.0, neginf=0.0), 0, 255).astype(np.uint8)


def unusual_tiff(data: bytes, name: str, value_range: Sequence[float] = ()) -> UInt8[np.ndarray, "height width 3"]:
    """Return a TIFF that Pillow does not know as RGB, such as colours in floating point.

    Args:
      data: the file; name, value_range: see `to_rgb`.

    Raises:
      UnreadableImage: as `to_rgb`, and for what is no TIFF of 1, 3 or 4 bands.
    """
    size, bits, signed = unusual_tiff_header(data, name)
    return _from_deep(_by_opencv(data, size, name), bits, signed, name, value_range)


def unusual_tiff_header(data: bytes, name: str) -> tuple[tuple[int, int], int, bool]:
    """Return (height, width), bits of a band, and whether numbers are signed, of a TIFF that Pillow does not know.

    Raises:
      UnreadableImage: as `unusual_tiff`.
    """
    if data[:4] not in _TIFF:
        raise UnreadableImage(name, formats.why_unknown(data))
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        height, width, bands = int(tags[_HEIGHT]), int(tags[_WIDTH]), int(tags.get(_BANDS, 1))
        bits = max(map(int, _tuple(tags.get(_BITS, 1))))
        signed = any(kind in (2, 3) for kind in _tuple(tags.get(_SAMPLE_FORMAT, 1)))
    except Exception as error:  # Pillow's readers raise many kinds
        raise UnreadableImage(name, f"a TIFF with a damaged header ({formats.reason(error)})") from error
    if bands not in (1, 3, 4) or bits <= 8:
        raise UnreadableImage(name, f"a TIFF of {bands} bands of {bits} bits, which is not read; store 1 or 3 bands")
    if not 0 < height * width <= min(formats.most_pixels(data, "TIFF"), Image.MAX_IMAGE_PIXELS):
        raise UnreadableImage(name, f"claims {width} x {height} pixels, but {len(data)} bytes cannot hold so many")
    return (height, width), bits, signed


def _eight_bits(image: Image.Image, name: str) -> UInt8[np.ndarray, "height width 3"]:
    try:
        if image.has_transparency_data:
            return _over_white(np.asarray(image.convert("RGBA")), name)
        return np.asarray(image.convert("RGB"))
    except Exception as error:  # as in `formats.open_image`
        raise UnreadableImage(name, formats.reason(error)) from error


def _over_white(rgba: UInt8[np.ndarray, "height width 4"], name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Return RGB with what is transparent laid over white, unless the fourth band is no transparency."""
    count = np.bincount(rgba[..., 3].ravel(), minlength=256)
    if count[0] + count[255] < rgba[..., 3].size / 2 and np.count_nonzero(count) > 64:
        notices.say_once(
            f"the fourth band of {name} is called alpha, but its values are spread as those of a picture; it is left out "
            "here and in other images of this kind",
            "fourth band",
        )
        return rgba[..., :3]
    picture = Image.fromarray(rgba)
    white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, picture).convert("RGB"))
