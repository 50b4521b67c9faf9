"""Encoded bytes to pixels, on the host, and the random crop that precedes every augmentation."""

from __future__ import annotations

import io
import math

import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8
from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag


class UnreadableImage(Exception):
    """An image that cannot be decoded. Attributes: name (a path or the like) and reason, both text."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it can cross process borders
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def _open(data: bytes, name: str) -> Image.Image:
    """The loaded Pillow image, or UnreadableImage."""
    if not data:
        raise UnreadableImage(name, "the file is empty")
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(name, "not an image of a known format") from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, EOFError, bombs and more
        raise UnreadableImage(name, str(error) or type(error).__name__) from error
    return image


def _upright(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Pixels [H, W, ...] turned and mirrored as the image's EXIF orientation asks. A damaged tag counts as none."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a good picture with bad metadata is still a good picture
        orientation = 1
    if orientation == 2:
        return pixels[:, ::-1]
    if orientation == 3:
        return pixels[::-1, ::-1]
    if orientation == 4:
        return pixels[::-1]
    if orientation == 5:
        return pixels.swapaxes(0, 1)
    if orientation == 6:
        return np.rot90(pixels, -1)
    if orientation == 7:
        return pixels[::-1, ::-1].swapaxes(0, 1)
    if orientation == 8:
        return np.rot90(pixels)
    return pixels


def may_be_turned(data: bytes) -> bool:
    """Whether a JPEG may ask to be shown turned or mirrored (EXIF orientation)."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position + 1] != 0xDA:  # up to the first scan
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
    header = data[:position]
    return b"Exif\0\0" in header or b"tiff:Orientation" in header


def _fast_jpeg(data: bytes) -> np.ndarray | None:
    """Plain RGB or gray JPEG by libjpeg-turbo; None where Pillow has to look: other colours, damage, sheer size."""
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors not in ("YCbCr", "RGB", "Gray") or height * width > Image.MAX_IMAGE_PIXELS:
            return None
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError:
        return None


def _to_rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode == "F":
        raise UnreadableImage(name, "floating-point pixels, whose range is unknown; convert the image to 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UnreadableImage(name, "pixels of more than 16 bits; convert the image to 8 or 16 bits")
        gray = ((values + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257, to the nearest
        return np.repeat(gray[..., None], 3, axis=-1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def decode(data: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
    """Encoded image -> uint8 RGB [H, W, 3], upright (EXIF orientation applied).

    JPEG in RGB or gray goes through libjpeg-turbo, the rest through Pillow: CMYK and palettes are converted, 16-bit
    gray is scaled to 8 bits, transparency is laid over white (the original's convert('RGB') shows whatever colour
    is stored below transparent pixels). Of animations, the first frame.

    Raises UnreadableImage(name, reason) for empty, truncated or foreign data and for images beyond Pillow's limit
    against decompression bombs.
    """
    if data[:2] == b"\xff\xd8":
        pixels = _fast_jpeg(data)
        if pixels is not None:
            if may_be_turned(data):
                pixels = _upright(pixels, Image.open(io.BytesIO(data)))  # reads headers only
            return np.ascontiguousarray(pixels)
    image = _open(data, name)
    try:
        pixels = _to_rgb(image, name)
    except (OSError, ValueError) as error:
        raise UnreadableImage(name, str(error) or type(error).__name__) from error
    return np.ascontiguousarray(_upright(pixels, image))


def upright_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) that `decode` will give, from the headers alone.

    Raises UnreadableImage(name, reason) if even they cannot be read.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise UnreadableImage(name, str(error) or type(error).__name__) from error
    return (width, height) if turned else (height, width)


def decode_mask(data: bytes, name: str) -> Int32[np.ndarray, "height width"]:
    """Encoded label map -> int32 class numbers [H, W], as stored: palette indices, or gray values of 1 to 16 bits.

    Raises ValueError, naming the file, for colour images (their classes are unknown), and UnreadableImage.
    """
    image = _open(data, name)
    if image.mode == "1":
        labels = np.asarray(image).astype(np.int32)
    elif image.mode in ("P", "L", "I") or image.mode.startswith("I;16"):
        labels = np.asarray(image).astype(np.int32)
    else:
        raise ValueError(
            f"{name}: a label map must be a palette or gray image whose values are class numbers, "
            f"but this one is {image.mode}; convert its colours to class numbers"
        )
    # Pillow spreads gray PNG of 2 and 4 bits over 0 to 255; the stored numbers are wanted.
    if image.format == "PNG" and data[25] == 0 and data[24] in (2, 4):
        labels //= 85 if data[24] == 2 else 17
    return np.ascontiguousarray(_upright(labels, image))


def crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels by the law of torchvision's RandomResizedCrop.get_params.

    The area is uniform in `scale` (a share of the image), the aspect width / height log-uniform in `ratio`; ten
    tries to fit them in, then the largest central box whose aspect lies in `ratio`.
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
    """A random box of the image (see `crop_box`), resized to `size` pixels square by Pillow's bilinear filter.

    As torchvision does it to Pillow images: cut first, then resize, so that no pixel outside the box has a say.
    """
    top, left, height, width = crop_box(*image.shape[:2], rng, scale, ratio)
    box = Image.fromarray(np.ascontiguousarray(image[top : top + height, left : left + width]))
    return np.asarray(box.resize((size, size), Image.Resampling.BILINEAR))
