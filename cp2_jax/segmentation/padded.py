"""Convolutional networks on images padded to one shape, with the results that each image has without the padding.

A convolution pads with zeros. So if what lies outside an image is zero in front of every convolution, a larger canvas
changes nothing: images of many sizes share one compiled program, and one batch. Biases and image pooling fill the outside,
so the input of every convolution is masked; so is the max-pool's, which follows a ReLU and cannot tell zeros from its own
padding. The mean over an image counts the pixels inside alone. Strides count from the top left corner, where each image
stays.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt8

from cp2_jax.models import inputs
from cp2_jax.models.conv import Conv
from cp2_jax.models.heads import ASPPHead
from cp2_jax.models.resnet import ResNet

Size = Int[Array, "batch 2"]


def inside(size: Size, shape: tuple[int, int]) -> Bool[Array, "batch height width 1"]:
    """Return where the images are in a canvas of `shape`: the first `size` (height, width) pixels."""
    rows = jnp.arange(shape[0])[None, :, None, None] < size[:, 0, None, None, None]
    return rows & (jnp.arange(shape[1])[None, None, :, None] < size[:, 1, None, None, None])


def normalize(
    images: UInt8[Array, "batch height width 3"], size: Size, mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "batch height width 3"]:
    """Normalise and set to 0, the mean, what lies outside the first `size` (height, width) pixels of each image.

    MMSegmentation pads after it has normalised; here images are padded in uint8 and normalised on the device.
    """
    return jnp.where(inside(size, images.shape[1:3]), inputs.normalize(images, mean, std), 0)


def masking(size: Size, canvas: tuple[int, int]):
    """Return an interceptor for `nn.intercept_methods` under which a segmenter ignores what lies outside `size`.

    For `ResNet` with PyTorch's padding and both heads, in inference. `canvas`, the images' (height, width), must be a
    multiple of the output stride.
    """

    def mask_of(x):
        strides = jnp.array([canvas[0] // x.shape[1], canvas[1] // x.shape[2]])
        return inside(-(-size // strides), x.shape[1:3])

    def intercept(call, args, kwargs, context):
        called = (type(context.module), context.method_name)
        if called in ((Conv, "__call__"), (ResNet, "pool")):
            x, *rest = args
            return call(jnp.where(mask_of(x), x, 0), *rest, **kwargs)
        if called == (ASPPHead, "pool"):
            (x,), mask = args, mask_of(args[0])
            return jnp.sum(jnp.where(mask, x, 0), axis=(1, 2), keepdims=True) / jnp.sum(mask, axis=(1, 2), keepdims=True)
        return call(*args, **kwargs)

    return intercept


def apply(model: nn.Module, variables, images: Float[Array, "batch height width 3"], size: Size):
    """Return the model's output; what belongs to an image is what it alone would give, the rest is of no meaning."""
    with nn.intercept_methods(masking(size, images.shape[1:3])):
        return model.apply(variables, images, train=False)


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
        spread = lambda v, a=axis: jnp.expand_dims(v, (2, 3) if a == 0 else (1, 3))  # noqa: E731
        share = spread(place - low).astype(x.dtype)
        below, above = (jnp.take_along_axis(x, spread(index), axis=axis + 1) for index in (low, high))
        x = below * (1 - share) + above * share
    return x


def mirror(x: Array, size: Size) -> Array:
    """Mirror the first `size` pixels of each map left to right; the rest stays."""
    columns, width = jnp.arange(x.shape[2]), size[:, 1, None]
    index = jnp.where(columns < width, width - 1 - columns, columns)
    return jnp.take_along_axis(x, index[:, None, :, None], axis=2)


def round_up(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Return the size made a multiple of a number."""
    return tuple(-(-side // multiple) * multiple for side in size)


def group(sizes: Sequence[tuple[int, int]], counts: Sequence[int], groups: int, multiple: int) -> list[list[int]]:
    """Put sizes into at most `groups` groups that share a canvas, with little padding.

    Those two are merged, again and again, whose common canvas adds the fewest pixels over all images.

    Args:
      sizes: (height, width), all different. counts: number of images of each.
      groups: 0 leaves each by itself.
      multiple: that canvases are rounded up to.

    Returns:
      Indices of `sizes`, a list for each group.
    """
    members = [[index] for index in range(len(sizes))]
    if not groups or len(sizes) <= groups:
        return members
    extent, number = np.array(sizes, np.int64).reshape(-1, 2), np.array(counts, np.int64)
    area = lambda size: np.prod(-(-size // multiple) * multiple, axis=-1)  # noqa: E731
    while len(members) > groups:
        joint = np.maximum(extent[:, None], extent[None])
        alone = number * area(extent)
        added = area(joint) * (number[:, None] + number[None]) - alone[:, None] - alone[None]
        added[np.tril_indices(len(members))] = np.iinfo(np.int64).max
        first, second = np.unravel_index(np.argmin(added), added.shape)
        members[first] += members.pop(second)
        extent[first], number[first] = joint[first, second], number[first] + number[second]
        extent, number = np.delete(extent, second, axis=0), np.delete(number, second)
    return members
