"""Decoding against Pillow and hand-made files; the crop against torchvision's law written out."""

import io
import math
import pickle

import numpy as np
import pytest
from helpers.images import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cp2_jax.data.images import crops
from cp2_jax.data.images.decoding import UnreadableImage, decode, upright_size


def smooth(height=24, width=40) -> np.ndarray:
    """Gentle colours, which JPEG keeps well; no symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([4 * x, 6 * y, 2 * x + 3 * y], -1).astype(np.uint8)


def test_png_is_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    result = decode(encode(Image.fromarray(pixels)), "a.png")
    assert result.dtype == np.uint8 and result.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_equals_pillow(subsampling):
    data = encode(Image.fromarray(smooth()), "JPEG", quality=90, subsampling=subsampling)
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(decode(data, "a.jpg") - want).max() <= 1
    assert np.abs(want - smooth()).max() < 24  # the oracle itself shows the picture


def test_gray_jpeg_has_three_equal_channels():
    gray = smooth()[..., 2]
    result = decode(encode(Image.fromarray(gray), "JPEG", quality=95), "gray.jpg")
    assert result.shape == (24, 40, 3)
    assert (result == result[..., :1]).all() and np.abs(result[..., 0].astype(int) - gray).max() < 12


def test_cmyk_jpeg():
    data = encode(Image.fromarray(smooth()).convert("CMYK"), "JPEG", quality=95)
    result = decode(data, "cmyk.jpg")
    assert np.abs(result.astype(int) - smooth()).max() < 32


def test_palette_gray_and_bilevel():
    palette = Image.new("P", (3, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    palette.putdata([2, 0, 1])
    np.testing.assert_array_equal(decode(encode(palette), "p.png")[0], [[10, 20, 30], [255, 0, 0], [0, 255, 0]])
    np.testing.assert_array_equal(decode(encode(palette, "GIF"), "p.gif")[0, 0], [10, 20, 30])
    gray = Image.fromarray(np.array([[7, 200]], np.uint8))
    np.testing.assert_array_equal(decode(encode(gray), "l.png")[0], [[7] * 3, [200] * 3])
    bilevel = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(decode(encode(bilevel), "1.png")[0], [[255] * 3, [0] * 3])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(kind):
    deep = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    result = decode(encode(Image.fromarray(deep), kind), "deep")
    np.testing.assert_array_equal(result[0, :, 0], np.round(deep[0] / 65535 * 255))
    assert (result == result[..., :1]).all()


def test_alpha_lies_over_white():
    pixels = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)
    result = decode(encode(Image.fromarray(pixels)), "a.png").astype(int)
    want = [[200, 100, 0], [255, 255, 255], [255 - 0.2 * 55, 255 - 0.2 * 155, 255 - 0.2 * 255]]
    assert np.abs(result[0] - want).max() <= 1
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 9, 9, 50, 60, 70])
    palette.putdata([0, 1])
    result = decode(encode(palette, transparency=0), "p.png")
    np.testing.assert_array_equal(result[0], [[255] * 3, [50, 60, 70]])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(smooth()), kind, exif=exif, **options)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")).astype(int)
    result = decode(data, "turned")
    assert result.shape == want.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert np.abs(result - want).max() <= 1


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_the_picture():
    data = encode(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff garbage")
    assert decode(data, "a.jpg").shape == (24, 40, 3)


def test_one_pixel():
    np.testing.assert_array_equal(decode(encode(Image.new("RGB", (1, 1), (1, 2, 3))), "a.png"), [[[1, 2, 3]]])


JPEG = encode(Image.fromarray(smooth()), "JPEG", quality=90)
PNG = encode(Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)))


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"", "empty"),
        (b"this is a text file", "not an image"),
        (b"\xff\xd8 and then text", "not an image"),
        (JPEG[:-100], "truncated"),
        (JPEG[: len(JPEG) // 2], "cannot load"),  # ends within the tables, before any pixel
        (PNG[: len(PNG) // 2], "truncated"),
        (PNG[:30], "."),
        (encode(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
        (encode(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"), "signed 32-bit pixels"),
    ],
)
def test_unreadable_names_file_and_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason) as caught:
        decode(data, "folder/bad.jpg")
    assert caught.value.name == "folder/bad.jpg"
    assert str(caught.value).startswith("folder/bad.jpg: ")
    again = pickle.loads(pickle.dumps(caught.value))  # as it comes out of a worker process
    assert (again.name, again.reason) == (caught.value.name, caught.value.reason)


@pytest.mark.parametrize("data", [JPEG, PNG])
def test_decompression_bomb(monkeypatch, data):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        decode(data, "bomb")


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([JPEG, PNG]))
def test_damage_never_escapes_as_another_error(data, image):
    damaged = bytearray(image)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(2, len(image) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(damaged), "damaged").dtype == np.uint8
    except UnreadableImage:
        pass


def test_photos_of_telephones_are_called_by_their_name():
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for call in (decode, upright_size):
        with pytest.raises(UnreadableImage, match="a.jpg: a HEIC photo, .* convert it to JPEG"):
            call(data, "a.jpg")


class Fixed:
    """A generator that gives set uniform and integer draws, noting what it was asked for."""

    def __init__(self, uniforms, integers=()):
        self.uniforms, self.integers_left, self.asked = list(uniforms), list(integers), []

    def random(self):
        return self.uniforms.pop(0)

    def integers(self, high):
        self.asked.append(high)
        return self.integers_left.pop(0)


def test_crop_box_by_hand():
    # Area 0.5 of 100 x 200, aspect 1 (the middle of a log-uniform range): a square of 100, from 101 places.
    rng = Fixed([0.375, 0.5], [0, 60])
    assert crops.crop_box(100, 200, rng, (0.2, 1.0), (3 / 4, 4 / 3)) == (0, 60, 100, 100)
    assert rng.asked == [1, 101]
    rng = Fixed([1.0, 0.5] * 9 + [0.375, 0.5], [0, 60])  # the tenth try still counts
    assert crops.crop_box(100, 200, rng, (0.2, 1.0), (3 / 4, 4 / 3)) == (0, 60, 100, 100)
    # Area 1 never fits into 100 x 200; the eleventh pair of draws is not asked for.
    rng = Fixed([1.0, 0.5] * 10)
    assert crops.crop_box(100, 200, rng, (0.2, 1.0), (3 / 4, 4 / 3)) == (0, 33, 100, 133)
    rng = Fixed([1.0, 0.5] * 10)
    assert crops.crop_box(200, 100, rng, (0.2, 1.0), (3 / 4, 4 / 3)) == (33, 0, 133, 100)
    rng = Fixed([1.0, 0.0] * 10)
    assert crops.crop_box(100, 100, rng, (0.2, 1.0), (3 / 4, 4 / 3)) == (0, 0, 100, 100)


def test_crop_law_in_numbers():
    rng = np.random.default_rng(0)
    boxes = np.array([crops.crop_box(400, 400, rng, (0.2, 0.5), (3 / 4, 4 / 3)) for _ in range(4000)])
    area = boxes[:, 2] * boxes[:, 3] / 400**2
    log_aspect = np.log(boxes[:, 3] / boxes[:, 2]) / math.log(4 / 3)
    for values, low, high in ((area, 0.2, 0.5), (log_aspect, -1, 1)):
        uniform = np.sort((values - low) / (high - low))
        # Kolmogorov-Smirnov: 1.95 / sqrt(n) is passed by one sample in a thousand (plus rounding to pixels)
        assert np.abs(uniform - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000) + 0.01
    assert (boxes[:, 0] + boxes[:, 2]).max() == 400 and boxes[:, 0].min() == 0
    place = boxes[:, 1] / (400 - boxes[:, 3])
    assert abs(place.mean() - 0.5) < 0.02


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32))
def test_crop_fits_any_image(height, width, seed):
    rng = np.random.default_rng(seed)
    top, left, box_height, box_width = crops.crop_box(height, width, rng, (0.2, 1.0), (3 / 4, 4 / 3))
    assert 0 <= top <= top + box_height <= height and box_height > 0
    assert 0 <= left <= left + box_width <= width and box_width > 0
    image = np.zeros((height, width, 3), np.uint8)
    assert crops.random_resized_crop(image, np.random.default_rng(seed), 5).shape == (5, 5, 3)


def test_crop_is_pillows_crop_then_bilinear():
    pixels = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    top, left, height, width = crops.crop_box(50, 70, np.random.default_rng(2), (0.2, 1.0), (3 / 4, 4 / 3))
    want = Image.fromarray(pixels).crop((left, top, left + width, top + height)).resize((16, 16), Image.BILINEAR)
    result = crops.random_resized_crop(pixels, np.random.default_rng(2), 16)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, np.asarray(want))
