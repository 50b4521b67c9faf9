"""The fast way from bytes to crops against the plain one: whole decode, cut, Pillow's resize."""

import inspect
import threading

import numpy as np
import pytest
from helpers.images import encode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cp2_jax.data.images import crops, decoding, turbojpeg
from cp2_jax.data.images.decoding import UnreadableImage


@pytest.fixture(params=["vectors", "pillow"], autouse=True)
def resizer(request, monkeypatch):
    """Every test holds with `cykooz.resizer`, which is an extra, and with Pillow in its place."""
    if request.param == "vectors":
        pytest.importorskip("cykooz_resizer")
    else:
        monkeypatch.setattr(crops, "cykooz_resizer", None)


needs_turbojpeg = pytest.mark.skipif(not turbojpeg.available(), reason="libturbojpeg 3 is not installed")


def picture(height=240, width=320, seed=0) -> np.ndarray:
    """Something like a photograph: colours that vary slowly, with fine detail on top."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((width, height), Image.BICUBIC)
    return np.clip(np.asarray(coarse) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def plainly(data, rng, size, views):
    image = decoding.decode(data, "plain")
    return np.stack([crops.random_resized_crop(image, rng, size) for _ in range(views)])


def differences(one, other):
    return np.abs(one.astype(int) - other.astype(int))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 230), st.integers(0, 99))
def test_resize_is_pillows_within_two_levels(height, width, size, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    want = np.asarray(Image.fromarray(image).resize((size, size), Image.BILINEAR))
    assert differences(crops.resize(image, size), want).max() <= 2


def test_resize_is_pillows_within_a_tenth_on_average():
    found = []
    for seed, (height, width) in enumerate([(375, 500), (240, 182), (130, 170), (300, 226), (400, 330), (224, 224)]):
        image = picture(height, width, seed)
        want = np.asarray(Image.fromarray(image).resize((224, 224), Image.BILINEAR))
        found.append(differences(crops.resize(image, 224), want).mean())
    assert np.mean(found) < 0.1
    assert found[-1] == 0  # nothing to do


@pytest.mark.parametrize("numbers", [(0, 5, 1, 0), (2**32 - 1, 2**32 - 1), (2**40 + 3, 7)])
def test_generator_draws_what_numpys_default_does(numbers):
    np.testing.assert_array_equal(crops.generator(*numbers).random(5), np.random.default_rng(numbers).random(5))


def test_resize_takes_slices():
    image = picture()
    np.testing.assert_array_equal(crops.resize(image[3:90:2, 5:80], 50), crops.resize(image[3:90:2, 5:80].copy(), 50))
    assert (crops.resize(np.full((5, 9, 3), 77, np.uint8), 7) == 77).all()


@pytest.mark.parametrize("height, width", [(300, 350), (350, 300), (90, 70), (61, 224), (224, 61), (600, 40)])
def test_a_fourth_channel_changes_nothing(height, width):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
    out = np.empty((2, 224, 224, 3), np.uint8)
    assert crops.resize(image, 224, out=out[1]) is not None
    np.testing.assert_array_equal(out[1], crops.resize(image[..., :3], 224))


SUBSAMPLINGS = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


@needs_turbojpeg
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "gray"])
@pytest.mark.parametrize("progressive", [False, True])
def test_part_of_a_jpeg_equals_the_same_part_of_the_whole(subsampling, progressive):
    image = Image.fromarray(picture(83, 117))
    options = {"quality": 90, "progressive": progressive}
    if subsampling == "gray":
        image = image.convert("L")
    else:
        options["subsampling"] = SUBSAMPLINGS[subsampling]
    data = encode(image, "JPEG", **options)
    whole = decoding.decode(data, "whole")
    rng = np.random.default_rng(0)
    for _ in range(40):
        top, bottom = np.sort(rng.choice(84, 2, replace=False))
        left, right = np.sort(rng.choice(118, 2, replace=False))
        jpeg = turbojpeg.open_jpeg(data, 10**9)
        assert (jpeg.height, jpeg.width) == (83, 117)
        part = jpeg.decode(top, left, bottom - top, right - left)
        np.testing.assert_array_equal(part[..., :3], whole[top:bottom, left:right])


@pytest.mark.parametrize("library", [pytest.param(True, marks=needs_turbojpeg), False])
@pytest.mark.parametrize("views", [1, 2])
def test_crops_equal_the_plain_way(monkeypatch, library, views):
    if not library:
        monkeypatch.setattr(turbojpeg, "_library", lambda: None)
    found = []
    for seed in range(12):
        data = encode(Image.fromarray(picture(seed=seed)), "JPEG", quality=90, subsampling=2)
        result = crops.random_crops(data, "a.jpg", np.random.default_rng(seed), 64, views)
        want = plainly(data, np.random.default_rng(seed), 64, views)
        assert result.shape == (views, 64, 64, 3) and result.dtype == np.uint8
        assert differences(result, want).max() <= 2
        found.append(differences(result, want).mean())
    assert np.mean(found) < 0.1


def test_the_law_is_the_originals_where_nothing_else_is_asked_for():
    """RandomResizedCrop(224, scale=(0.2, 1.0)), whose aspect torchvision draws from 3/4 to 4/3; the stream leaves it so."""
    for function in (crops.random_crops, crops.random_resized_crop):
        given = inspect.signature(function).parameters
        assert (given["scale"].default, given["ratio"].default) == ((0.2, 1.0), (3 / 4, 4 / 3))


@needs_turbojpeg
def test_the_library_changes_no_pixel(monkeypatch):
    files = [encode(Image.fromarray(picture(seed=seed)), "JPEG", quality=80) for seed in range(6)]

    def take():
        return [crops.random_crops(f, "a.jpg", np.random.default_rng(i), 32, 2) for i, f in enumerate(files)]

    with_library = take()
    monkeypatch.setattr(turbojpeg, "_library", lambda: None)
    np.testing.assert_array_equal(with_library, take())


@pytest.mark.parametrize("orientation", [3, 6])
def test_crops_are_of_the_upright_image(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(picture(60, 90)), "JPEG", quality=95, exif=exif)
    result = crops.random_crops(data, "a.jpg", np.random.default_rng(1), 32, 2)
    assert differences(result, plainly(data, np.random.default_rng(1), 32, 2)).max() <= 2


@pytest.mark.parametrize("kind, mode", [("PNG", "RGB"), ("WEBP", "RGB"), ("GIF", "P")])
def test_other_formats_are_exactly_pillows(kind, mode):
    data = encode(Image.fromarray(picture(60, 90)).convert(mode), kind)
    result = crops.random_crops(data, "a", np.random.default_rng(1), 32, 2)
    np.testing.assert_array_equal(result, plainly(data, np.random.default_rng(1), 32, 2))


def test_cmyk_jpeg():
    data = encode(Image.fromarray(picture(60, 90)).convert("CMYK"), "JPEG", quality=95)
    result = crops.random_crops(data, "a.jpg", np.random.default_rng(1), 32, 2)
    assert differences(result, plainly(data, np.random.default_rng(1), 32, 2)).max() <= 2


JPEG = encode(Image.fromarray(picture()), "JPEG", quality=90)


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8", JPEG[:30], JPEG[: len(JPEG) // 2], JPEG[:-1000]])
def test_unreadable_files_are_named(data):
    with pytest.raises(UnreadableImage, match="^folder/bad.jpg: "):
        crops.random_crops(data, "folder/bad.jpg", np.random.default_rng(0), 32, 2)


@needs_turbojpeg
def test_damage_within_the_part_is_left_to_the_plain_way():
    middle = len(JPEG) // 2
    damaged = JPEG[:middle] + b"\xff\xd9" * 40 + JPEG[middle + 80 :]
    jpeg = turbojpeg.open_jpeg(damaged, 10**9)
    assert jpeg.decode(0, 0, jpeg.height, jpeg.width) is None
    assert turbojpeg.open_jpeg(JPEG, max_pixels=100) is None  # and decompression bombs
    assert turbojpeg.open_jpeg(encode(Image.fromarray(picture(9, 9)).convert("CMYK"), "JPEG"), 10**9) is None


def test_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        crops.random_crops(JPEG, "bomb", np.random.default_rng(0), 32, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_escapes_as_another_error(data):
    damaged = bytearray(JPEG)
    for _ in range(data.draw(st.integers(1, 5))):
        damaged[data.draw(st.integers(2, len(JPEG) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert crops.random_crops(bytes(damaged), "damaged", np.random.default_rng(0), 8, 2).shape == (2, 8, 8, 3)
    except UnreadableImage:
        pass


def test_threads_share_nothing():
    want = [crops.random_crops(JPEG, "a.jpg", np.random.default_rng(i), 48, 2) for i in range(8)]
    found, threads = [None] * 8, []

    def work(i):
        for _ in range(5):
            found[i] = crops.random_crops(JPEG, "a.jpg", np.random.default_rng(i), 48, 2)

    for i in range(8):
        threads.append(threading.Thread(target=work, args=(i,)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(found, want)


def test_small_images_are_decoded_once_and_others_again(monkeypatch):
    monkeypatch.setattr(decoding, "_kept", {})
    monkeypatch.setattr(decoding, "_KEPT", 2)
    small = [encode(Image.fromarray(picture(40, 48, seed)), "PNG") for seed in range(3)]
    large = encode(Image.fromarray(picture(80, 80)), "PNG")
    for data in (*small, large, *small):
        want = plainly(data, np.random.default_rng(5), 32, 2)
        got = crops.random_crops(data, "x", np.random.default_rng(5), 32, 2)
        np.testing.assert_array_equal(got, want)
    assert [data for data, _ in decoding._kept] == small[:2]
    kept = decoding.decode_once(small[0], "x")
    assert kept is decoding.decode_once(bytes(bytearray(small[0])), "y") and not kept.flags.writeable


def test_the_range_of_deep_images_is_part_of_what_is_kept():
    data = encode(Image.fromarray(np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)), "PNG")
    one, other = (decoding.decode_once(data, "deep.png", limits) for limits in ((0, 65535), (0, 30000)))
    np.testing.assert_array_equal(other, decoding.decode(data, "deep.png", (0, 30000)))
    assert (one != other).any()
    with pytest.raises(UnreadableImage, match="broken.png"):
        decoding.decode_once(data[:100], "broken.png")
