"""Colour operations of torchvision's ColorJitter and RandomGrayscale on batches of float images in [0, 1].

Images are held as planes, [batch, 3, height, width]: with three channels innermost, vector units idle (planes measured
twice as fast on a CPU). Every operation takes one parameter per image and clips to [0, 1], as torchvision does.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# ITU-R 601-2 luma, which Pillow's mode "L" uses.
_LUMA = (0.299, 0.587, 0.114)


def normalize(
    images: UInt8[Array, "*batch height width 3"] | Float[Array, "*batch height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "*batch height width 3"]:
    """Return (images - mean) / std per channel, as float32 (float64 stays).

    Args:
      images: uint8 in 0-255, which is first divided by 255, or float in [0, 1].
      mean, std: per RGB channel, on the scale [0, 1].
    """
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def grayscale(planes: Float[Array, "batch 3 height width"]) -> Float[Array, "batch 1 height width"]:
    """Return the luma of each pixel, as Pillow's `convert("L")` weighs it but without rounding."""
    return sum(weight * planes[:, c : c + 1] for c, weight in enumerate(_LUMA))


def shift_hue(
    planes: Float[Array, "batch 3 height width"], shift: Float[Array, "batch"]
) -> Float[Array, "batch 3 height width"]:
    """Rotate the hue of HSV by `shift` turns (0.5 = opposite colour); saturation and value stay.

    The way to HSV and back in one: value x saturation is the spread between the largest and the smallest channel, so
    neither has to be formed.
    """
    red, green, blue = planes[:, 0], planes[:, 1], planes[:, 2]
    high = jnp.maximum(jnp.maximum(red, green), blue)
    low = jnp.minimum(jnp.minimum(red, green), blue)
    spread = high - low
    scale = 1 / jnp.where(spread > 0, spread, 1)
    sextant = jnp.where(
        high == red,
        (green - blue) * scale,
        jnp.where(high == green, (blue - red) * scale + 2, (red - green) * scale + 4),
    )
    sextant = jnp.mod(sextant + 6 * shift[:, None, None], 6)
    weights = (jnp.abs(sextant - 3) - 1, 2 - jnp.abs(sextant - 2), 2 - jnp.abs(sextant - 4))
    return jnp.stack([low + spread * jnp.clip(weight, 0, 1) for weight in weights], axis=1)


def jitter(
    planes: Float[Array, "batch 3 height width"], factors: Float[Array, "batch 4"], order: Int[Array, "batch 4"]
) -> Float[Array, "batch 3 height width"]:
    """Apply brightness, contrast, saturation and hue to each image, in that image's own order.

    Args:
      planes: images in [0, 1].
      factors: indexed by `BRIGHTNESS`, `CONTRAST`, `SATURATION` (1 = unchanged) and `HUE` (turns, 0 = unchanged).
      order: a permutation of 0..3 per image; `order[:, 0]` is applied first.

    The first three blend the image with something (black; the mean of its grayscale; its grayscale), so that one slot
    of the order is one blend whose target is selected per image: 4 blends and 4 hue shifts in all, not 24 orders.
    """
    column = lambda v: v[:, None, None, None]  # noqa: E731
    for slot in range(4):
        operation = order[:, slot]
        factor = jnp.take_along_axis(factors, operation[:, None], axis=1)[:, 0]
        gray = grayscale(planes)
        target = jnp.where(column(operation == CONTRAST), jnp.mean(gray, axis=(1, 2, 3), keepdims=True), gray)
        target = jnp.where(column(operation == BRIGHTNESS), 0, target)
        blended = jnp.clip(column(factor) * planes + (1 - column(factor)) * target, 0, 1)
        is_hue = operation == HUE
        # A shift of 0 would still round; leave such images untouched to the bit.
        shifted = jnp.where(column(factor != 0), shift_hue(planes, jnp.where(is_hue, factor, 0)), planes)
        planes = jnp.where(column(is_hue), shifted, blended)
    return planes
