"""Which image files are read, and opening them without trusting what they claim."""

from __future__ import annotations

import io
import logging
import warnings

from PIL import Image

from cp2_jax.data.errors import UnreadableImage

# Formats of pixels, by what Pillow calls them. Its other readers stay unused: some start an interpreter (PostScript) or are
# hardly tested.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .bmp .dib .tif .tiff .gif .ppm .pgm .pbm .pnm .avif .jp2 .j2k .tga".split()
)
UNKNOWN = "not an image of a known format"
_HEIC = {b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"}  # brands; AVIF's is "avif"
# Images up to this size may be as small in bytes as they like.
_FREE_PIXELS = 2**24
# Beyond it: pixels that a byte can stand for at most. JPEG spends a bit or more on each block of 8 x 8 (of which other
# colours may have fewer), GIF at least 12 bits on 4,096 pixels, PPM a bit on each; for the rest this is generous.
_PIXELS_PER_BYTE = {"JPEG": 1024, "MPO": 1024, "GIF": 2731, "PPM": 8, "BMP": 8256, "DIB": 8256}
_OTHERWISE = 16384
# Deflate stands for at most 1,032 bytes a byte, and PNG's header says how many bits a pixel has.
_DEFLATE, _PNG_CHANNELS = 1032, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# Pillow remarks on damaged metadata and on large images. What matters comes as an error; the rest would be a line for
# each file and worker process.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def open_image(data: bytes, name: str) -> Image.Image:
    """Read the header of an encoded image.

    Args:
      data: of a format in `FORMATS`, or TGA, which has no signature, where `name` ends so.
      name: for messages.

    Returns:
      The image, whose pixels are not decoded yet.

    Raises:
      UnreadableImage: for no data, data of no known format, a header that claims more pixels than the data can hold, or
        more than Pillow's limit against decompression bombs.
    """
    if not data:
        raise UnreadableImage(name, "the file is empty")
    formats = (*FORMATS, "TGA") if name.lower().endswith(".tga") else FORMATS
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except Image.UnidentifiedImageError as error:
        raise UnreadableImage(name, UNKNOWN) from error
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error, KeyError, bombs and more
        raise UnreadableImage(name, reason(error)) from error
    width, height = image.size
    if width * height > most_pixels(data, image.format):
        raise UnreadableImage(name, f"claims {width} x {height} pixels, but {len(data)} bytes cannot hold so many")
    return image


def load(image: Image.Image, name: str) -> Image.Image:
    """Decode the pixels of an opened image, and return it.

    Raises:
      UnreadableImage: for damaged or truncated data.
    """
    try:
        image.load()
    except Exception as error:  # as in `open_image`
        raise UnreadableImage(name, reason(error)) from error
    return image


def reason(error: Exception) -> str:
    """Return what went wrong in Pillow as one short line."""
    lines = str(error).split("\n")
    known = isinstance(error, OSError | SyntaxError | ValueError) or type(error).__name__.startswith("Decompression")
    text = lines[0] if known and lines[0] else f"damaged ({type(error).__name__}{': ' + lines[0] if lines[0] else ''})"
    return text[:200]


def most_pixels(data: bytes, kind: str | None) -> int:
    """Return how many pixels data of this format and length can hold at most. Small images are always allowed.

    Args:
      kind: Pillow's name of the format.
    """
    if kind == "PNG" and len(data) > 25:
        bits = max(1, data[24] * _PNG_CHANNELS.get(data[25], 1))
        return max(_FREE_PIXELS, len(data) * _DEFLATE * 8 // bits)
    return max(_FREE_PIXELS, len(data) * _PIXELS_PER_BYTE.get(kind, _OTHERWISE))


def why_unknown(data: bytes) -> str:
    """Return why a file is no image that is read, as far as its first bytes tell."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        return "a HEIC photo, as telephones store them, which is not read: convert it to JPEG or PNG"
    return UNKNOWN
