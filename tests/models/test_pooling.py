"""The stem's max-pool: its gradient by both forms, and against PyTorch's rule written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cp2_jax.models import measured, pooling


def by_hand(x, cotangent, low):
    """One window after the other: the first of the largest pixels gets the gradient."""
    batch, height, width, channels = x.shape
    y, gradient = np.zeros_like(cotangent), np.zeros_like(x)
    for at in np.ndindex(cotangent.shape):
        image, row, column, channel = at
        best = None
        for i in range(2 * row - low[0], 2 * row - low[0] + 3):
            for j in range(2 * column - low[1], 2 * column - low[1] + 3):
                inside = 0 <= i < height and 0 <= j < width
                if inside and (best is None or x[image, i, j, channel] > x[image, *best, channel]):
                    best = i, j
        y[at] = x[image, *best, channel]
        gradient[image, *best, channel] += cotangent[at]
    return y, gradient


@functools.partial(jax.jit, static_argnums=(2, 3))
def pooled(x, cotangent, padding, form):
    y, pull = jax.vjp(lambda x: pooling.max_pool(x, padding, form), x)
    return y, pull(cotangent)[0]


@pytest.mark.parametrize("size", [(9, 6), (1, 7), (4, 5), (2, 2)])
@pytest.mark.parametrize("padding", ["torch", "same"])
@pytest.mark.parametrize("form", ["scatter", "taps", "auto"])
def test_the_first_of_the_largest_gets_the_gradient(size, padding, form):
    """Of few values, so that most windows have ties, as after a ReLU."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(sum(size))
        x = np.maximum(rng.integers(-2, 3, (2, *size, 2)), 0).astype(np.float64)
        out = [(n + 1) // 2 for n in size]
        cotangent = rng.normal(size=(2, *out, 2))
        # TensorFlow pads an even side after it, an odd one on both sides.
        low = [1, 1] if padding == "torch" else [n % 2 for n in size]
        y, gradient = pooled(x, cotangent, padding, form)
        expected = by_hand(x, cotangent, low)
        np.testing.assert_array_equal(y, expected[0])
        np.testing.assert_allclose(gradient, expected[1], atol=1e-14)


def test_bfloat16_and_numbers_that_are_none():
    x = jax.random.normal(jax.random.key(0), (2, 12, 12, 3), jnp.bfloat16)

    def gradient(form, x):
        return jax.grad(lambda x: jnp.sum(pooling.max_pool(x, form=form).astype(jnp.float32) ** 2))(x)

    ours, xlas = gradient("taps", x), gradient("scatter", x.astype(jnp.float32))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(ours.astype(jnp.float32), xlas, rtol=2**-7)
    broken = x.at[0, 5, 5].set(jnp.nan)
    for form in ("taps", "scatter"):
        y = jax.vjp(lambda x, form=form: pooling.max_pool(x, form=form), broken)[0]
        assert np.isnan(np.asarray(y, np.float32)).sum() == 3 * 4  # four windows hold that pixel


PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


@pytest.mark.parametrize("size", [(8, 8), (7, 12)])
def test_the_table_decides_for_the_platform_compiled_for(size, monkeypatch):
    """All of it lowered on a CPU."""

    def scatters():
        traced = jax.jit(jax.grad(lambda x: jnp.sum(pooling.max_pool(x)))).trace(jnp.zeros((1, *size, 2)))
        return {p for p in PLATFORMS if "select_and_scatter" in traced.lower(lowering_platforms=(p,)).as_text()}

    assert scatters() == {"rocm", "tpu"}
    for table, expected in (
        ({"default": "scatter"}, set(PLATFORMS)),
        ({"default": "scatter", "cuda": "taps"}, {"cpu", "rocm", "tpu"}),
        ({"default": "taps", "cpu": "scatter"}, {"cpu"}),
    ):
        monkeypatch.setattr(measured, "POOL", table)
        assert scatters() == expected


def test_an_unknown_form_is_named():
    with pytest.raises(KeyError, match="winner"):
        pooling.max_pool(jnp.zeros((1, 8, 8, 2)), form="winner")
