"""Pixels of more than 8 bits, further bands, headers that claim too much; written by hand where Pillow cannot."""

import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from helpers.images import encode
from PIL import Image

from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images import crops
from cp2_jax.data.images.decoding import decode, upright_size

pytestmark = pytest.mark.usefixtures("said")


def by_opencv(pixels, extension) -> bytes:
    """RGB or grey of any type; OpenCV's colours are in the other order."""
    good, data = cv2.imencode(extension, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    assert good
    return data.tobytes()


def tiff(pixels, tags) -> bytes:
    """An uncompressed little-endian TIFF of one strip, (rows, columns, bands), with the given further tags."""
    height, width, bands = pixels.shape
    entries = {256: width, 257: height, 258: [8 * pixels.itemsize] * bands, 259: 1, 262: 2 if bands >= 3 else 1}
    entries |= {273: 8, 277: bands, 278: height, 279: pixels.nbytes, 284: 1} | tags
    position = 8 + pixels.nbytes
    directory, beyond = struct.pack("<H", len(entries)), b""
    after = position + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, list) else [value]
        kind, code = (3, "H") if tag not in (273, 279) else (4, "I")
        packed = struct.pack(f"<{len(values)}{code}", *values)
        if len(packed) > 4:
            directory += struct.pack("<HHII", tag, kind, len(values), after + len(beyond))
            beyond += packed
        else:
            directory += struct.pack("<HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", position) + pixels.tobytes() + directory + b"\0\0\0\0" + beyond


RAMP = np.linspace(0, 3000, 20 * 30 * 3).reshape(20, 30, 3).round()


@pytest.mark.parametrize("extension", [".png", ".tiff"])
def test_colours_of_16_bits_keep_all_of_them(extension):
    full = (RAMP * 21).astype(np.uint16)
    result = decode(by_opencv(full, extension), "full")
    np.testing.assert_array_equal(result, np.round(full / 65535 * 255))


@pytest.mark.parametrize("data", [by_opencv(RAMP.astype(np.uint16), ".png"), tiff(RAMP.astype(np.uint16), {})])
def test_a_range_scales_what_satellites_deliver(data, said):
    result = decode(data, "scene.tif", (0, 3000))
    np.testing.assert_array_equal(result, np.round(RAMP * 255 / 3000))
    assert "0 and 3000 become 0 and 255 in images of more than 8 bits, such as scene.tif" in said.text
    inside = decode(data, "scene.tif", (1000, 2000))
    np.testing.assert_array_equal(inside, np.clip(np.round((RAMP - 1000) * 255 / 1000), 0, 255))
    assert len(said.records) == 1


def test_dark_16_bits_are_said_once(said):
    for name in ("a.tif", "b.tif"):
        assert decode(by_opencv(RAMP.astype(np.uint16), ".tiff"), name).max() == 12
    (line,) = [record.getMessage() for record in said.records]
    assert line.startswith("a.tif has 16 bits, but its values end at 3000 of 65535") and "(0, 3000)" in line


GREY = RAMP[..., :1]


@pytest.mark.parametrize(
    "pixels, tags, reason",
    [
        (GREY.astype(np.int32), {339: 2}, "signed 32-bit pixels, whose range is unknown; set data.value_range"),
        (GREY.astype(np.uint32), {339: 1}, "32-bit pixels, whose range is unknown"),
        (GREY.astype(np.int16) - 1500, {339: 2}, "signed 16-bit pixels, whose range is unknown"),
        (GREY.astype(np.float32), {339: 3}, "floating-point pixels, whose range is unknown"),
        (RAMP.astype(np.float32), {339: [3, 3, 3]}, "floating-point pixels, whose range is unknown"),
    ],
)
def test_an_unknown_range_is_refused_or_given(pixels, tags, reason):
    data = tiff(pixels, tags)
    with pytest.raises(UnreadableImage, match=reason):
        decode(data, "a.tif")
    assert upright_size(data, "a.tif") == (20, 30)
    low = float(pixels.min())
    result = decode(data, "a.tif", (low, low + 3000))
    np.testing.assert_array_equal(result, np.broadcast_to(np.round((pixels - low) * 255.0 / 3000), (20, 30, 3)))


def test_missing_measurements_become_black():
    pixels = GREY.astype(np.float32)
    pixels[0, 0], pixels[0, 1] = np.nan, np.inf
    result = decode(tiff(pixels, {339: 3}), "a.tif", (0, 3000))
    assert (result[0, 0] == 0).all() and (result[0, 1] == 255).all() and (result[-1, -1] == 255).all()


def test_a_range_leaves_8_bits_alone(said):
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    np.testing.assert_array_equal(decode(encode(Image.fromarray(pixels)), "a.png", (0, 3000)), pixels)
    assert not said.records


def test_pgm_and_ppm_say_their_range():
    for levels in (15, 1000):
        body = b"".join(struct.pack(">H" if levels > 255 else "B", value) for value in (0, levels // 2, levels))
        result = decode(b"P5 3 1 %d\n" % levels + body, "a.pgm")
        np.testing.assert_allclose(result[0, :, 0], [0, levels // 2 / levels * 255, 255], atol=0.51)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_fourth_band_that_is_no_transparency_is_left_out(kind, said):
    rgba = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(rgba), kind, **options)
    np.testing.assert_array_equal(decode(data, "nir"), rgba[..., :3])
    assert "fourth band of nir is called alpha" in said.text
    rgba[..., 3] = np.where(rgba[..., 3] > 100, 255, 0)  # a real one
    cut = decode(encode(Image.fromarray(rgba), kind, **options), "cut")
    np.testing.assert_array_equal(cut, np.where(rgba[..., 3:] > 0, rgba[..., :3], 255))


def test_a_fourth_band_of_16_bits(said):
    rgba = np.dstack([RAMP * 21, RAMP[..., 0] * 21]).astype(np.uint16)
    for tags in ({338: 2}, {338: 0}):
        result = decode(tiff(rgba, tags), "nir.tif")
        np.testing.assert_array_equal(result, np.round(rgba[..., :3] / 65535 * 255))


def test_more_bands_are_refused_by_number():
    pixels = np.zeros((4, 4, 7), np.uint16)
    with pytest.raises(UnreadableImage, match="a TIFF of 7 bands of 16 bits, which is not read; store 1 or 3 bands"):
        decode(tiff(pixels, {338: [0, 0, 0, 0]}), "a.tif")


def test_crops_take_the_range_too():
    data = by_opencv(np.full((20, 30, 3), 1500, np.uint16), ".png")
    assert (crops.random_crops(data, "a", np.random.default_rng(0), 8, 2, value_range=(0, 3000)) == 128).all()


def test_no_interpreter_is_started(monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", None)
    monkeypatch.setattr(subprocess, "check_call", None)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnreadableImage, match="a.png: not an image of a known format"):
        decode(postscript, "a.png")


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width, height, depth=8, colour=2):
    body = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


BITMAP = struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 13000, 13000, 1, 24, 0, 0, 0, 0, 0, 0)
FRAME = struct.pack("<HHHHB", 0, 0, 13000, 13000, 0)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png_header(33, 5_111_829),
        b"P5 33024 5376 255\n" + b"\0" * 60,
        b"BM" + BITMAP + b"\0" * 60,
        b"GIF89a" + struct.pack("<HHBBB", 13000, 13000, 0, 0, 0) + b"," + FRAME + b"\2\0;",
        tiff(np.zeros((1, 1, 3), np.uint8), {256: 13000, 257: 13000}),
        tiff(np.zeros((1, 1, 3), np.float32), {256: 13000, 257: 13000, 339: [3, 3, 3]}),
    ],
    ids=["png", "pgm", "bmp", "gif", "tiff", "float tiff"],
)
def test_a_header_that_claims_too_much_costs_no_memory(data):
    with pytest.raises(UnreadableImage, match="claims .* pixels, but .* bytes cannot hold so many"):
        decode(data, "claim")


def test_a_chunk_that_claims_too_much_costs_no_memory():
    data = bytearray(by_opencv(np.zeros((9, 13, 3), np.uint16), ".png"))
    place = data.index(b"IDAT") - 4
    data[place : place + 4] = b"\x7f\xff\xff\xff"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableImage, match="truncated"):
        decode(bytes(data), "deep.png")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_what_compresses_well_is_believed():
    for size in ((3000, 2000), (2000, 2000)):
        blank = Image.new("RGB", size, (10, 20, 30))
        for kind, options in (("PNG", {}), ("JPEG", {}), ("WEBP", {"lossless": True}), ("GIF", {}), ("TIFF", {})):
            assert decode(encode(blank, kind, **options), kind).shape == (size[1], size[0], 3)


def test_a_jpeg_cut_at_any_length_is_unreadable_or_whole():
    """One that ends after 0xFF was an IndexError once."""
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8), (24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels), "JPEG", quality=80, exif=exif)
    unreadable = 0
    for length in range(len(data)):
        try:
            assert decode(data[:length], "cut").dtype == np.uint8
        except UnreadableImage:
            unreadable += 1
    assert unreadable > len(data) - 10


def test_a_tiff_of_several_pages_says_that_the_first_is_taken(said):
    pages = [Image.new("RGB", (4, 3), color) for color in ("red", "blue")]
    for count in (1, 2, 2):
        data = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:count])
        assert decode(data, f"{count}.tif")[0, 0].tolist() == [255, 0, 0]
    assert [record.getMessage()[:24] for record in said.records] == ["2.tif has several pages;"]
