"""Batch norm's own gradient, with the ReLU behind it, against what JAX makes of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cp2_jax.models import measured, norm

# (groups and samples, axes that are averaged): contiguous groups, strided ones, one group, and vectors without space.
LAYOUTS = {
    "groups": ((2, 3), (1, 2, 3)),
    "strided": ((3, 2), (0, 2, 3)),
    "one": ((1, 6), (1, 2, 3)),
    "flat": ((2, 3), (1,)),
}


def results(form, relu, layout, x, scale, bias, cotangent, dtype):
    _, axes = LAYOUTS[layout]

    def f(x, scale, bias):
        return norm.normalize(x, scale, bias, axes, 1e-5, dtype, relu, form)[0]

    y, pull = jax.vjp(f, x, scale, bias)
    return y, *pull(cotangent)


def draw(layout, seed=0):
    rng = np.random.default_rng(seed)
    shape = (*LAYOUTS[layout][0], *(() if layout == "flat" else (5, 3)), 4)
    return rng.normal(1, 2, shape), rng.normal(1, 1, 4), rng.normal(0, 1, 4), rng.normal(size=shape)


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
    ours = results("two_sums", True, "strided", x, scale, bias, cotangent, jnp.bfloat16)
    wide = results(
        "differentiated", True, "strided", *(v.astype(jnp.float32) for v in (x, scale, bias, cotangent)), jnp.float32
    )
    for mine, exact in zip(ours, wide, strict=True):
        np.testing.assert_allclose(mine.astype(jnp.float32), exact, rtol=2**-7, atol=2**-6)
    assert ours[1].dtype == jnp.bfloat16 and ours[2].dtype == jnp.float32


@pytest.mark.parametrize("options", [dict(groups=2), dict(groups=2, strided=True), dict(relu=True)])
def test_the_layer_computes_the_same_by_either_form(options, monkeypatch):
    """Output, running averages and gradient; the table decides by platform, also where it is differentiated."""
    layer, x = norm.BatchNorm(**options), jnp.asarray(draw("groups")[0].reshape(6, 5, 3, 4), jnp.float32)
    variables = layer.init(jax.random.key(0), x, True)

    def run():
        def loss(params):
            y, changed = layer.apply({**variables, "params": params}, x, True, mutable=["batch_stats"])
            return jnp.sum(y**3), (y, changed)

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    plain = run()
    monkeypatch.setattr(measured, "NORM", {"default": "differentiated", "cpu": "two_sums"})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), run(), plain)
    kept = jax.jit(run).trace()
    cuda, cpu = (kept.lower(lowering_platforms=(p,)).as_text() for p in ("cuda", "cpu"))
    assert "optimization_barrier" in cpu and "optimization_barrier" not in cuda  # `two_sums` has one
    with pytest.raises(KeyError, match="guessed"):
        norm.normalize(x[None], jnp.ones(4), jnp.ones(4), (1,), 1e-5, x.dtype, False, "guessed")
