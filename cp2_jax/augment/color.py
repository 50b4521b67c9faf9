"""Colour operations of torchvision's ColorJitter and RandomGrayscale on batches of float images in [0, 1].

Images are held as planes, [batch, 3, height, width]: with three channels innermost, vector units idle (planes measured
twice as fast on a CPU). Every operation takes one parameter per image and clips to [0, 1], as torchvision does.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from cp2_jax.models.inputs import to_float

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

# ITU-R 601-2 luma, which Pillow's mode "L" uses.
_LUMA = (0.299, 0.587, 0.114)

Channels = tuple[Float[Array, "batch height width"], ...]


def grayscale(planes: Float[Array, "batch 3 height width"]) -> Float[Array, "batch 1 height width"]:
    """Return the luma of each pixel, as Pillow's `convert("L")` weighs it but without rounding."""
    return _luma(_channels(planes))[:, None]


def shift_hue(channels: Channels, shift: Float[Array, " batch"]) -> Channels:
    """Rotate the hue of HSV by `shift` turns (0.5 = opposite colour); saturation and value stay.

    The way to HSV and back in one: value x saturation is the spread between the largest and the smallest channel, so
    neither has to be formed.
    """
    red, green, blue = channels
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
    return tuple(low + spread * jnp.clip(weight, 0, 1) for weight in weights)


def jitter(
    planes: UInt8[Array, "batch 3 height width"] | Float[Array, "batch 3 height width"],
    factors: Float[Array, "batch 4"],
    order: Int[Array, "batch 4"],
) -> Float[Array, "batch 3 height width"]:
    """Apply brightness, contrast, saturation and hue to each image, in that image's own order.

    Args:
      planes: images, uint8 or float in [0, 1].
      factors: indexed by `BRIGHTNESS`, `CONTRAST`, `SATURATION` (1 = unchanged) and `HUE` (turns, 0 = unchanged).
      order: a permutation of 0..3 per image; `order[:, 0]` is applied first.

    The first three blend the image with something (black; the mean of its grayscale; its grayscale), so that one slot
    of the order is one blend whose target is selected per image. A hue shift costs several blends; it is computed once,
    between the slots that may come before it and those that may come after.

    Only contrast needs more than one pixel: the mean of the image's grayscale at that point. What comes
    before contrast is computed twice, for that mean and again to go on, which makes two passes over uint8 pixels. With
    the mean taken when its slot comes, every slot was a pass or two over float32 images (docs/performance_details.md).
    """
    before_contrast = _jitter(_channels(planes), factors, order, None)
    mean = jnp.mean(_luma(before_contrast), axis=(1, 2), keepdims=True)
    # Otherwise the compiler finds what both passes share, and writes it out in float32 for the second.
    planes, mean = jax.lax.optimization_barrier((planes, mean))
    return jnp.stack(_jitter(_channels(planes), factors, order, mean), axis=1)


def _jitter(channels: Channels, factors, order, mean) -> Channels:
    """Apply all four operations, or without a `mean` to blend with only those before contrast."""

    def column(v):
        return v[:, None, None]

    slot_of = jnp.argsort(order, axis=1)
    hue_slot = slot_of[:, HUE]
    end = jnp.full_like(hue_slot, 4) if mean is not None else slot_of[:, CONTRAST]
    # Without a mean, contrast needs one of the slots after these: two are left on each side of hue.
    slots = 3 if mean is not None else 2

    def blend(channels, slot, happens):
        operation = order[:, slot]
        factor = column(jnp.take_along_axis(factors, operation[:, None], axis=1)[:, 0])
        target = _luma(channels)
        if mean is not None:
            target = jnp.where(column(operation == CONTRAST), mean, target)
        target = jnp.where(column(operation == BRIGHTNESS), 0, target)
        blended = (jnp.clip(factor * channel + (1 - factor) * target, 0, 1) for channel in channels)
        return _where(column(happens & (slot < end)), blended, channels)

    for slot in range(slots):
        channels = blend(channels, slot, slot < hue_slot)
    shift = jnp.where(hue_slot < end, factors[:, HUE], 0)
    # A shift of 0 would still round; leave such images untouched to the bit.
    channels = _where(column(shift != 0), shift_hue(channels, shift), channels)
    for slot in range(1, 1 + slots):
        channels = blend(channels, slot, slot > hue_slot)
    return channels


def _where(condition, channels, otherwise) -> Channels:
    return tuple(jnp.where(condition, *both) for both in zip(channels, otherwise, strict=True))


def _channels(planes) -> Channels:
    return tuple(to_float(planes[:, c]) for c in range(3))


def _luma(channels: Channels) -> Float[Array, "batch height width"]:
    return sum(weight * channel for weight, channel in zip(_LUMA, channels, strict=True))
