"""From uint8 crops to normalised, copy-pasted query/key pairs: everything random that happens on the device.

The crop itself is the host's. The order is MoCo v2's: jitter, grayscale, blur, flip, normalise.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from cp2_jax.augment import blur, color, masks
from cp2_jax.augment.options import AugmentOptions
from cp2_jax.models import inputs
from cp2_jax.runs import rngs

__all__ = [
    "AugmentOptions",
    "Pair",
    "ViewDraw",
    "augment",
    "compose_batch",
    "compose_pairs",
    "draw_view",
    "feature_mask",
    "in_batch_backgrounds",
    "normalize",
]

# Numbers folded into a row's key. Part of every run's identity: append, never renumber.
_FOREGROUND_QUERY, _FOREGROUND_KEY, _BACKGROUND_QUERY, _BACKGROUND_KEY, _MASK_QUERY, _MASK_KEY = range(6)

# Rows whose foregrounds serve each other as backgrounds. Part of a run's identity, like the numbers above.
_RING = 8


@flax.struct.dataclass
class Pair:
    """Composed images (normalised) and their masks (1 = foreground), which share only the foreground's source image."""

    image_query: Float[Array, "batch height width 3"]
    image_key: Float[Array, "batch height width 3"]
    mask_query: Float[Array, "batch height width"]
    mask_key: Float[Array, "batch height width"]


@flax.struct.dataclass
class ViewDraw:
    """What chance decided for one view (or, with leading axes, for many)."""

    factors: Float[Array, "*batch 4"]
    order: Int[Array, "*batch 4"]
    gray: Bool[Array, "*batch"]
    sigma: Float[Array, "*batch"]
    flip: Bool[Array, "*batch"]


def draw_view(key: Key[Array, ""], options: AugmentOptions) -> ViewDraw:
    """Draw the augmentation of one view.

    An operation that is not to happen gets the parameter that does nothing: factor 1, hue shift 0, sigma 0.
    """

    def uniform(n, low=0.0, high=1.0, shape=()):
        return jax.random.uniform(jax.random.fold_in(key, n), shape, jnp.float32, jnp.asarray(low), jnp.asarray(high))

    reach = (options.brightness, options.contrast, options.saturation)
    low = jnp.array([max(0.0, 1 - x) for x in reach] + [-options.hue], jnp.float32)
    high = jnp.array([1 + x for x in reach] + [options.hue], jnp.float32)
    nothing = jnp.array([1, 1, 1, 0], jnp.float32)
    return ViewDraw(
        factors=jnp.where(uniform(0) < options.jitter_probability, uniform(1, low, high, (4,)), nothing),
        order=jax.random.permutation(jax.random.fold_in(key, 2), 4),
        gray=uniform(3) < options.grayscale,
        sigma=jnp.where(uniform(4) < options.blur, uniform(5, *options.blur_sigma), 0),
        flip=uniform(6) < options.flip,
    )


def augment(
    images: UInt8[Array, "batch height width 3"], draw: ViewDraw, options: AugmentOptions
) -> Float[Array, "batch 3 height width"]:
    """Apply one draw per image; returns planes in [0, 1], which `normalize` makes what a model takes.

    Args:
      images: crops.
      draw: from `draw_view`, with one leading axis.
      options: only the largest sigma and which probabilities are 0 are read.
    """
    # Flipping commutes with all the rest: the blur writes its result turned round, which moves nothing.
    if options.blur == 0:
        images = jnp.where(draw.flip[:, None, None, None], images[:, :, ::-1], images)
    planes = jnp.transpose(images, (0, 3, 1, 2))
    if options.jitter_probability > 0:
        planes = color.jitter(planes, draw.factors, draw.order)
    planes = inputs.to_float(planes)
    if options.grayscale > 0:
        # A channel at a time, as jitter gives them and blur takes them: compilers then make one pass of both.
        gray, luma = draw.gray[:, None, None], color.grayscale(planes)[:, 0]
        planes = jnp.stack([jnp.where(gray, luma, planes[:, c]) for c in range(3)], axis=1)
    if options.blur > 0:
        planes = blur.gaussian_blur(planes, draw.sigma, options.blur_sigma[1], flip=draw.flip)
    return planes


def normalize(
    planes: Float[Array, "batch 3 height width"], options: AugmentOptions, dtype: jnp.dtype = jnp.float32
) -> Float[Array, "batch height width 3"]:
    """Return the planes of `augment` with channels last, normalised and then rounded to `dtype`."""
    return inputs.normalize(jnp.transpose(planes, (0, 2, 3, 1)), options.mean, options.std).astype(dtype)


def _check(key: Array, foreground: Array, background: Array) -> None:
    """Refuse what `compose_pairs` does not take."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        raise ValueError("the key must be of the new kind: jax.random.key(seed), not jax.random.PRNGKey(seed)")
    shape = foreground.shape
    if shape != background.shape or len(shape) != 5 or shape[1] != 2 or shape[4] != 3:
        raise ValueError(f"foreground {shape} and background {background.shape} must both be [batch, 2, height, width, 3]")
    if foreground.dtype != jnp.uint8 or background.dtype != jnp.uint8:
        raise ValueError(f"images must be uint8, not {foreground.dtype} and {background.dtype}")


def compose_pairs(
    key: Key[Array, ""],
    foreground: UInt8[Array, "batch 2 height width 3"],
    background: UInt8[Array, "batch 2 height width 3"],
    options: AugmentOptions,
    attention: UInt8[Array, "batch 2 height width"] | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Pair:
    """Augment four crops per row and paste the foregrounds onto the backgrounds: I = F * M + B * (1 - M) (equation 1).

    Args:
      key: of this step; row r's draws follow from `fold_in(key, r)` only, not from the batch's size or placement.
      foreground: two crops of one image: query, key.
      background: crops of two other images: for the query, for the key.
      options: static.
      attention: with the mask "attention", the foreground's crops of its attention map.
      dtype: of the images of the result. They are rounded before they are pasted: fewer bytes, the same bits as after.

    Raises:
      ValueError: if that is lacking, if the images are not uint8 of one shape [batch, 2, height, width, 3], or the key is
        none of `jax.random.key`.
    """
    _check(key, foreground, background)
    batch, _, height, width, _ = foreground.shape
    rows = rngs.per_sample(key, batch)
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))

    # Behind a full mask nobody sees the background: without copy-paste its augmentation is left out.
    crops = foreground if options.mask == "full" else jnp.concatenate([foreground, background], axis=1)
    views = jnp.array([_FOREGROUND_QUERY, _FOREGROUND_KEY, _BACKGROUND_QUERY, _BACKGROUND_KEY])[: crops.shape[1]]
    draw = jax.vmap(lambda k: draw_view(k, options))(fold(rows, views).reshape(-1))
    # Views lead from here on, so that each is one contiguous array to select from.
    draw = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(batch, -1, *x.shape[1:]), 1, 0), draw)
    images = jax.vmap(lambda x, d: normalize(augment(x, d, options), options, dtype))(jnp.moveaxis(crops, 1, 0), draw)

    if options.mask == "attention":
        if attention is None:
            raise ValueError('the mask "attention" needs the attention maps of the foregrounds')
        # The mask goes with its image through the flip.
        flip = draw.flip[:2].T[..., None, None]
        maps = jnp.where(flip, attention[..., ::-1], attention)
        from_map = jax.vmap(lambda m: masks.from_attention(m, options.mask_law))
        mask = [from_map(maps[:, view]) for view in range(2)]
    else:
        # One array for each view: of an array of both, compilers would write out each half once more.
        keys = fold(rows, jnp.array([_MASK_QUERY, _MASK_KEY]))
        mask = [_draw_masks(keys[:, view], height, width, options) for view in range(2)]

    def composed(view):
        # A selection, not a blend: the masks are binary and the result is the crop's pixel to the bit.
        if options.mask == "full":
            return images[view]
        return jnp.where(mask[view][..., None] > 0, images[view], images[2 + view])

    return Pair(composed(0), composed(1), *mask)


def compose_batch(
    key: Key[Array, ""], batch: Mapping[str, Array], options: AugmentOptions, dtype: jnp.dtype = jnp.float32
) -> Pair:
    """Return `compose_pairs` of a batch as `data.images.stream` yields it.

    Args:
      key: of this step.
      batch: 'foreground', uint8 (batch, 2, height, width, 3): two crops of each image. Perhaps 'background', of the same
        shape; without it a batch takes backgrounds from its own foregrounds, see `in_batch_backgrounds`. Perhaps
        'attention', uint8 (batch, 2, height, width).
      options: what to draw.
      dtype: of the images of the result.

    Raises:
      ValueError: see `compose_pairs`; without 'background' also for a batch of fewer than 3 rows.
    """
    foreground = batch["foreground"]
    background = batch["background"] if "background" in batch else in_batch_backgrounds(foreground)
    return compose_pairs(key, foreground, background, options, batch.get("attention"), dtype)


def _draw_masks(keys, height, width, options):
    def draw_mask(k):
        return masks.MASKS[options.mask](k, height, width, options.mask_law)

    return jax.vmap(draw_mask)(keys)


def in_batch_backgrounds(
    foreground: UInt8[Array, "batch 2 height width 3"],
) -> UInt8[Array, "batch 2 height width 3"]:
    """Return backgrounds for `compose_pairs` that are other samples' foreground crops.

    In rings of 8 rows (one ring of the whole batch where 8 does not divide it), row r's query gets the key crop of row
    r + 1, its key the query crop of row r + 2: two other samples, and every crop serves once. A device that holds whole
    rings gets nothing from another. The rule knows nothing of devices, so that every topology computes the same.

    Raises:
      ValueError: for a batch of fewer than 3 rows, which has no two other samples, or of another shape.
    """
    if foreground.ndim != 5 or foreground.shape[1] != 2:
        raise ValueError(
            f"foreground of shape {foreground.shape}: two crops of each image, [batch, 2, height, width, 3], are needed"
        )
    batch = foreground.shape[0]
    if batch < 3:
        raise ValueError(f"batch of {batch} rows: backgrounds from the same batch take at least 3")
    ring = _RING if batch % _RING == 0 else batch
    rings = foreground.reshape(batch // ring, ring, *foreground.shape[1:])
    query, key = jnp.roll(rings[:, :, 1], -1, axis=1), jnp.roll(rings[:, :, 0], -2, axis=1)
    return jnp.stack([query, key], axis=2).reshape(foreground.shape)


def feature_mask(
    mask: Float[Array, "batch height width"], output_stride: int
) -> Float[Array, "batch height//{output_stride} width//{output_stride}"]:
    """Return the mask at the resolution of the features: the pixel at the centre of each cell, as the original samples.

    Raises:
      ValueError: if the stride does not divide height and width.
    """
    height, width = mask.shape[1:]
    if height % output_stride or width % output_stride:
        raise ValueError(f"output stride {output_stride} does not divide the mask's {height} x {width} pixels")
    start = output_stride // 2
    return mask[:, start::output_stride, start::output_stride]
