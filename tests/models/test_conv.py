"""Every form of a convolution against XLA's dilated one, and against sums written out in NumPy."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.models import conv, measured


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


def fitting(form, stride, dilation):
    """(stride, dilation) that the form has."""
    return 1 if form == "interleaved" else stride, 1 if form.startswith("blocks") else dilation


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
    stride, dilation = fitting(form, stride, dilation)
    x, kernel = draw(seed, (2, *size, 2), (*taps, 2, 3))
    # Compiled whole: by single operations an example takes ten times as long.
    convolve = jax.jit(functools.partial(conv.convolve, stride=stride, dilation=dilation, form=form))
    y = convolve(jnp.asarray(x), jnp.asarray(kernel))
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
    for form in ["auto", *sorted(conv.FORMS)]:
        if fitting(form, stride, dilation) != (stride, dilation):
            continue
        for ours, native in zip(jax.jit(run, static_argnums=0)(form), expected, strict=True):
            np.testing.assert_allclose(ours, native, atol=1e-5 * np.abs(native).max(), err_msg=form)
            assert ours.shape == native.shape
        if dilation > size and form != "native":
            unused = np.delete(np.asarray(jax.jit(run, static_argnums=0)(form)[2]).reshape(9, -1), 4, axis=0)
            assert not unused.any()


def test_sums_of_products_keep_float32_within_bfloat16():
    """Nine rounded products summed in bfloat16 would be off by more than the rounding of the result."""
    x, kernel = (jnp.asarray(v, jnp.bfloat16) for v in draw(3, (2, 8, 8, 64), (3, 3, 64, 8)))
    exact = {d: numpy_convolution(np.asarray(x, np.float64), np.asarray(kernel, np.float64), 1, d) for d in (1, 2)}
    for form in conv.FORMS:
        rate = 1 if form.startswith("blocks") else 2
        y = conv.convolve(x, kernel, dilation=rate, form=form)
        assert y.dtype == jnp.bfloat16, form
        # Half a unit in the last of bfloat16's 8 bits.
        np.testing.assert_allclose(np.asarray(y, np.float64), exact[rate], rtol=2**-8, atol=1e-3, err_msg=form)


def passes(form, stride, dilation, x, kernel, cotangent):
    """Output and both gradients."""
    y, pull = jax.vjp(lambda x, k: conv.convolve(x, k, stride=stride, dilation=dilation, form=form), x, kernel)
    return y, *pull(cotangent)


# Odd, oblong and small maps; rates that meet little of them; the stem.
SMALL = [((7, 5), 3, 1, 2), ((5, 14), 3, 1, 6), ((1, 9), 3, 1, 12), ((9, 13), 3, 2, 1), ((15, 10), 7, 2, 1)]
SMALL += [((4, 4), 5, 3, 1), ((13, 11), 3, 2, 2)]


@pytest.mark.parametrize("size,taps,stride,dilation", SMALL)
def test_every_pass_of_every_form_in_float64(size, taps, stride, dilation):
    """Also where each pass has a form of its own."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(taps)
        x, kernel = jnp.asarray(rng.normal(size=(2, *size, 3))), jnp.asarray(rng.normal(size=(taps, taps, 3, 4)))
        cotangent = jnp.asarray(rng.normal(size=(2, *((n - 1) // stride + 1 for n in size), 4)))
        assert x.dtype == jnp.float64
        expected = passes("native", stride, dilation, x, kernel, cotangent)
        np.testing.assert_allclose(expected[0], numpy_convolution(x, kernel, stride, dilation), atol=1e-12)
        fit = [form for form in sorted(conv.FORMS) if fitting(form, stride, dilation) == (stride, dilation)]
        mixed = [conv.Forms(a, b, c) for a, b, c in zip(fit[::2], fit[1::2], fit[::-2], strict=False)]
        every = jax.jit(lambda *args: [passes(form, stride, dilation, *args) for form in fit + mixed])
        for form, results in zip(fit + mixed, every(x, kernel, cotangent), strict=True):
            for name, ours, native in zip(("y", "x", "kernel"), results, expected, strict=True):
                assert ours.dtype == jnp.float64
                np.testing.assert_allclose(ours, native, atol=1e-12, err_msg=f"{form} {name}")


@pytest.mark.parametrize(
    "form", ["taps", conv.Forms("cropped", "cropped", "interleaved"), conv.Forms("taps", "taps", "taps")]
)
def test_gradients_in_bfloat16_are_within_its_rounding(form):
    """Against float32 on the same rounded numbers: the sums are float32's, the result is rounded once."""
    x, kernel = (jnp.asarray(v, jnp.bfloat16) for v in draw(5, (4, 14, 13, 16), (3, 3, 16, 8)))
    cotangent = jnp.asarray(np.random.default_rng(6).normal(size=(4, 14, 13, 8)), jnp.bfloat16)
    wide = [v.astype(jnp.float32) for v in (x, kernel, cotangent)]
    for ours, exact in zip(passes(form, 1, 12, x, kernel, cotangent), passes("native", 1, 12, *wide), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=2e-3)


def test_products_of_taps_take_bfloat16_in_the_gradients_too():
    """No operand is widened: that is what made the gradients twice as slow as the forward pass."""
    args = (jnp.zeros(s, jnp.bfloat16) for s in ((2, 14, 14, 8), (3, 3, 8, 4), (2, 14, 14, 4)))
    text = jax.jit(lambda x, k, g: passes("taps", 1, 12, x, k, g)).lower(*args).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) == 27 and all(line.split(":")[-1].count("xbf16>") == 2 for line in products)


SHAPE_12 = conv.Shape((14, 14), 2048, 512, (3, 3), dilation=12)
SHAPE_2 = conv.Shape((14, 14), 512, 512, (3, 3), dilation=2)


def test_each_pass_is_chosen_by_what_was_measured(monkeypatch):
    assert measured.choose("cuda", SHAPE_12) == conv.Forms("taps", "taps", "taps")
    assert measured.choose("cuda", SHAPE_2) == conv.Forms("cropped", "cropped", "interleaved")
    # Columns took 2.26 ms where XLA's took 2.30: no gain.
    assert measured.choose("cuda", dataclasses.replace(SHAPE_2, inputs=2048, dilation=6)) == conv.Forms()
    for shape in (SHAPE_12, SHAPE_2):
        assert measured.choose("default", shape) == conv.Forms()
        # Not measured: another map, other channels, another dtype.
        for change in (dict(size=(32, 32)), dict(inputs=384), dict(dtype="float32")):
            assert measured.choose("cuda", dataclasses.replace(shape, **change)) == conv.Forms(), change
    # A later run of a form counts in place of an earlier, and a pass that was not measured is not chosen.
    row = next(r for r in measured.MEASURED if r.form == "taps")
    again = dataclasses.replace(row, forward=9.0, inputs=None)
    monkeypatch.setattr(measured, "MEASURED", (*measured.MEASURED, again))
    assert measured.choose("cuda", SHAPE_12) == conv.Forms("shifted", "shifted", "taps")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("size", [(14, 14), (13, 15), (1, 9)])
def test_what_is_chosen_by_platform_dtype_and_size(size, dtype):
    """CPUs by a rule that knows neither; NVIDIA cards by what was measured of just this; any other platform XLA's."""
    native, shifted = conv.Forms(), conv.Forms("shifted", "shifted", "shifted")
    few_weights, to_few = conv.Forms("shifted", "shifted", "cropped"), conv.Forms("cropped", "shifted", "cropped")
    for taps, stride, rate, expected in (
        ((3, 3), 1, 12, shifted),
        ((3, 3), 1, 6, shifted),
        ((3, 3), 1, 3, shifted),
        ((5, 3), 1, 3, shifted),
        ((3, 3), 1, 2, few_weights),
        ((3, 3), 1, 1, native),
        ((3, 3), 2, 1, native),
        ((3, 3), 2, 6, native),
        ((7, 7), 2, 1, native),
        ((1, 1), 1, 1, shifted),
        ((1, 1), 2, 1, shifted),
    ):
        for channels in (2048, 2047):
            shape = conv.Shape(size, channels, 512, taps, stride, rate, dtype)
            assert measured.choose("cpu", shape) == expected, shape
            assert {measured.choose(platform, shape) for platform in ("default", "tpu", "rocm")} == {native}
            known = (size, dtype, channels, taps, stride, rate) == ((14, 14), "bfloat16", 2048, (3, 3), 1, 12)
            assert measured.choose("cuda", shape) == (conv.Forms("taps", "taps", "taps") if known else native), shape
    for inputs, outputs, rate, expected in ((511, 512, 2, native), (2560, 512, 1, to_few), (2048, 512, 1, native)):
        assert measured.choose("cpu", conv.Shape(size, inputs, outputs, (3, 3), 1, rate, dtype)) == expected


def test_the_table_names_forms_and_says_where_and_when():
    for row in measured.MEASURED:
        assert row.form in conv.FORMS and row.card and re.fullmatch(r"\d{4}-\d\d-\d\d", row.date) and row.batch > 0


def test_a_program_for_gpus_has_the_measured_forms():
    """Traced and lowered on a CPU: the choice is made for the platform that it is compiled for."""

    def gradients(x, kernel):
        return jax.grad(lambda x, k: jnp.sum(conv.convolve(x, k, dilation=12).astype(jnp.float32)), (0, 1))(x, kernel)

    shapes = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((1, 14, 14, 2048), (3, 3, 2048, 512)))
    traced = jax.jit(gradients).trace(*shapes)
    cuda, tpu = (traced.lower(lowering_platforms=(p,)).as_text() for p in ("cuda", "tpu"))
    assert "stablehlo.convolution" not in cuda and "stablehlo.dot_general" in cuda
    assert "stablehlo.convolution" in tpu and "stablehlo.dot_general" not in tpu


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
        (3, dict(form="blocks", dilation=2), "form 'blocks' has no rate 2"),
        (3, dict(form=conv.Forms(weights="winograd")), "unknown form 'winograd'"),
    ],
)
def test_wrong_options_are_named(taps, options, message):
    with pytest.raises(ValueError, match=message):
        conv.convolve(jnp.zeros((1, 4, 4, 1)), jnp.zeros((taps, taps, 1, 1)), **options)
