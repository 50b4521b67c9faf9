"""Blur against Pillow and against Pillow's filters written out in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from cp2_jax.augment import blur


def smooth_image(seed, height=40, width=56):
    """A picture with edges and texture up to its border, uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    image = 120 + 60 * np.sin(x / 5 + rng.random(3)[:, None, None] * 6) + 50 * np.cos(y / 7)
    image = image + 60 * ((x // 9 + y // 11) % 2) - 20 + rng.normal(0, 6, (3, height, width))
    return np.clip(np.moveaxis(image, 0, -1), 0, 255).astype(np.uint8)


def planes(image):
    return jnp.asarray(np.moveaxis(image, -1, 0)[None], jnp.float32)


def box_line(line, radius):
    """One box filter of fractional radius along a line, its ends repeated: one pixel after the other."""
    whole = int(radius)
    full = 1 / (2 * radius + 1)
    part = (1 - (2 * whole + 1) * full) / 2
    n, out = len(line), np.zeros(len(line))
    for i in range(n):
        for offset in range(-whole, whole + 1):
            out[i] += full * line[min(max(i + offset, 0), n - 1)]
        out[i] += part * (line[max(i - whole - 1, 0)] + line[min(i + whole + 1, n - 1)])
    return out


def pillow_radius(sigma):
    """`_gaussian_blur_radius` of Pillow's BoxBlur.c for three passes."""
    variance = sigma * sigma / 3
    length = np.sqrt(12 * variance + 1)
    whole = np.floor((length - 1) / 2)
    return whole + (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.8, 1.3, 2.0])
def test_matches_the_filters_written_out(sigma):
    line = np.random.default_rng(0).random(23)
    want = line
    for _ in range(3):
        want = box_line(want, pillow_radius(sigma))
    image = np.tile(line[None, :, None], (4, 1, 3))
    got = blur.gaussian_blur(planes(image), jnp.array([sigma]), 2.0)
    np.testing.assert_allclose(got[0], np.tile(want, (3, 4, 1)), atol=2e-6)
    # and the other way round
    got = blur.gaussian_blur(planes(image.swapaxes(0, 1)), jnp.array([sigma]), 2.0)
    np.testing.assert_allclose(got[0], np.tile(want[:, None], (3, 1, 4)), atol=2e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0])
def test_matches_pillow_to_its_rounding(sigma):
    image = smooth_image(1)
    want = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), np.float64)
    got = np.moveaxis(np.asarray(blur.gaussian_blur(planes(image), jnp.array([sigma]), 2.0))[0], 0, -1)
    # Pillow rounds after each of its six passes: half a level each, at most.
    assert np.abs(got - want).max() <= 3.0
    assert np.abs(got - want).mean() <= 0.8


@pytest.mark.parametrize("sigma", [0.7, 1.2, 2.0])
def test_is_a_gaussian(sigma):
    """An impulse spreads with variance sigma^2 in both directions and close to the bell curve."""
    image = np.zeros((41, 41, 3))
    image[20, 20] = 1
    got = np.asarray(blur.gaussian_blur(planes(image), jnp.array([sigma]), 2.0))[0, 0]
    offsets = np.arange(41) - 20
    for marginal in (got.sum(0), got.sum(1)):
        assert marginal.sum() == pytest.approx(1, abs=1e-5)
        assert (marginal * offsets**2).sum() == pytest.approx(sigma**2, rel=1e-4)
    bell = np.exp(-0.5 * (offsets / sigma) ** 2)
    assert np.abs(got.sum(0) - bell / bell.sum()).max() < 0.05


def test_each_image_has_its_own_sigma():
    sigmas = np.array([0.0, 0.4, 1.1, 2.0], np.float32)
    batch = jnp.concatenate([planes(smooth_image(i)) for i in range(4)])
    got = blur.gaussian_blur(batch, jnp.asarray(sigmas), 2.0)
    np.testing.assert_allclose(got[0], batch[0], atol=1e-4)  # 0-255 here
    for i in range(1, 4):
        alone = blur.gaussian_blur(batch[i : i + 1], jnp.asarray(sigmas[i : i + 1]), 2.0)
        np.testing.assert_allclose(got[i], alone[0], atol=1e-3)
        assert np.abs(got[i] - batch[i]).max() > 5


def test_a_larger_bound_changes_nothing():
    image = planes(smooth_image(3))
    got = blur.gaussian_blur(image, jnp.array([1.5]), 2.0)
    np.testing.assert_allclose(blur.gaussian_blur(image, jnp.array([1.5]), 6.0), got, atol=1e-3)


@pytest.mark.parametrize("size", [(40, 56), (12, 9), (7, 40)])
def test_what_is_turned_round_is_the_mirror_image_of_what_is_not(size):
    batch = jnp.concatenate([planes(smooth_image(i, *size)) for i in range(3)])
    sigma, flip = jnp.array([1.5, 0.0, 0.7]), jnp.array([True, True, False])
    got, plain = blur.gaussian_blur(batch, sigma, 2.0, flip=flip), blur.gaussian_blur(batch, sigma, 2.0)
    np.testing.assert_allclose(got[:2], plain[:2, :, :, ::-1], atol=1e-4)  # 0-255 here
    np.testing.assert_array_equal(got[2], plain[2])


def test_constant_images_stay():
    image = jnp.full((1, 3, 9, 12), 0.7)
    np.testing.assert_allclose(blur.gaussian_blur(image, jnp.array([2.0]), 2.0), image, atol=1e-6)


@pytest.mark.parametrize("size", [1, 5, 12, 13, 14, 40])
def test_a_long_line_is_a_short_one_drawn_out(size):
    """The matrix against the product of three boxes of the whole line."""
    sigma = jnp.array([0.0, 0.1, 0.6, 1.3, 2.0])
    np.testing.assert_allclose(blur._three_boxes(size, sigma, 2.0), blur._short_boxes(size, sigma, 2.0), atol=2e-7)


def rounded(x):
    """x with float16's 11 bits (and its smallest numbers)."""
    return np.asarray(x, np.float16).astype(np.float32)


def emulated(image, sigma):
    """The blur with operands and results rounded, products summed in float32."""
    rows, columns = (rounded(blur._three_boxes(n, jnp.array([sigma]), 2.0)[0]) for n in image.shape[2:])
    halfway = rounded(np.einsum("ij,cjk->cik", rows, rounded(image[0])))
    return rounded(np.einsum("cik,lk->cil", halfway, columns))


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.8, 1.3, 2.0])
def test_in_float16_it_is_near_the_originals_blur(sigma):
    """In grey levels of 255, on average, against the exact filters; and what the form gives on a CPU."""
    image = planes(smooth_image(2)) / 255
    exact = blur.gaussian_blur(image, jnp.array([sigma]), 2.0, "float32")[0]
    error = 255 * np.abs(emulated(image, sigma) - exact)
    print(f"at {sigma}: {error.mean():.3f} on average, {error.max():.2f} at most")
    assert 0 < error.mean() <= 0.06
    ours = blur.gaussian_blur(image, jnp.array([sigma]), 2.0, "float16")
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours[0], emulated(image, sigma), atol=1e-3)


def test_the_form_is_chosen_for_the_platform_compiled_for():
    traced = jax.jit(lambda x, s: blur.gaussian_blur(x, s, 2.0)).trace(jnp.zeros((1, 3, 20, 24)), jnp.ones(1))
    for platform, count in (("cpu", 6), ("tpu", 6), ("cuda", 4)):  # of products; four make the two short lines' matrices
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        highest = re.findall(r"dot_general.*precision = \[HIGHEST, HIGHEST\]", text)
        assert len(highest) == count, platform
