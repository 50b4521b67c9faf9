"""Random crops straight from encoded bytes: one decode for several crops, resized by vector instructions."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from cp2_jax.data.images import decoding, formats, turbojpeg

try:  # an extra, for it has no wheel for Arm; without it Pillow resizes
    import cykooz_resizer
except ImportError:
    cykooz_resizer = None

_local = threading.local()


def generator(*numbers: int) -> np.random.Generator:
    """Return `np.random.default_rng(numbers)` in half the time, which counts where a sample takes a millisecond."""
    return np.random.default_rng(numbers if max(numbers) >> 32 else np.array(numbers, np.uint32))


def crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draw a box by the law of torchvision's RandomResizedCrop.get_params.

    The area is uniform in `scale` (a share of the image), the aspect width / height log-uniform in `ratio`; ten
    tries to fit them in, then the largest central box whose aspect lies in `ratio`.

    Returns:
      (top, left, height, width) in pixels.
    """
    # What Generator.uniform computes, to the bit, at a quarter of a call's cost.
    (least_area, most_area), (least, most) = scale, map(math.log, ratio)
    for _ in range(10):
        area = height * width * (least_area + (most_area - least_area) * rng.random())
        aspect = math.exp(least + (most - least) * rng.random())
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, left, box_height, box_width
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        box_width = round(height * ratio[1])
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def random_resized_crop(
    image: UInt8[np.ndarray, "height width 3"],
    rng: np.random.Generator,
    size: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> UInt8[np.ndarray, "size size 3"]:
    """Return a random box of the image (see `crop_box`), resized to `size` pixels square by Pillow's bilinear filter.

    As torchvision does it to Pillow images: cut first, then resize, so that no pixel outside the box has a say.
    """
    top, left, height, width = crop_box(*image.shape[:2], rng, scale, ratio)
    box = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    return np.asarray(box.resize((size, size), Image.Resampling.BILINEAR))


def random_crops(
    data: bytes,
    name: str,
    rng: np.random.Generator,
    size: int,
    views: int,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    value_range: Sequence[float] = (),
) -> UInt8[np.ndarray, "views size size 3"]:
    """Return `views` random boxes of one encoded image (see `crop_box`), drawn in turn, each resized to `size` square.

    Of a JPEG only what the boxes need is decoded, where `turbojpeg` can, and damage elsewhere stays unseen; it is
    resized by `resize`, other formats by Pillow.

    Args:
      data: the encoded image; name: where it is from, for messages.
      value_range: see `decoding.decode`.

    Raises:
      UnreadableImage: as `decoding.decode`.
    """
    if data[:2] != b"\xff\xd8":
        image = decoding.decode_once(data, name, value_range)
        return np.stack([random_resized_crop(image, rng, size, scale, ratio) for _ in range(views)])
    limit = min(Image.MAX_IMAGE_PIXELS, formats.most_pixels(data, "JPEG"))
    jpeg = None if decoding.may_be_turned(data) else turbojpeg.open_jpeg(data, limit)
    image = decoding.decode(data, name) if jpeg is None else None
    height, width = (jpeg.height, jpeg.width) if image is None else image.shape[:2]
    boxes = [crop_box(height, width, rng, scale, ratio) for _ in range(views)]
    top, left = 0, 0
    if image is None:
        top, left, bottom, right = _union(boxes)
        image = jpeg.decode(top, left, bottom - top, right - left)
        if image is None:
            image, top, left = decoding.decode(data, name), 0, 0
    crops = np.empty((views, size, size, 3), np.uint8)
    for crop, (y, x, rows, columns) in zip(crops, boxes, strict=True):
        resize(image[y - top : y - top + rows, x - left : x - left + columns], size, out=crop)
    return crops


def _union(boxes):
    """Return (top, left, bottom, right) of the smallest box that holds all."""
    return (
        min(top for top, _, _, _ in boxes),
        min(left for _, left, _, _ in boxes),
        max(top + height for top, _, height, _ in boxes),
        max(left + width for _, left, _, width in boxes),
    )


def resize(
    image: UInt8[np.ndarray, "height width channels"], size: int, out: UInt8[np.ndarray, "size size 3"] | None = None
) -> UInt8[np.ndarray, "size size 3"]:
    """Return the image resized to `size` pixels square by the antialiased bilinear filter.

    By `cykooz.resizer` where it is installed, four times as fast as by Pillow. There the axis that shrinks more goes first,
    for that is less work; both passes round to 8 bits. Pillow does the same but for its order, columns first (since version
    13 rows first where far more of them go), which rounds differently: by 0.04 of 255 on average and 2 at most.

    Args:
      image: of 3 channels, or of 4 whose last is left out; four bytes per pixel suit vector instructions better.
      out: written to, and returned, if given.
    """
    pixels = _by_pillow(image, size) if cykooz_resizer is None else _by_vectors(image, size)
    if out is None:
        out = np.empty((size, size, 3), np.uint8)
    if pixels.shape[-1] == 4:
        return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB, dst=out)
    out[:] = pixels
    return out


def _by_pillow(image: UInt8[np.ndarray, "height width channels"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    if image.shape[-1] == 4:
        image = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGBA2RGB)
    return np.asarray(Image.fromarray(image).resize((size, size), Image.BILINEAR))


def _by_vectors(image: UInt8[np.ndarray, "height width channels"], size: int) -> UInt8[np.ndarray, "size size channels"]:
    height, width, channels = image.shape
    if not hasattr(_local, "resizer"):  # its buffers are not to be shared between threads
        _local.resizer = cykooz_resizer.Resizer()
        filters = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
        _local.bilinear = cykooz_resizer.ResizeOptions(filters, use_alpha=False)
    kind = cykooz_resizer.PixelType.U8x4 if channels == 4 else cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, kind, image.tobytes())
    result = cykooz_resizer.ImageData(size, size, kind)
    if height <= width:
        narrow = cykooz_resizer.ImageData(size, height, kind)
        _local.resizer.resize(source, narrow, _local.bilinear)
        source = narrow
    _local.resizer.resize(source, result, _local.bilinear)  # of both axes, it takes the rows first
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, channels)
