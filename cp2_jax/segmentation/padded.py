"""Convolutional networks on images padded to one shape, with the results that each image has without the padding.

A convolution pads with zeros. So if what lies outside an image is zero in front of every convolution, a larger canvas
changes nothing: images of many sizes share one compiled program, and one batch. Biases and image pooling fill the outside,
so the input of every convolution is masked; so is the max-pool's, which follows a ReLU and cannot tell zeros from its own
padding. The mean over an image counts only the pixels inside. Strides count from the top left corner, where each image
stays.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Shaped

from cp2_jax.models.conv import Conv
from cp2_jax.models.interface import Masking
from cp2_jax.models.precision import wide
from cp2_jax.options import ConfigError
from cp2_jax.segmentation.inputs import Size, inside


def masking(size: Size, canvas: tuple[int, int], methods: Masking):
    """Return an interceptor for `nn.intercept_methods` under which a segmenter ignores what lies outside `size`.

    Args:
      size: (height, width) of each image.
      canvas: the images' (height, width), a multiple of the output stride.
      methods: which ones mix the pixels of an image, `Network.masking`; `check_masking` says whether these are all.
    """

    def mask_of(x):
        strides = jnp.array([canvas[0] // x.shape[1], canvas[1] // x.shape[2]])
        return inside(-(-size // strides), x.shape[1:3])

    def intercept(call, args, kwargs, context):
        called = (type(context.module), context.method_name)
        if called == (Conv, "__call__") or called in methods.zeroed:
            x, *rest = args
            with jax.named_scope(_MASKED):
                return call(jnp.where(mask_of(x), x, 0), *rest, **kwargs)
        if called in methods.averaged:
            (x,) = args
            with jax.named_scope(_MASKED):
                return _mean(x, mask_of(x))
        return call(*args, **kwargs)

    return intercept


def _mean(x, mask):
    """Return the mean over the masked pixels, summed and divided in float32 or wider: bfloat16 can only count to 256."""
    total = jnp.sum(jnp.where(mask, x, 0), axis=(1, 2), keepdims=True, dtype=wide(x))
    return (total / jnp.sum(mask, axis=(1, 2), keepdims=True, dtype=wide(x))).astype(x.dtype)


def apply(model: nn.Module, variables, images: Float[Array, "batch height width 3"], size: Size, methods: Masking):
    """Return the model's output. Inside each image it is what the image would give by itself; the rest means nothing."""
    with nn.intercept_methods(masking(size, images.shape[1:3], methods)):
        return model.apply(variables, images, train=False)


def check_masking(model: nn.Module, methods: Masking, canvas: tuple[int, int]) -> None:
    """Refuse a model that mixes pixels anywhere but in its convolutions and in the methods that it names.

    The model is traced, not run: a head that pools in a method that it does not name would take padding for image.

    Args:
      model: a segmenter.
      methods: as `masking`.
      canvas: any (height, width) that the model takes.

    Raises:
      ConfigError: naming the operation and where it stands.
    """
    images, size = jax.ShapeDtypeStruct((1, *canvas, 3), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)

    def init(images):
        return model.init(jax.random.key(0), images, train=False)

    def run(variables, images, size):
        return apply(model, variables, images, size, methods)

    traced = jax.make_jaxpr(run)(jax.eval_shape(init, images), images, size)
    for operation, scope in _mixing(traced.jaxpr):
        raise ConfigError(
            f"padded evaluation cannot mask {scope or 'the model'}, where {operation} mixes an image's pixels: give the "
            "method that does it in `masking` of its backbone or head, or leave `masking` out (docs/extending.md)"
        )


_MASKED = "masked"


def _mixing(jaxpr) -> Iterator[tuple[str, str]]:
    """Yield (operation, scope) of what mixes rows or columns of [batch, h, w, c] outside the masked methods."""
    for equation in jaxpr.eqns:
        scope = str(equation.source_info.name_stack)
        if _MASKED in scope.split("/"):
            continue
        inner = [v for value in equation.params.values() for v in (value if isinstance(value, tuple) else (value,))]
        for value in inner:
            value = getattr(value, "jaxpr", value)
            if hasattr(value, "eqns"):
                yield from ((operation, f"{scope}/{place}".strip("/")) for operation, place in _mixing(value))
        maps = [v.aval.shape for v in equation.invars if v.aval.ndim == 4 and v.aval.shape[1:3] != (1, 1)]
        if maps and _mixes(equation):
            yield equation.primitive.name, scope


def _mixes(equation) -> bool:
    """Say whether an operation on a map [batch, h, w, c] reads other rows or columns than it writes."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":  # a 1x1 convolution works on each pixel by itself
        spatial = params["dimension_numbers"].rhs_spec[2:]
        return any(equation.invars[1].aval.shape[axis] > 1 for axis in spatial)
    if name == "dot_general":
        contracted = params["dimension_numbers"][0]
        return any(v.aval.ndim == 4 and {1, 2} & set(axes) for v, axes in zip(equation.invars, contracted, strict=True))
    if name == "reshape":
        return tuple(params["new_sizes"][1:3]) != tuple(equation.invars[0].aval.shape[1:3])
    axes = params.get("axes", params.get("dimensions", params.get("dimension", params.get("axis", ()))))
    if name.startswith(("reduce_window", "select_and", "cum", "sort", "fft", "gather", "pad")):
        return True
    reading = name.startswith(("reduce_", "arg")) and name != "reduce_precision" or name in ("rev", "concatenate")
    return reading and bool({1, 2} & set(axes if isinstance(axes, tuple | list) else (axes,)))


def bilinear(
    x: Float[Array, "batch h w channels"], source: Size, target: Size, shape: tuple[int, int]
) -> Float[Array, "batch height width channels"]:
    """Resize the first `source` pixels of each map to `target`, in a canvas of `shape`; otherwise as `resize.bilinear`."""
    for axis in (0, 1):
        have, want = source[:, axis, None], target[:, axis, None]
        place = (jnp.arange(shape[axis]) + 0.5) * (have / want) - 0.5
        place = jnp.clip(place, 0, have - 1)
        low = jnp.floor(place).astype(jnp.int32)
        high = jnp.minimum(low + 1, have - 1)
        others = (2, 3) if axis == 0 else (1, 3)
        share = jnp.expand_dims(place - low, others).astype(x.dtype)
        below, above = (jnp.take_along_axis(x, jnp.expand_dims(index, others), axis=axis + 1) for index in (low, high))
        x = below * (1 - share) + above * share
    return x


def mirror(x: Shaped[Array, "batch height width c"], size: Size) -> Shaped[Array, "batch height width c"]:
    """Mirror the first `size` pixels of each map left to right; the rest stays."""
    columns, width = jnp.arange(x.shape[2]), size[:, 1, None]
    index = jnp.where(columns < width, width - 1 - columns, columns)
    return jnp.take_along_axis(x, index[:, None, :, None], axis=2)
