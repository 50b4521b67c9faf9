"""The forms in which a 2-D convolution with PyTorch's padding can be computed; all exact.

They leave out multiplications with padding, or change the order of a sum. A form is a function of (x [batch, height, width,
inputs], kernel [rows, columns, inputs, outputs], stride, dilation); its gradients are JAX's, but for those in `GRADIENTS`.

- "native": XLA's convolution of the whole kernel.
- "cropped": the same without the rows and columns of the kernel that can meet nothing but padding: at rate 18 on a 14 x 14
  map only the centre of a 3 x 3 kernel ever meets the image.
- "shifted": for each tap one matrix product, in float32, of the pixels that it meets, added where it meets them.
- "taps": the same with operands of x's dtype and sums in float32, in the gradients too: what matrix units are made for.
- "columns": the pixels that each output reads side by side (im2col), then one matrix product.
- "interleaved": a kernel at rate d on d x d sub-maps of every d-th pixel is an ordinary convolution.
- "blocks", "blocks_of_8": blocks of stride x stride pixels become channels (space to depth; filled up with zeros to a
  multiple of 8), and the kernel one of stride 1 over blocks: the 7x7 of stride 2 over 3 channels a 4x4 over 12.
"""

import functools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cp2_jax.models.precision import wide


def convolution(
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    stride: int,
    dilation: int,
    padding: str | Sequence[tuple[int, int]],
) -> Float[Array, "batch out_height out_width outputs"]:
    """XLA's convolution, NHWC and HWIO; `padding` as XLA takes it."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _native(x, kernel, stride, dilation):
    return convolution(x, kernel, stride, dilation, [(dilation * (k // 2),) * 2 for k in kernel.shape[:2]])


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


def _met(x, kernel, stride, dilation):
    """For each tap that meets the image: (row and column, the pixels of x that it reads, the outputs that it adds to)."""
    for i, top, bottom, rows in _taps(kernel.shape[0], x.shape[1], stride, dilation):
        for j, left, right, columns in _taps(kernel.shape[1], x.shape[2], stride, dilation):
            yield (i, j), (slice(None), rows, columns), (slice(None), slice(top, bottom), slice(left, right))


def _put(part, where, size):
    """Zeros of a size [height, width], but for `part` in the rows and columns `where`."""
    pads = [(at.start, n - at.stop, (at.step or 1) - 1) for at, n in zip(where[1:], size, strict=True)]
    return jax.lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _outputs(x, stride):
    return [(n - 1) // stride + 1 for n in x.shape[1:3]]


def _shifted(x, kernel, stride, dilation):
    # A sum of several products is kept in float32, as inside a convolution.
    summed = x.dtype if kernel.shape[:2] == (1, 1) else wide(x)
    total = _sum(
        _put(_matmul(x[read].astype(summed), kernel[tap].astype(summed)), added, _outputs(x, stride))
        for tap, read, added in _met(x, kernel, stride, dilation)
    )
    return materialize(total.astype(x.dtype), kernel)


def materialize(x: Float[Array, "*shape"], parameter: Float[Array, "*_"]) -> Float[Array, "*shape"]:
    """Return x, and pass on its cotangent, as an array that is written once and read by all that need it.

    XLA on CPUs fuses the sum of the taps, or the batch norm's gradient that leads to the cotangent, into every product
    that reads it and computes it again for each: three times the time of a whole training step. It drops optimisation
    barriers before it fuses, but nothing is fused across a conditional. The condition, whether the first number of a
    parameter (a kernel, a scale) is NaN, needs no communication where the batch is split over devices, for those are not.
    """
    return jax.lax.cond(jnp.isnan(parameter.ravel()[0]), lambda x: x * jnp.nan, lambda x: x, x)


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


@jax.custom_vjp
def _matmul(x, matrix):
    return jax.lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


def _matmul_forward(x, matrix):
    return _matmul(x, matrix), (x, matrix)


def _matmul_backward(saved, cotangent):
    # JAX's own rule gives the matrix's gradient transposed, which XLA on CPUs makes good by turning the cotangent around.
    x, matrix = saved
    last, others = x.ndim - 1, tuple(range(x.ndim - 1))
    by_x = jax.lax.dot_general(cotangent, matrix, (((last,), (1,)), ((), ())))
    return by_x, jax.lax.dot_general(x, cotangent, ((others, others), ((), ())))


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _blocks(x, kernel, stride, dilation, multiple=1):
    if dilation != 1:
        raise ValueError(f"form 'blocks' has no rate {dilation}")
    batch, height, width, channels = x.shape
    rows, columns, _, outputs = kernel.shape
    if stride > 1:  # the kernel in whole blocks, too
        kernel = jnp.pad(kernel, ((0, -rows % stride), (0, -columns % stride), (0, 0), (0, 0)))
    reads = [k // stride for k in kernel.shape[:2]]
    sizes = [(n - 1) // stride + 1 for n in (height, width)]
    # As many rows and columns as whole blocks of outputs read: some of PyTorch's padding may be more than that.
    pads = []
    for size, taps, out, block in zip((height, width), (rows, columns), sizes, reads, strict=True):
        pads.append((taps // 2, (out + block - 1) * stride - size - taps // 2, 0))
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *pads, (0, 0, 0)])
    x = _to_depth(x, stride).reshape(batch, *(out + block - 1 for out, block in zip(sizes, reads, strict=True)), -1)
    kernel = _to_depth(kernel[None], stride).reshape(*reads, -1, outputs)
    spare = -x.shape[-1] % multiple
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, spare)))
    return convolution(x, jnp.pad(kernel, ((0, 0), (0, 0), (0, spare), (0, 0))), 1, 1, "VALID")


def _to_depth(x, block):
    """[batch, rows, columns, ...] → [batch, rows / block, columns / block, block, block, ...]"""
    batch, rows, columns, *rest = x.shape
    return jnp.moveaxis(x.reshape(batch, rows // block, block, columns // block, block, *rest), 2, 3)


def _taps_forward(x, kernel, stride, dilation):
    parts = (
        _put(_product("bhwc,co->bhwo", x[read], kernel[tap]), added, _outputs(x, stride))
        for tap, read, added in _met(x, kernel, stride, dilation)
    )
    return _sum(parts).astype(x.dtype)


def _taps_inputs(cotangent, x, kernel, stride, dilation):
    parts = (
        _put(_product("bhwo,co->bhwc", cotangent[added], kernel[tap]), read, x.shape[1:3])
        for tap, read, added in _met(x, kernel, stride, dilation)
    )
    return _sum(parts).astype(x.dtype)


def _taps_weights(cotangent, x, kernel, stride, dilation):
    parts = [[jnp.zeros(kernel.shape[2:], kernel.dtype)] * kernel.shape[1] for _ in range(kernel.shape[0])]
    for (i, j), read, added in _met(x, kernel, stride, dilation):
        parts[i][j] = _product("bhwc,bhwo->co", x[read], cotangent[added]).astype(kernel.dtype)
    return jnp.stack([jnp.stack(row) for row in parts])


def _product(indices, x, y):
    return jnp.einsum(indices, x, y, preferred_element_type=wide(x))


def _sum(parts):
    return functools.reduce(operator.add, parts)


FORMS = {
    "native": _native,
    "cropped": _cropped,
    "shifted": _shifted,
    "taps": _taps_forward,
    "columns": _columns,
    "interleaved": _interleaved,
    "blocks": _blocks,
    "blocks_of_8": functools.partial(_blocks, multiple=8),
}

# (gradient by the input, gradient by the kernel) of forms that are not left to JAX.
GRADIENTS = {"taps": (_taps_inputs, _taps_weights)}


def gradient(
    form: str,
    argument: int,
    cotangent: Float[Array, "batch out_height out_width outputs"],
    x: Float[Array, "batch height width inputs"],
    kernel: Float[Array, "rows columns inputs outputs"],
    stride: int,
    dilation: int,
) -> Float[Array, "_ _ _ _"]:
    """Return the gradient by `x` (argument 0) or `kernel` (1) in a form; of that one itself only shape and dtype matter."""
    if form in GRADIENTS:
        return GRADIENTS[form][argument](cotangent, x, kernel, stride, dilation)

    def computed(array):
        return FORMS[form](*((array, kernel) if argument == 0 else (x, array)), stride, dilation)

    return jax.vjp(computed, (x, kernel)[argument])[1](cotangent)[0]
