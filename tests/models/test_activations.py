"""The exact GELU against SciPy's normal distribution, with its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from cp2_jax.models.activations import gelu

POINTS = np.concatenate([np.linspace(-9, 9, 601), [-40.0, 0.0, 40.0]])


def wanted(x):
    return x * norm.cdf(x), norm.cdf(x) + x * norm.pdf(x)


@pytest.mark.parametrize("dtype,allowed", [("float64", 1e-15), ("float32", 3e-7), ("bfloat16", 2**-8)])
def test_value_and_gradient(dtype, allowed):
    """Within rounding of the largest, for small results are small differences, as in PyTorch."""
    with jax.enable_x64(True):
        x = jnp.asarray(POINTS, dtype)
        y, pull = jax.vjp(gelu, x)
        (slope,) = pull(jnp.ones_like(x))
        assert y.dtype == slope.dtype == x.dtype
        for ours, exact in zip((y, slope), wanted(np.asarray(x, np.float64)), strict=True):
            np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=allowed, atol=4 * allowed)


def test_only_the_argument_is_kept():
    x = jnp.asarray(POINTS, jnp.bfloat16)
    kept = jax.tree.leaves(jax.vjp(gelu, x)[1])
    assert [(k.shape, k.dtype) for k in kept] == [(x.shape, x.dtype)]
