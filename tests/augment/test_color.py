"""Colour operations against colorsys, plain NumPy and Pillow."""

import colorsys
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from cp2_jax.augment import color
from cp2_jax.models import inputs


def planes(images):
    return jnp.asarray(np.moveaxis(images, -1, 1), jnp.float32)


def pixels(planes):
    return np.moveaxis(np.asarray(planes, np.float64), 1, -1)


def random_images(seed, n=1, height=6, width=5):
    rng = np.random.default_rng(seed)
    images = rng.random((n, height, width, 3))
    images[:, 0, 0] = 0.0  # black, white and gray have no hue
    images[:, 0, 1] = 1.0
    images[:, 0, 2] = 0.5
    images[:, 1, 0] = [1.0, 1.0, 0.2]  # two channels share the maximum
    images[:, 1, 1] = [0.3, 0.9, 0.9]
    images[:, 1, 2] = [0.9, 0.1, 0.9]
    return images


def luma(image):
    return image[..., 0] * 0.299 + image[..., 1] * 0.587 + image[..., 2] * 0.114


def oracle_step(image, operation, factor):
    """One operation on one float64 image, written from torchvision's documentation."""
    if operation == "hue":
        out = np.empty_like(image)
        for y, x in np.ndindex(image.shape[:2]):
            h, s, v = colorsys.rgb_to_hsv(*image[y, x])
            out[y, x] = colorsys.hsv_to_rgb((h + factor) % 1.0, s, v)
        return out
    if operation == "brightness":
        out = image * factor
    elif operation == "contrast":
        out = factor * image + (1 - factor) * luma(image).mean()
    else:
        out = factor * image + (1 - factor) * luma(image)[..., None]
    return np.minimum(np.maximum(out, 0), 1)


def oracle(image, factors, order):
    names = ["brightness", "contrast", "saturation", "hue"]
    for index in order:
        image = oracle_step(image, names[index], factors[index])
    return image


def test_every_order_matches_the_oracle():
    orders = list(itertools.permutations(range(4)))
    images = random_images(0, len(orders))
    rng = np.random.default_rng(1)
    factors = np.concatenate([rng.uniform(0.6, 1.4, (24, 3)), rng.uniform(-0.1, 0.1, (24, 1))], axis=1)
    got = pixels(color.jitter(planes(images), jnp.asarray(factors, jnp.float32), jnp.array(orders)))
    for row, order in enumerate(orders):
        np.testing.assert_allclose(got[row], oracle(images[row], factors[row], order), atol=5e-6)


def test_bytes_are_the_same_as_their_floats():
    images = np.random.default_rng(2).integers(0, 256, (24, 3, 8, 9), np.uint8)
    orders = jnp.array(list(itertools.permutations(range(4))))
    factors = jnp.tile(jnp.array([1.3, 0.7, 1.2, -0.08]), (24, 1))
    floats = color.jitter(jnp.asarray(images, jnp.float32) / 255, factors, orders)
    np.testing.assert_allclose(color.jitter(jnp.asarray(images), factors, orders), floats, atol=1e-6)


def test_orders_differ():
    orders = list(itertools.permutations(range(4)))
    images = np.repeat(random_images(3), 24, axis=0)
    factors = jnp.tile(jnp.array([1.4, 0.6, 1.3, 0.1]), (24, 1))
    got = pixels(color.jitter(planes(images), factors, jnp.array(orders)))
    for a, b in itertools.combinations(range(24), 2):
        assert np.abs(got[a] - got[b]).max() > 1e-6 or {orders[a][0], orders[b][0]} <= {0, 3}


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    factors=st.tuples(*[st.floats(0, 3, width=32)] * 3, st.floats(-0.5, 0.5, width=32)),
    order=st.permutations(range(4)),
)
def test_jitter_property(seed, factors, order):
    image = random_images(seed)
    got = pixels(color.jitter(planes(image), jnp.array([factors], jnp.float32), jnp.array([order])))
    assert got.min() >= 0 and got.max() <= 1 + 1e-6
    want = oracle(image[0], factors, order)
    # A hue is ill-conditioned where a pixel is nearly gray; such a pixel's colour then is nearly gray too, so the
    # tolerance holds, except that strong factors magnify rounding.
    np.testing.assert_allclose(got[0], want, atol=2e-4)


def test_neutral_factors_leave_images_untouched_to_the_bit():
    images = planes(random_images(5, 24))
    neutral = jnp.tile(jnp.array([1.0, 1.0, 1.0, 0.0]), (24, 1))
    got = color.jitter(images, neutral, jnp.array(list(itertools.permutations(range(4)))))
    np.testing.assert_array_equal(got, images)


def hue_shifted(images, shift):
    return pixels(jnp.stack(color.shift_hue(tuple(planes(images).swapaxes(0, 1)), shift), axis=1))


@pytest.mark.parametrize("shift", [-0.5, -0.1, 0.03, 1 / 3, 0.5])
def test_hue_keeps_value_and_spread(shift):
    images = random_images(7, 2)
    got = hue_shifted(images, jnp.full(2, shift))
    np.testing.assert_allclose(got.max(-1), images.max(-1), atol=1e-6)
    np.testing.assert_allclose(got.min(-1), images.min(-1), atol=1e-6)


def test_a_third_of_a_turn_rotates_the_channels():
    images = random_images(8, 1)
    got = hue_shifted(images, jnp.array([1 / 3]))
    np.testing.assert_allclose(got, images[..., [2, 0, 1]], atol=2e-6)


@pytest.mark.parametrize(
    "operation, enhance",
    [
        (color.BRIGHTNESS, ImageEnhance.Brightness),
        (color.CONTRAST, ImageEnhance.Contrast),
        (color.SATURATION, ImageEnhance.Color),
    ],
)
@pytest.mark.parametrize("factor", [0.6, 0.83, 1.4])
def test_blends_match_pillow_to_its_rounding(operation, enhance, factor):
    image = np.random.default_rng(2).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    want = np.asarray(enhance(Image.fromarray(image)).enhance(factor), np.float64)
    factors = np.array([[1.0, 1.0, 1.0, 0.0]], np.float32)
    factors[0, operation] = factor
    got = 255 * pixels(color.jitter(planes(image[None] / 255), jnp.asarray(factors), jnp.arange(4)[None]))[0]
    # Pillow truncates the result, and rounds the grayscale or its mean first.
    assert np.abs(got - want).max() < 1.5


def test_grayscale_matches_pillow():
    image = np.random.default_rng(4).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    want = np.asarray(Image.fromarray(image).convert("L"), np.float64)
    got = 255 * pixels(color.grayscale(planes(image[None] / 255)))[0, ..., 0]
    assert np.abs(got - want).max() <= 0.501


def test_normalize_by_hand():
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)
    image = np.array([[[0, 255, 51]]], np.uint8)
    got = inputs.normalize(jnp.asarray(image), mean, std)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, [[[-1.0, 3.0, 0.1]]], rtol=1e-6)
    np.testing.assert_allclose(inputs.normalize(jnp.asarray(image / 255, jnp.float32), mean, std), got, rtol=1e-6)


def test_normalize_keeps_float64(x64):
    image = jnp.asarray(np.random.default_rng(0).random((2, 3, 4, 3)))
    got = inputs.normalize(image, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert got.dtype == jnp.float64
    want = (np.asarray(image) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(got, want, rtol=1e-12)
