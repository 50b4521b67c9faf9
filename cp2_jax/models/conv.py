"""Convolutions as PyTorch pads them; the form that computes them is chosen per platform, pass and shape.

Parameters never depend on the form. `conv_forms` has the forms, `measured` what was measured and the choice.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cp2_jax.models import conv_forms, measured
from cp2_jax.models.conv_forms import FORMS
from cp2_jax.models.measured import Forms, Shape
from cp2_jax.models.norm import BatchNorm

# kaiming_normal_(mode="fan_out", nonlinearity="relu"): the original's law for every convolution followed by a norm.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolve(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: str = "torch",
    form: str | Forms = "auto",
) -> Float[Array, "batch out_height out_width outputs"]:
    """2-D convolution, NHWC and HWIO, of `x`'s dtype.

    Args:
      padding: "torch": dilation * (size // 2) zeros on each side; "same": TensorFlow's, which for stride 2 and even
        sizes pads less on the leading side.
      form: how it is computed; "auto" takes what was measured fastest on the platform it is compiled for
        (`measured.choose`); a name of `conv_forms.FORMS` for all passes, or one for each.

    Raises:
      ValueError: for an unknown form or padding, an even kernel with "torch", a form other than "native" with "same",
        or a form that has no such stride or rate.
    """
    if padding not in ("torch", "same"):
        raise ValueError(f"unknown padding {padding!r}: 'torch' or 'same'")
    rows, columns = kernel.shape[:2]
    if padding == "same":
        if form not in ("auto", "native"):
            raise ValueError(f"form {form!r} pads as PyTorch does; with padding 'same' take 'native'")
        return conv_forms.convolution(x, kernel, stride, dilation, "SAME")
    if rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"kernel of {rows} x {columns}: padding 'torch' needs odd sizes")
    if form == "auto":
        shape = Shape(x.shape[1:3], *kernel.shape[2:], kernel.shape[:2], stride, dilation, x.dtype.name)
        return _chosen(x, kernel, stride, dilation, {p: measured.choose(p, shape) for p in ("cpu", "cuda", "default")})
    if isinstance(form, str):
        form = Forms(form, form, form)
    for name in (form.forward, form.inputs, form.weights):
        if name not in FORMS:
            raise ValueError(f"unknown form {name!r}: 'auto' or one of {sorted(FORMS)}")
    return _computed(x, kernel, stride, dilation, form)


def _chosen(x, kernel, stride, dilation, forms):
    """Convolve by the forms, {platform: `Forms`}, of the platform that the program is compiled for.

    That is decided when it is compiled, not when it is traced: a step compiled for TPUs on a CPU machine gets the TPUs'.
    """
    if len(set(forms.values())) == 1:
        return _computed(x, kernel, stride, dilation, forms["default"])
    # A platform whose forms are the default's is left to it: one branch less to trace.
    ways = tuple((p, f) for p, f in forms.items() if p == "default" or f != forms["default"])
    if all(_is_one(f) for _, f in ways):
        return _branched(x, kernel, stride, dilation, ways)
    return _by_platform(x, kernel, stride, dilation, ways)


def _computed(x, kernel, stride, dilation, forms):
    if _is_one(forms):
        return FORMS[forms.forward](x, kernel, stride, dilation)
    return _by_platform(x, kernel, stride, dilation, (("default", forms),))


def _is_one(forms):
    """Whether all passes have one form, which is left to JAX to differentiate."""
    return forms.forward == forms.inputs == forms.weights and forms.forward not in conv_forms.GRADIENTS


def _branched(x, kernel, stride, dilation, ways):
    branches = {p: functools.partial(FORMS[f.forward], stride=stride, dilation=dilation) for p, f in ways}
    return jax.lax.platform_dependent(x, kernel, **branches)


# With a derivative of its own, so that each pass has its form.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _by_platform(x, kernel, stride, dilation, ways):
    return _branched(x, kernel, stride, dilation, ways)


def _by_platform_forward(x, kernel, stride, dilation, ways):
    return _by_platform(x, kernel, stride, dilation, ways), (x, kernel)


def _by_platform_backward(stride, dilation, ways, saved, cotangent):
    branches = {p: functools.partial(_gradients, stride=stride, dilation=dilation, forms=f) for p, f in ways}
    return jax.lax.platform_dependent(cotangent, *saved, **branches)


_by_platform.defvjp(_by_platform_forward, _by_platform_backward)


def _gradients(cotangent, x, kernel, stride, dilation, forms):
    if forms.inputs == forms.weights and forms.inputs not in conv_forms.GRADIENTS:
        return jax.vjp(functools.partial(FORMS[forms.inputs], stride=stride, dilation=dilation), x, kernel)[1](cotangent)
    both = enumerate((forms.inputs, forms.weights))
    return tuple(conv_forms.gradient(form, i, cotangent, x, kernel, stride, dilation) for i, form in both)


class Conv(nn.Module):
    """Bias-free 2-D convolution with PyTorch's padding; parameter `kernel` [rows, columns, inputs, outputs]."""

    features: int
    size: int = 3
    stride: int = 1
    dilation: int = 1
    padding: str = "torch"
    dtype: jnp.dtype = jnp.float32
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (self.size, self.size, x.shape[-1], self.features))
        return convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            dilation=self.dilation,
            padding=self.padding,
        )


class ConvBnRelu(nn.Module):
    """Convolution without bias, batch norm, ReLU: MMSegmentation's ConvModule."""

    features: int
    size: int = 3
    dilation: int = 1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(self.features, self.size, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
        return self.norm(dtype=self.dtype, relu=True, name="bn")(x, train)
