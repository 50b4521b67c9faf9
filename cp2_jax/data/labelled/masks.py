"""Mask files to class numbers, exactly as they are stored, or not at all."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.images import decoding, formats
from cp2_jax.data.labelled import colors
from cp2_jax.data.labelled.colors import ColorTable

_BITS, _COMPRESSION, _PHOTOMETRIC = 258, 259, 262  # TIFF tags
_WHITE_IS_ZERO = 0
# TIFF compressions that keep every value: none, CCITT (for one bit), LZW, deflate (two numbers), PackBits, LZMA, Zstandard.
_EXACT_TIFF = {1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000}
_EXACT = {"PNG", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "WEBP"}
_STORE = "store masks as PNG"


@dataclasses.dataclass(frozen=True)
class Mask:
    """A decoded mask.

    Attributes:
      values: uint8 [height, width], as stored: indices of a palette, or levels of grey.
      palette: uint8 [entries, 3], RGB of each index; None for grey.
    """

    values: UInt8[np.ndarray, "height width"]
    palette: UInt8[np.ndarray, "entries 3"] | None


def read_mask(data: bytes, name: str, turn: bool = True, table: ColorTable | None = None) -> Mask:
    """Return a mask file's values, the indices of a palette PNG or the levels of a grey one, and its palette.

    Args:
      data: the encoded mask.
      name: for messages.
      turn: apply the orientation that EXIF asks for.
      table: of the colours of masks that are pictures; without it they are refused.

    Raises:
      SegmentationError: naming a mask that cannot be read, has colours that `table` does not say or numbers above 255, or
        is stored in a way that changes values (JPEG and the like, in whatever container).
    """
    try:
        image = formats.open_image(data, name)
        _refuse_inexact(image, data, name)
        _refuse_several(image, name)
        if image.mode.startswith("I") or image.mode == "F":
            stored = _of_many_bits(image, name)
        elif image.mode not in ("P", "L", "1"):
            stored = colors.values(image, data, name, table)
        else:
            stored = _stored(formats.load(image, name), data)
        entries = image.getpalette("RGB") if image.mode == "P" else None
        palette = np.array(entries, np.uint8).reshape(-1, 3) if entries else None
    except UnreadableImage as error:
        raise SegmentationError(f"mask {name} cannot be read: {error.reason}") from error
    values = decoding.upright(stored, decoding.exif_orientation(image)) if turn else stored
    return Mask(np.ascontiguousarray(values), palette)


def _of_many_bits(image: Image.Image, name: str) -> UInt8[np.ndarray, "height width"]:
    """Return a mask of 16 or 32 bits whose numbers are whole and fit into 8."""
    wide = "has 16 or 32 bits a pixel"
    if image.mode == "F" or image.format not in ("PNG", "TIFF"):  # Pillow spreads the levels of other formats
        raise SegmentationError(f"mask {name} {wide}; labels are 8-bit: convert it")
    values = np.asarray(formats.load(image, name))
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 255:
        raise SegmentationError(
            f"mask {name} {wide} and values from {low} to {high}; class numbers are 0 to 255: convert it (instance numbers "
            "are no classes; of classes with larger numbers, count anew from 0)"
        )
    return values.astype(np.uint8)


def header_size(data: bytes, name: str, turn: bool = True) -> tuple[int, int]:
    """Return the (height, width) that `read_mask` will give, from the headers only. Arguments: see there.

    Raises:
      SegmentationError: naming a mask that cannot be read.
    """
    try:
        return decoding.upright_size(data, name, turn)
    except UnreadableImage as error:
        raise SegmentationError(f"mask {name} cannot be read: {error.reason}") from error


def _refuse_inexact(image: Image.Image, data: bytes, name: str) -> None:
    """Refuse a mask whose compression does not keep every value, whatever its file is called."""
    kind, changed = image.format, f"which changes labels; {_STORE}"
    if kind in ("JPEG", "MPO"):
        raise SegmentationError(f"mask {name} is a JPEG, {changed}")
    if kind == "TIFF":
        compression = image.tag_v2.get(_COMPRESSION, 1)
        if compression not in _EXACT_TIFF:
            raise SegmentationError(
                f"mask {name} is a TIFF compressed with loss ({image.info.get('compression')}), {changed}"
            )
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode != "1":
            raise SegmentationError(f"mask {name} is a TIFF whose 0 is white, so that its values are ambiguous; {_STORE}")
    if kind == "WEBP" and b"VP8L" not in data[:64]:
        raise SegmentationError(f"mask {name} is a WebP compressed with loss, {changed}")
    if kind not in _EXACT:
        raise SegmentationError(f"mask {name} is of the format {kind}, which may change labels; {_STORE}")


def _refuse_several(image: Image.Image, name: str) -> None:
    """Refuse a mask of several pictures, such as one for each class. Smaller copies in a TIFF (overviews) may be there."""
    try:
        if not getattr(image, "is_animated", False):
            return
        size, count = image.size, image.n_frames
        image.seek(1)
        alike = image.size == size
        image.seek(0)
    except Exception as error:  # as in `formats.open_image`
        raise UnreadableImage(name, formats.reason(error)) from error
    if alike:
        raise SegmentationError(
            f"mask {name} holds {count} pictures of one size; store one, with the numbers of the classes"
        )


def _stored(image: Image.Image, data: bytes) -> UInt8[np.ndarray, "height width"]:
    """Return the stored numbers, where Pillow spreads those of few levels over 0 to 255."""
    values = np.asarray(image).astype(np.uint8)
    if image.mode == "1":
        return 1 - values if image.format == "PPM" else values  # 1 is black in PBM
    levels = 255 if image.mode == "P" else _levels(image, data)
    return values if levels == 255 else np.rint(values * (levels / 255)).astype(np.uint8)


def _levels(image: Image.Image, data: bytes) -> int:
    """Return the highest number that a pixel of a grey mask can hold."""
    if image.format == "PNG":
        return 2 ** data[24] - 1
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS, 1)
        return 2 ** (bits[0] if isinstance(bits, tuple) else bits) - 1
    if image.format == "PPM":
        header = re.match(rb"P[25]\s+\d+\s+\d+\s+(\d+)", re.sub(rb"#[^\r\n]*", b"", data[:4096]))
        return int(header[1]) if header else 255
    return 255
