"""Convolutions as PyTorch pads them, and the one place where the form that computes them is chosen.

All forms are exact: they leave out multiplications with padding, or change the order of a sum. Parameters never depend
on the form. `benchmarks/convs.py` measures them; `choose` holds what was measured.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    form: str = "auto",
) -> Float[Array, "batch out_height out_width outputs"]:
    """2-D convolution, NHWC and HWIO, of `x`'s dtype.

    Args:
      padding: "torch": dilation * (size // 2) zeros on each side; "same": TensorFlow's, which for stride 2 and even
        sizes pads less on the leading side.
      form: how it is computed; "auto" takes what was measured fastest on the platform it is compiled for.
        "native": XLA's convolution of the whole kernel.
        "cropped": the same without the rows and columns of the kernel that can meet nothing but padding: at rate 18
          on a 14 x 14 map only the centre of a 3 x 3 kernel ever meets the image.
        "shifted": for each tap one matrix product of the pixels that it meets, added where it meets them.
        "columns": the pixels that each output reads side by side (im2col), then one matrix product.
        "interleaved": a kernel at rate d on d x d sub-maps of every d-th pixel is an ordinary convolution.

    Raises:
      ValueError: for an unknown form or padding, an even kernel with "torch", a form other than "native" with "same",
        or "interleaved" with a stride.
    """
    if padding not in ("torch", "same"):
        raise ValueError(f"unknown padding {padding!r}: 'torch' or 'same'")
    rows, columns = kernel.shape[:2]
    if padding == "same":
        if form not in ("auto", "native"):
            raise ValueError(f"form {form!r} pads as PyTorch does; with padding 'same' take 'native'")
        return _convolution(x, kernel, stride, dilation, "SAME")
    if rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"kernel of {rows} x {columns}: padding 'torch' needs odd sizes")
    if form == "auto":
        forms = {p: choose(p, rows, columns, stride, dilation) for p in ("cpu", "default")}
        if forms["cpu"] == forms["default"]:
            return FORMS[forms["cpu"]](x, kernel, stride, dilation)
        # Decided when compiled, not when traced: a step compiled for TPUs on a CPU machine gets the TPUs' form.
        branches = {p: functools.partial(FORMS[f], stride=stride, dilation=dilation) for p, f in forms.items()}
        return jax.lax.platform_dependent(x, kernel, **branches)
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: 'auto' or one of {sorted(FORMS)}")
    return FORMS[form](x, kernel, stride, dilation)


def choose(platform: str, rows: int, columns: int, stride: int, dilation: int) -> str:
    """Return the form for a kernel of `rows` x `columns` on a platform ("cpu", or anything else: "default").

    Measured on CPU alone, by `benchmarks/convs.py`: XLA's native convolution there reads all the padding of rates 6 and
    12, and takes 2 to 8 times as long over the weight gradient of a 1x1 as a matrix product does; at rates 1 and 2 no
    form is clearly better than it. GPUs and TPUs get XLA's own, unmeasured.
    """
    if platform == "cpu" and (rows == columns == 1 or (stride == 1 and dilation > 2)):
        return "shifted"
    return "cropped"


def _convolution(x, kernel, stride, dilation, padding):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _native(x, kernel, stride, dilation):
    return _convolution(x, kernel, stride, dilation, [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]])


def _crop(kernel, height, width, dilation):
    """Leave out the rows and columns of a kernel that can meet nothing but padding."""
    keep = []
    for taps, size in zip(kernel.shape[:2], (height, width), strict=True):
        reach = min(taps // 2, (size - 1) // dilation)
        keep.append(slice(taps // 2 - reach, taps // 2 + reach + 1))
    return kernel[keep[0], keep[1]]


def _cropped(x, kernel, stride, dilation):
    return _native(x, _crop(kernel, *x.shape[1:3], dilation), stride, dilation)


def _taps(taps, size, stride, dilation):
    """For each tap along one axis that meets the image: (tap, first output, end, slice of the inputs that they read)."""
    outputs = (size - 1) // stride + 1
    for tap in range(taps):
        offset = (tap - taps // 2) * dilation
        first = max(0, -(offset // stride))
        end = min(outputs, (size - 1 - offset) // stride + 1)
        if first < end:
            yield tap, first, end, slice(first * stride + offset, (end - 1) * stride + offset + 1, stride)


def _shifted(x, kernel, stride, dilation):
    height, width = ((n - 1) // stride + 1 for n in x.shape[1:3])
    # A sum of several products is kept in float32, as inside a convolution.
    wide = x.dtype if kernel.shape[:2] == (1, 1) else jnp.promote_types(x.dtype, jnp.float32)
    total = None
    for i, top, bottom, rows in _taps(kernel.shape[0], x.shape[1], stride, dilation):
        for j, left, right, columns in _taps(kernel.shape[1], x.shape[2], stride, dilation):
            part = _matmul(x[:, rows, columns].astype(wide), kernel[i, j].astype(wide))
            part = jnp.pad(part, ((0, 0), (top, height - bottom), (left, width - right), (0, 0)))
            total = part if total is None else total + part
    return _materialize(total.astype(x.dtype), kernel)


def _materialize(x, kernel):
    """Return x, and pass on its cotangent, as an array that is written once and read by all that need it.

    XLA on CPUs fuses the sum of the taps, or the batch norm's gradient that leads to the cotangent, into every product
    that reads it and computes it again for each: three times the time of a whole training step. It drops optimisation
    barriers before it fuses, but nothing is fused across a conditional. The condition, whether the kernel's first
    weight is NaN, needs no communication where the batch is split over devices, for kernels are not.
    """
    return jax.lax.cond(jnp.isnan(kernel.ravel()[0]), lambda x: x * jnp.nan, lambda x: x, x)


def _columns(x, kernel, stride, dilation):
    kernel = _crop(kernel, *x.shape[1:3], dilation)
    pads = [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]]
    ends = [(n - 1) // stride * stride + 1 for n in x.shape[1:3]]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    parts = [
        x[:, i * dilation : i * dilation + ends[0] : stride, j * dilation : j * dilation + ends[1] : stride]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return _matmul(jnp.concatenate(parts, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def _interleaved(x, kernel, stride, dilation):
    if stride != 1:
        raise ValueError(f"form 'interleaved' has no stride {stride}")
    batch, height, width, channels = x.shape
    # Zeros at the end are what the sub-maps' own padding would be.
    x = jnp.pad(x, ((0, 0), (0, -height % dilation), (0, -width % dilation), (0, 0)))
    rows, columns = x.shape[1] // dilation, x.shape[2] // dilation
    x = x.reshape(batch, rows, dilation, columns, dilation, channels).transpose(0, 2, 4, 1, 3, 5)
    y = _cropped(x.reshape(-1, rows, columns, channels), kernel, 1, 1)
    y = y.reshape(batch, dilation, dilation, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(batch, rows * dilation, columns * dilation, -1)[:, :height, :width]


def _matmul(x, matrix):
    return jax.lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


FORMS = {
    "native": _native,
    "cropped": _cropped,
    "shifted": _shifted,
    "columns": _columns,
    "interleaved": _interleaved,
}


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
        return nn.relu(self.norm(dtype=self.dtype, name="bn")(x, train))
