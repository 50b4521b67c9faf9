"""Every form of a convolution against XLA's dilated one, and against sums written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.models import conv


def numpy_convolution(x, kernel, stride, dilation):
    """PyTorch's definition, one output pixel at a time, in float64."""
    pad = [dilation * (k // 2) for k in kernel.shape[:2]]
    x = np.pad(x.astype(np.float64), ((0, 0), (pad[0],) * 2, (pad[1],) * 2, (0, 0)))
    reach = [dilation * (k - 1) + 1 for k in kernel.shape[:2]]
    rows, columns = ((n - r) // stride + 1 for n, r in zip(x.shape[1:3], reach, strict=True))
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            window = x[:, i * stride :, j * stride :][:, : reach[0] : dilation, : reach[1] : dilation]
            out[:, i, j] = np.einsum("bijc,ijco->bo", window, kernel.astype(np.float64))
    return out


def draw(seed, x_shape, kernel_shape):
    rng = np.random.default_rng(seed)
    return rng.normal(size=x_shape).astype(np.float32), rng.normal(size=kernel_shape).astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(["auto", *sorted(conv.FORMS)]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    taps=st.sampled_from([(1, 1), (3, 3), (5, 3), (7, 7)]),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_every_form_is_the_sum_that_pytorch_defines(form, size, taps, stride, dilation, seed):
    stride = 1 if form == "interleaved" else stride
    x, kernel = draw(seed, (2, *size, 2), (*taps, 2, 3))
    y = conv.convolve(jnp.asarray(x), jnp.asarray(kernel), stride=stride, dilation=dilation, form=form)
    np.testing.assert_allclose(y, numpy_convolution(x, kernel, stride, dilation), atol=1e-4)


CASES = [(14, 3, 1, 18), (14, 3, 1, 12), (14, 3, 1, 6), (7, 3, 1, 2), (14, 3, 1, 1), (9, 3, 2, 1), (8, 1, 2, 1)]
CASES += [(2, 3, 1, 6)]


@pytest.mark.parametrize("size,taps,stride,dilation", CASES)
def test_every_form_has_the_native_gradients(size, taps, stride, dilation):
    """Both gradients, relative to the largest entry; weights that never meet the image get exactly zero."""
    x, kernel = draw(size * 100 + dilation, (2, size, size + 1, 3), (taps, taps, 3, 4))

    def run(form):
        def f(x, kernel):
            return conv.convolve(x, kernel, stride=stride, dilation=dilation, form=form)

        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(jnp.asarray(np.random.default_rng(1).normal(size=y.shape), y.dtype))

    expected = run("native")
    for form in ("auto", "cropped", "shifted", "columns", *(["interleaved"] if stride == 1 else [])):
        for ours, native in zip(jax.jit(run, static_argnums=0)(form), expected, strict=True):
            np.testing.assert_allclose(ours, native, atol=1e-5 * np.abs(native).max(), err_msg=form)
            assert ours.shape == native.shape
        if dilation > size and form != "native":
            unused = np.delete(np.asarray(jax.jit(run, static_argnums=0)(form)[2]).reshape(9, -1), 4, axis=0)
            assert not unused.any()


def test_sums_of_products_keep_float32_within_bfloat16():
    """Nine rounded products summed in bfloat16 would be off by more than the rounding of the result."""
    x, kernel = (jnp.asarray(v, jnp.bfloat16) for v in draw(3, (2, 8, 8, 64), (3, 3, 64, 8)))
    exact = numpy_convolution(np.asarray(x, np.float64), np.asarray(kernel, np.float64), 1, 2)
    for form in conv.FORMS:
        y = conv.convolve(x, kernel, dilation=2, form=form)
        assert y.dtype == jnp.bfloat16, form
        # Half a unit in the last of bfloat16's 8 bits.
        np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=2**-8, atol=1e-3, err_msg=form)


def test_choice_is_made_where_the_program_is_compiled_for():
    """A TPU program lowered on a CPU machine has XLA's convolution; the CPU program of the same function has none."""
    f = jax.jit(lambda x, k: conv.convolve(x, k, dilation=6))
    traced = f.trace(jnp.zeros((1, 14, 14, 8)), jnp.zeros((3, 3, 8, 8)))
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "stablehlo.dot_general" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_same_padding_is_tensorflows():
    """Even size, stride 2: one zero after, none before, where PyTorch pads one on each side."""
    x, kernel = draw(0, (1, 4, 4, 1), (3, 3, 1, 1))
    after = np.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    expected = [[np.sum(after[0, i : i + 3, j : j + 3, 0] * kernel[..., 0, 0]) for j in (0, 2)] for i in (0, 2)]
    y = conv.convolve(jnp.asarray(x), jnp.asarray(kernel), stride=2, padding="same")
    np.testing.assert_allclose(y[0, :, :, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "taps,options,message",
    [
        (3, dict(form="winograd"), "unknown form 'winograd': 'auto' or one of"),
        (3, dict(padding="valid"), "unknown padding 'valid'"),
        (3, dict(padding="same", form="shifted"), "with padding 'same' take 'native'"),
        (2, dict(), "kernel of 2 x 2: padding 'torch' needs odd sizes"),
        (3, dict(form="interleaved", stride=2), "form 'interleaved' has no stride 2"),
    ],
)
def test_wrong_options_are_named(taps, options, message):
    with pytest.raises(ValueError, match=message):
        conv.convolve(jnp.zeros((1, 4, 4, 1)), jnp.zeros((taps, taps, 1, 1)), **options)
