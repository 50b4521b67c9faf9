"""Masks are read exactly as stored or refused, whatever container, palette or orientation they come in."""

import struct
import zlib

import numpy as np
import pytest
from helpers.images import encode
from helpers.miniatures import PALETTE
from PIL import Image

from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.labelled.masks import read_mask


def values(data, name="m") -> np.ndarray:
    return read_mask(data, name).values


LABELS = np.random.default_rng(0).integers(0, 5, (9, 13)).astype(np.uint8)
GREY = Image.fromarray(LABELS)
INDEXED = GREY.copy()
INDEXED.putpalette(PALETTE)


@pytest.mark.parametrize("image", [GREY, INDEXED], ids=["grey", "palette"])
@pytest.mark.parametrize(
    "kind, options",
    [("PNG", {}), ("BMP", {}), ("GIF", {}), ("TGA", {}), ("TIFF", {})]
    + [("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")],
)
def test_exact_containers_keep_every_value(image, kind, options):
    np.testing.assert_array_equal(values(encode(image, kind, **options), f"m.{kind.lower()}"), LABELS)


@pytest.mark.parametrize(
    "kind, options, reason",
    [
        ("JPEG", {}, "is a JPEG, which changes labels; store masks as PNG"),
        ("MPO", {"save_all": True, "append_images": [GREY]}, "is a JPEG"),
        ("TIFF", {"compression": "jpeg"}, r"is a TIFF compressed with loss \(jpeg\)"),
        ("WEBP", {"quality": 90}, "is a WebP compressed with loss"),
        ("AVIF", {}, "is of the format AVIF, which may change labels"),
        ("JPEG2000", {}, "is of the format JPEG2000, which may change labels"),
    ],
)
def test_loss_is_found_in_any_container(kind, options, reason):
    with pytest.raises(SegmentationError, match=f"mask labels/a.png {reason}"):
        values(encode(GREY, kind, **options), "labels/a.png")


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_several_pictures_are_no_mask(kind):
    """Some programs write a picture for each class: the first alone would be the background's."""
    other = Image.fromarray(LABELS[::-1].copy())
    with pytest.raises(SegmentationError, match="mask m holds 2 pictures of one size; store one"):
        values(encode(GREY, kind, save_all=True, append_images=[other]), "m")


def test_smaller_copies_in_a_tiff_are_passed_over():
    data = encode(INDEXED, "TIFF", save_all=True, append_images=[INDEXED.resize((6, 4), 0)])
    np.testing.assert_array_equal(values(data, "m.tif"), LABELS)


def png_of_few_bits(bits, row) -> bytes:
    """A grey PNG of one row and four columns."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_few_levels_are_not_spread():
    for bits, row, want in ((2, b"\x1b", [0, 1, 2, 3]), (4, b"\x0f\x5a", [0, 15, 5, 10])):
        np.testing.assert_array_equal(values(png_of_few_bits(bits, row)), [want])
    few = Image.fromarray(LABELS % 4)
    few.putpalette(PALETTE[:12])
    np.testing.assert_array_equal(values(encode(few, bits=2)), LABELS % 4)
    body = LABELS.tobytes()
    for levels in (4, 20, 255):
        np.testing.assert_array_equal(values(b"P5 # a comment\n13 9 %d\n" % levels + body, "m.pgm"), LABELS)
    bits = np.packbits(LABELS[:, :8] > 2, axis=1).tobytes()
    np.testing.assert_array_equal(values(b"P4 8 9\n" + bits, "m.pbm"), LABELS[:, :8] > 2)
    np.testing.assert_array_equal(values(encode(Image.fromarray(LABELS > 2)), "m.png"), LABELS > 2)
    with pytest.raises(SegmentationError, match="16 or 32 bits"):
        values(b"P5 13 9 1000\n" + LABELS.astype(">u2").tobytes(), "m.pgm")


def test_an_empty_file_is_named():
    with pytest.raises(SegmentationError, match="mask some/mask.png cannot be read: the file is empty"):
        values(b"", "some/mask.png")


def test_a_tiff_whose_0_is_white_is_refused():
    data = encode(GREY, "TIFF", tiffinfo={262: 0})
    with pytest.raises(SegmentationError, match="a TIFF whose 0 is white"):
        values(data, "m.tif")
