"""Random copy-paste masks: 1 = foreground, 0 = background (the paper's section 4.3, Table 4, Figure 4).

Each function draws one mask from one key; `jax.vmap` draws a batch. `MASKS` lists them by name; beside them there is
"attention", which comes with the image. Only the rectangle was ever released; the paper gives the other shapes a name, a
picture and the foreground ratio 0.5-0.8, so their laws here are our reading. They share one idea: order the pixels by a
random field, then take the lowest share of them.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

_TRIES = 10
# Enough that their union reaches 0.8 of the image even though some lie mostly outside of it.
_BLOCKS = 96
_BLOCK_SIDES = (0.15, 0.35)
_VERTICES = 8


@dataclasses.dataclass(frozen=True)
class MaskLaw:
    """What masks are drawn from.

    Attributes:
      area: range of the foreground's share of the image.
      aspect: range of a rectangle's height / width.
      aspect_law: "uniform" (torchvision 0.8.1, the release that the original's instructions pair with) or
        "log_uniform" (later torchvision).
      patch: side in pixels of the cells of "patches"; 16 is one feature at the paper's output stride, and a ViT-S/16 patch.
    """

    area: tuple[float, float] = (0.5, 0.8)
    aspect: tuple[float, float] = (0.8, 1.25)
    aspect_law: str = "uniform"
    patch: int = 16


def rectangle(key: Key[Array, ""], height: int, width: int, law: MaskLaw) -> Float[Array, "height width"]:
    """Draw the rectangle that torchvision's RandomErasing would erase, which is how the original draws its masks.

    Ten tries of area and aspect; the first whose rectangle is smaller than the image in both directions is placed
    uniformly. If none is, the mask is empty, as in the original.
    """
    area_key, aspect_key, top_key, left_key = jax.random.split(key, 4)
    area = _uniform(area_key, law.area, _TRIES) * (height * width)
    if law.aspect_law == "uniform":
        aspect = _uniform(aspect_key, law.aspect, _TRIES)
    else:
        low, high = jnp.log(jnp.array(law.aspect, jnp.float32))
        aspect = jnp.exp(_uniform(aspect_key, (low, high), _TRIES))
    tall = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    wide = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    accepted = (tall < height) & (wide < width)
    first = jnp.argmax(accepted)
    found, tall, wide = accepted[first], tall[first], wide[first]
    top = jax.random.randint(top_key, (), 0, jnp.maximum(height - tall, 0) + 1, jnp.int32)
    left = jax.random.randint(left_key, (), 0, jnp.maximum(width - wide, 0) + 1, jnp.int32)
    y, x = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    inside = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
    return (inside & found).astype(jnp.float32)


def polygon(key: Key[Array, ""], height: int, width: int, law: MaskLaw) -> Float[Array, "height width"]:
    """Draw an irregular eight-cornered polygon around a point near the centre, cut off at the image's border.

    Its corners have random directions and distances; it is then scaled so that the part inside the image has the drawn
    area. Star-shaped around its centre, hence connected.
    """
    area_key, centre_key, angle_key, radius_key = jax.random.split(key, 4)
    centre = _uniform(centre_key, (0.4, 0.6), 2)
    # Neighbouring corners are less than half a turn apart, so that each pixel lies between exactly two of them.
    turns = (jnp.arange(_VERTICES, dtype=jnp.float32) + _uniform(angle_key, (0.1, 0.9), _VERTICES)) / _VERTICES
    radius = _uniform(radius_key, (0.5, 1.0), _VERTICES)
    corners = radius * jnp.stack([jnp.sin(2 * jnp.pi * turns), jnp.cos(2 * jnp.pi * turns)])
    nexts = jnp.roll(corners, -1, axis=1)
    y = (_pixel_centres(height) - centre[0])[:, None, None]
    x = (_pixel_centres(width) - centre[1])[None, :, None]
    # Pixel = a corner + b next corner with a, b >= 0 in its own sector; a + b says at which scale the edge reaches it.
    determinant = corners[0] * nexts[1] - corners[1] * nexts[0]
    a = (y * nexts[1] - x * nexts[0]) / determinant
    b = (x * corners[0] - y * corners[1]) / determinant
    # The slack keeps a pixel on the border of two sectors from falling, by rounding, into neither.
    scale = jnp.min(jnp.where((a > -1e-5) & (b > -1e-5), a + b, jnp.inf), axis=-1)
    return _lowest(scale, _uniform(area_key, law.area))


def blocks(key: Key[Array, ""], height: int, width: int, law: MaskLaw) -> Float[Array, "height width"]:
    """Draw rectangles of random size and place, one upon the other, until their union has the drawn area.

    Sides are 0.15-0.35 of the image's; a block may stick out over the border. The last block is cut to fit the area.
    """
    area_key, centre_key, side_key = jax.random.split(key, 3)
    # Centres reach so far out that the border is covered as often as the middle.
    centre = _uniform(centre_key, (-_BLOCK_SIDES[1] / 2, 1 + _BLOCK_SIDES[1] / 2), _BLOCKS, 2)
    side = _uniform(side_key, _BLOCK_SIDES, _BLOCKS, 2)
    # Coordinates within each block, where it reaches from 0 to 1.
    y = (_pixel_centres(height) - centre[:, :1]) / side[:, :1] + 0.5
    x = (_pixel_centres(width) - centre[:, 1:]) / side[:, 1:] + 0.5
    # A pixel's rank: the first block that covers it, then its height within that block.
    rank = jnp.where((y >= 0) & (y < 1), jnp.arange(_BLOCKS)[:, None] + y, jnp.inf)
    outside = jnp.where((x >= 0) & (x < 1), 0, jnp.inf).astype(jnp.float32)

    # A loop over blocks, not one reduction over [block, height, width], which takes 8 times as long on a CPU.
    def lay(i, ranks):
        return jnp.minimum(ranks, rank[i][:, None] + outside[i][None, :])

    ranks = jnp.full((height, width), _BLOCKS, jnp.float32)
    ranks = jax.lax.fori_loop(0, _BLOCKS, lay, ranks, unroll=8)
    return _lowest(ranks, _uniform(area_key, law.area))


def patches(key: Key[Array, ""], height: int, width: int, law: MaskLaw) -> Float[Array, "height width"]:
    """Choose the drawn share (to the nearest patch) of the image's square patches, all equally likely."""
    area_key, choice_key = jax.random.split(key)
    rows, columns = -(-height // law.patch), -(-width // law.patch)
    rank = jax.random.permutation(choice_key, rows * columns).reshape(rows, columns)
    chosen = rank < jnp.round(_uniform(area_key, law.area) * rows * columns)
    pixels = jnp.repeat(jnp.repeat(chosen, law.patch, axis=0), law.patch, axis=1)
    return pixels[:height, :width].astype(jnp.float32)


def full(key: Key[Array, ""], height: int, width: int, law: MaskLaw) -> Float[Array, "height width"]:
    """Return ones: no copy-paste (Table 4's "no copy-paste", Table 6)."""
    del key, law
    return jnp.ones((height, width), jnp.float32)


def from_attention(attention: UInt8[Array, "height width"], law: MaskLaw) -> Float[Array, "height width"]:
    """Return the part of a crop that attention looks at most, its area the middle of `law.area`: nothing is random but the
    crop (Table 4 ticks "random" for all other masks, and not for this).

    Args:
      attention: the crop of a levelled map, see `pretraining.attention_maps.attention_map`.
    """
    # Of equal values those further to the top left come first, lest a flat map should have no mask.
    order = jnp.arange(attention.size, dtype=jnp.float32).reshape(attention.shape) / attention.size
    return _lowest(255 - attention.astype(jnp.float32) + order, jnp.float32(sum(law.area) / 2))


MASKS: dict[str, Callable[[Array, int, int, MaskLaw], Array]] = {
    "rectangle": rectangle,
    "polygon": polygon,
    "blocks": blocks,
    "patches": patches,
    "full": full,
}


def _uniform(key, bounds, *shape):
    # float32 even under x64, where another width would draw other numbers.
    return jax.random.uniform(key, shape, jnp.float32, bounds[0], bounds[1])


def _pixel_centres(size):
    return (jnp.arange(size, dtype=jnp.float32) + 0.5) / size


def _lowest(field, share):
    """Return 1 at the `share` of pixels where `field` (non-negative) is lowest, by bisection: no sort."""
    goal = share * field.size

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.sum(field <= middle) > goal
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    high = jnp.max(field)
    threshold, _ = jax.lax.fori_loop(0, 24, halve, (jnp.zeros_like(high), high))
    return (field <= threshold).astype(jnp.float32)
