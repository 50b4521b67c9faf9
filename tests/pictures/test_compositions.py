"""Composed pairs, masks and attention: their pixels where they can be told, and what they refuse."""

import numpy as np
import pytest
from helpers.looks import is_picture, random_images, shows

from cp2_jax import pictures


def test_outline_draws_only_near_the_border():
    image = np.full((64, 64, 3), 100, np.uint8)
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 8:56] = 1
    drawn = pictures.outline(image, mask)
    changed = (drawn != image).any(-1)
    assert changed[16, 8:56].all() and changed[47, 8:56].all() and changed[16:48, 8].all() and changed[16:48, 55].all()
    assert not changed[22:42, 14:50].any() and not changed[:12].any() and not changed[52:].any()
    assert (image == 100).all()  # its input is left alone
    np.testing.assert_array_equal(pictures.outline(image, np.zeros((64, 64))), image)


def test_pairs_show_the_images_and_outlines():
    red, blue = np.full((3, 32, 32, 3), (255, 0, 0), np.uint8), np.full((3, 32, 32, 3), (0, 0, 255), np.uint8)
    mask = np.zeros((3, 32, 32), np.float32)
    mask[:, 8:24, 8:24] = 1
    picture = pictures.pairs(red, blue, mask, mask)
    assert shows(picture, (255, 0, 0), 1000) and shows(picture, (0, 0, 255), 1000) and shows(picture, (255, 215, 0))
    half = picture.shape[1] // 2
    assert not shows(picture[:, half:], (255, 0, 0)) and not shows(picture[:, :half], (0, 0, 255))
    assert picture.shape[0] > picture.shape[1]  # three rows, two columns
    with pytest.raises(ValueError):
        pictures.pairs(red, blue[:2], mask, mask[:2])


def test_mask_kinds():
    green = np.full((1, 32, 32, 3), (0, 255, 0), np.uint8)
    rectangle, full = np.zeros((1, 32, 32)), np.ones((1, 32, 32))
    picture = pictures.mask_kinds({"rectangle": (rectangle, green), "full": (full, green)})
    assert shows(picture, (0, 255, 0), 1000) and shows(picture, (0, 0, 0), 1000)
    assert shows(picture, (128, 128, 128), 8 * 223)  # a line around each mask: all foreground is white on white
    with pytest.raises(ValueError):
        pictures.mask_kinds({"full": (np.ones((2, 32, 32)), green)})


def test_maps_of_images_of_different_sizes():
    """White images: what is attended stays white, the rest is dimmed to a quarter."""
    white = [np.full((h, w, 3), 255, np.uint8) for h, w in ((40, 60), (50, 30))]
    values = [np.zeros(image.shape[:2], np.uint8) for image in white]
    values[0][:, :30] = 200
    picture = pictures.maps(white, values)
    assert is_picture(picture) and shows(picture, (63, 63, 63), 224 * 149 // 2)
    with pytest.raises(ValueError):
        pictures.maps(white, values[:1])


def test_pairs_take_images_of_any_side():
    images, mask = random_images(1, 300, 400), np.ones((1, 300, 400), np.float32)
    assert pictures.pairs(images, images, mask, mask).shape[1] > 800
