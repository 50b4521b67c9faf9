"""From images to what a network reads: resized and laid on canvases by the host, normalised and padded on the device."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cp2_jax.data.labelled import transforms
from cp2_jax.models import inputs
from cp2_jax.segmentation.batching import Batch
from cp2_jax.segmentation.options import EvaluationOptions

Size = Int[Array, "batch 2"]


@flax.struct.dataclass
class Inputs:
    """What a predictor reads of a batch; arrays of the host, or placed on devices.

    Attributes:
      views: uint8 [batch, height, width, 3] for each view: canvases whose first pixels are the image.
      view_sizes: int32 [batch, 2] for each view: (height, width) of the image on its canvas.
      sizes: int32 [batch, 2]: the images' own (height, width).
    """

    views: Sequence[UInt8[Array, "batch _ _ 3"]]
    view_sizes: Sequence[Size]
    sizes: Size


def views(image: UInt8[np.ndarray, "height width 3"], options: EvaluationOptions) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Return the image at each of `options.sizes`, resized by OpenCV."""
    return [transforms.resize_image(image, size) for size in options.sizes(image.shape[:2])]


def on_canvas(images: Sequence[UInt8[np.ndarray, "height width 3"]], batch: Batch, options: EvaluationOptions) -> Inputs:
    """Return the inputs of the images of a batch, resized and padded by the host."""
    canvases = [np.zeros((len(images), *canvas, 3), np.uint8) for canvas in batch.views]
    view_sizes = [np.zeros((len(images), 2), np.int32) for _ in batch.views]
    for row, image in enumerate(images):
        for view, canvas, size in zip(views(image, options), canvases, view_sizes, strict=True):
            size[row] = view.shape[:2]
            canvas[row, : view.shape[0], : view.shape[1]] = view
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    return Inputs(views=canvases, view_sizes=view_sizes, sizes=sizes)


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


def pad_to_multiple(images: Float[Array, "batch height width 3"], multiple: int) -> Float[Array, "batch _ _ 3"]:
    """Pad normalised images with 0, the mean, below and right, until their sides are multiples of a number."""
    below, right = (-side % multiple for side in images.shape[1:3])
    return jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the top left corners (y, x) of the windows that cover an image, the last ones moved inside it.

    Raises:
      ValueError: if the stride is not in [1, window], which would leave gaps.
    """
    axes = []
    for have, want, step in zip(size, window, stride, strict=True):
        if not 1 <= step <= want:
            raise ValueError(f"evaluation.stride {stride} must be between 1 and the window {window}")
        count = max(have - want + step - 1, 0) // step + 1
        axes.append([max(min(i * step, have - want), 0) for i in range(count)])
    return [(y, x) for y in axes[0] for x in axes[1]]


def cut(
    images: UInt8[Array, "batch height width 3"], corner: tuple[int, int], size: tuple[int, int]
) -> UInt8[Array, "batch _ _ 3"]:
    """Return the window of a (height, width) at a corner (y, x); one program for all corners."""
    return _cut(images, jnp.array(corner), size)


@jax.jit(static_argnames="size")
def _cut(images, corner, size):
    return jax.lax.dynamic_slice(images, (0, *corner, 0), (images.shape[0], *size, 3))
