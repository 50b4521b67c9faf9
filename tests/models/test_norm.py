"""Batch norm's own gradient, with the ReLU behind it, against what JAX makes of the plain form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cp2_jax.models import measured, norm

# Six samples: contiguous groups, strided ones, one group; and vectors without space.
LAYOUTS = {
    "groups": norm.Groups(2, 3),
    "strided": norm.Groups(2, 3, strided=True),
    "one": norm.Groups(1, 6),
    "flat": norm.Groups(2, 3),
}


@functools.partial(jax.jit, static_argnames=("form", "relu", "layout", "dtype"))
def results(form, relu, layout, x, scale, bias, cotangent, dtype):
    def f(x, scale, bias):
        return norm.normalize(x, scale, bias, LAYOUTS[layout], 1e-5, dtype, relu, form)[0]

    y, pull = jax.vjp(f, x, scale, bias)
    return y, *pull(cotangent)


def draw(layout, seed=0):
    rng = np.random.default_rng(seed)
    shape = (6, *(() if layout == "flat" else (5, 3)), 4)
    return rng.normal(1, 2, shape), rng.normal(1, 1, 4), rng.normal(0, 1, 4), rng.normal(size=shape)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_group_by_itself_in_numpy(layout):
    x, scale, bias, _ = draw(layout)
    groups = [x[g::2] if layout == "strided" else part for g, part in enumerate(np.split(x, LAYOUTS[layout].count))]
    want = np.empty_like(x)
    for g, samples in enumerate(groups):
        axes = tuple(range(samples.ndim - 1))
        unit = (samples - samples.mean(axes)) / np.sqrt(samples.var(axes) + 1e-5)
        where = slice(g, None, 2) if layout == "strided" else slice(g * len(samples), (g + 1) * len(samples))
        want[where] = np.maximum(unit * scale + bias, 0)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a) for a in (x, scale, bias)]
        y, mean, var = norm.normalize(*arrays, LAYOUTS[layout], 1e-5, jnp.float64, True)
    np.testing.assert_allclose(y, want, rtol=1e-10, atol=1e-12)
    for g, samples in enumerate(groups):
        np.testing.assert_allclose(mean[g], samples.mean(tuple(range(samples.ndim - 1))), rtol=1e-12)
        np.testing.assert_allclose(var[g], samples.var(tuple(range(samples.ndim - 1))), rtol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_in_float64(layout, relu):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(a) for a in draw(layout)]
        found = [results(form, relu, layout, *arrays, jnp.float64) for form in ("two_sums", "differentiated")]
        for ours, plain in zip(*found, strict=True):
            assert ours.dtype == jnp.float64
            np.testing.assert_allclose(ours, plain, rtol=1e-10, atol=1e-12)
        if relu:
            assert (found[0][0] == 0).any() and (found[0][0] > 0).any()


def test_bfloat16_is_within_its_rounding():
    x, scale, bias, cotangent = draw("strided", 1)
    x, cotangent = (jnp.asarray(v, jnp.bfloat16) for v in (x, cotangent))
    scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    # Operation by operation, so that every rounding is made.
    by_operation = results.__wrapped__
    ours = by_operation("two_sums", True, "strided", x, scale, bias, cotangent, jnp.bfloat16)
    wide = by_operation(
        "differentiated", True, "strided", *(v.astype(jnp.float32) for v in (x, scale, bias, cotangent)), jnp.float32
    )
    for mine, exact in zip(ours, wide, strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), exact, rtol=2**-7, atol=2**-6)
    assert ours[1].dtype == jnp.bfloat16 and ours[2].dtype == jnp.float32


@pytest.mark.parametrize("options", [dict(groups=2), dict(groups=2, strided=True), dict(relu=True)])
def test_the_layer_computes_the_same_by_either_form(options, monkeypatch):
    """Output, running averages and gradient; the table decides by platform, also where it is differentiated."""
    layer, x = norm.BatchNorm(**options), jnp.asarray(draw("groups")[0], jnp.float32)
    variables = layer.init(jax.random.key(0), x, True)

    def run():
        def loss(params):
            y, changed = layer.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(y**3), (y, changed)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    def lowered():
        traced = jax.jit(lambda: run()).trace()  # a new function, lest the old trace serve
        return [traced.lower(lowering_platforms=(p,)).as_text() for p in ("tpu", "rocm")]

    plain = run()
    assert len(set(lowered())) == 1
    monkeypatch.setattr(measured, "NORM", {"default": "differentiated", "cpu": "two_sums", "rocm": "two_sums"})
    assert len(set(lowered())) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), run(), plain)
    with pytest.raises(KeyError, match="guessed"):
        norm.normalize(x, jnp.ones(4), jnp.ones(4), norm.Groups(2, 3), 1e-5, x.dtype, False, "guessed")
