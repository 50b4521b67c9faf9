"""Max-pooling of ResNet's stem, and the forms of its gradient."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models import measured

_WINDOW, _STRIDE = 3, 2


def max_pool(
    x: Float[Array, "batch height width channels"], padding: str = "torch", form: str = "auto"
) -> Float[Array, "batch out_height out_width channels"]:
    """Max-pool 3x3 windows at stride 2.

    Args:
      padding: "torch": one pixel on each side; "same": TensorFlow's. Padding is never the largest.
      form: of the gradient, which goes to the first of the largest pixels of a window. "scatter": XLA's, one window after
        the other. "taps": the forward pass keeps which pixel it was, one byte for each window, and the gradient is a sum
        of nine arrays. "auto": `measured.POOL` for the platform that the program is compiled for.

    Raises:
      KeyError: for an unknown padding or form.
    """
    pads = {"torch": ((1, 1), (1, 1)), "same": "SAME"}[padding]
    return measured.by_platform(measured.POOL if form == "auto" else {"default": form}, _FORMS, x, pads=pads)


def _scatter(x, pads):
    return nn.max_pool(x, (_WINDOW, _WINDOW), (_STRIDE, _STRIDE), pads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _taps(x, pads):
    return _scatter(x, pads)


def _sides(shape, pads):
    """((zeros before, zeros after, outputs) of height, of width)."""
    if pads == "SAME":
        pads = jax.lax.padtype_to_pads(shape[1:3], (_WINDOW, _WINDOW), (_STRIDE, _STRIDE), "SAME")
    return [
        (low, high, (size + low + high - _WINDOW) // _STRIDE + 1)
        for size, (low, high) in zip(shape[1:3], pads, strict=True)
    ]


def _taps_forward(x, pads):
    sides = _sides(x.shape, pads)
    padded = jax.lax.pad(
        x, jnp.array(-jnp.inf, x.dtype), [(0, 0, 0), *((low, high, 0) for low, high, _ in sides), (0, 0, 0)]
    )
    (_, _, rows), (_, _, columns) = sides
    largest = which = None
    for tap in range(_WINDOW**2):
        i, j = divmod(tap, _WINDOW)
        pixel = padded[:, i : i + _STRIDE * rows - 1 : _STRIDE, j : j + _STRIDE * columns - 1 : _STRIDE]
        if largest is None:
            largest, which = pixel, jnp.zeros(pixel.shape, jnp.int8)
        else:
            which = jnp.where(pixel > largest, jnp.int8(tap), which)
            largest = jnp.maximum(largest, pixel)
    return largest, (which, jnp.zeros((0, *x.shape[1:3]), x.dtype))


def _taps_backward(pads, saved, cotangent):
    which, like = saved
    size, wide = like.shape[1:3], jnp.promote_types(cotangent.dtype, jnp.float32)
    sides = _sides((1, *size), pads)
    total = jnp.zeros((), wide)
    for tap in range(_WINDOW**2):
        part = jnp.where(which == tap, cotangent, 0).astype(wide)
        places = [at - low for at, (low, _, _) in zip(divmod(tap, _WINDOW), sides, strict=True)]
        ends = [n - at - _STRIDE * out + 1 for n, at, (_, _, out) in zip(size, places, sides, strict=True)]
        spread = [(at, end, _STRIDE - 1) for at, end in zip(places, ends, strict=True)]
        total += jax.lax.pad(part, jnp.zeros((), wide), [(0, 0, 0), *spread, (0, 0, 0)])
    return (total.astype(like.dtype),)


_taps.defvjp(_taps_forward, _taps_backward)

_FORMS = {"scatter": _scatter, "taps": _taps}
