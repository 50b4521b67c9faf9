"""Gaussian blur with one standard deviation per image, as Pillow computes it."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

# The form of the products by platform. NVIDIA's matrix units have no float32: there it ran on other units, at 4.7 ms for
# the four images of 256 samples (H200, 26 November 2026). float16 has the 11 bits of TensorFloat-32 in half the bytes.
FORMS = {"default": "float32", "cuda": "float16"}


def gaussian_blur(
    planes: Float[Array, "batch 3 height width"],
    sigma: Float[Array, " batch"],
    max_sigma: float,
    form: str = "auto",
    flip: Bool[Array, " batch"] | None = None,
) -> Float[Array, "batch 3 height width"]:
    """Blur each image as `PIL.ImageFilter.GaussianBlur(sigma)` does, which is what MoCo v2 ran, but without rounding.

    Args:
      planes: images of any range.
      sigma: standard deviation in pixels; 0 leaves an image untouched but for rounding.
      max_sigma: static upper bound of `sigma`.
      form: "float32"; "float16": operands and results rounded to 11 bits, sums in float32, for images in [0, 1] or so: at
        most 0.06 of 255 from the exact blur on average (tests/augment/test_blur.py); "auto": that of `FORMS` for the
        platform that the program is compiled for.
      flip: which images come out with left and right exchanged; None: no image.

    Pillow runs three box filters of fractional width per direction (Gwosdek et al., "Theoretical foundations of
    Gaussian convolution by extended box filtering"), each of which repeats its input's border pixels outwards. A
    sampled Gaussian differs from that by up to 15 grey levels at sigma 0.3 and by up to 13 at the border.

    Raises:
      KeyError: for an unknown form.
    """
    height, width = planes.shape[2:]
    rows = _three_boxes(height, sigma, max_sigma)
    columns = rows if height == width and flip is None else _three_boxes(width, sigma, max_sigma, flip)
    if form != "auto":
        return _FORMS[form](rows, planes, columns)
    return jax.lax.platform_dependent(rows, planes, columns, **{p: _FORMS[name] for p, name in FORMS.items()})


# One banded matrix per image and direction: exact borders, and matrix units do the work.
def _in_float32(rows, planes, columns):
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("ncik,nlk->ncil", product("nij,ncjk->ncik", rows, planes), columns)


def _in_float16(rows, planes, columns):
    # A channel at a time: as arrays of their own they need not be written side by side before and taken apart after.
    rows, columns = rows.astype(jnp.float16), columns.astype(jnp.float16)

    def blur(channel):
        halfway = jnp.einsum("nij,njk->nik", rows, channel.astype(jnp.float16))
        return jnp.einsum("nik,nlk->nil", halfway, columns)

    return jnp.stack([blur(planes[:, c]) for c in range(planes.shape[1])], axis=1).astype(planes.dtype)


_FORMS = {"float32": _in_float32, "float16": _in_float16}


def _three_boxes(
    size: int, sigma: Float[Array, " batch"], max_sigma: float, flip: Bool[Array, " batch"] | None = None
) -> Float[Array, "batch size size"]:
    """Return the matrix that applies Pillow's three box filters along a line of `size` pixels, and may turn it round.

    All lines are alike: their ends are those of a short line, and what lies between is that line's middle pixel's row,
    moved along. Only the short line's matrix is a product of three.
    """
    # So far does a pixel of three boxes reach.
    reach = 3 * _widest(max_sigma)
    short = 2 * reach + 1
    if size <= short:
        return _turned(_short_boxes(size, sigma, max_sigma), flip)
    ends = _short_boxes(short, sigma, max_sigma)
    offsets = jnp.arange(size)[None, :] - jnp.arange(size - 2 * reach)[:, None]
    # Turned round are only the numbers that it is made of and a few rows, not the matrix: that would be two more passes.
    offsets = _turned(jnp.broadcast_to(offsets, (1, *offsets.shape)), flip)
    middle = sum(ends[:, reach, d, None, None] * (offsets == d) for d in range(short))
    before = jnp.pad(ends[:, :reach], ((0, 0), (0, 0), (0, size - short)))
    after = jnp.pad(ends[:, reach + 1 :], ((0, 0), (0, 0), (size - short, 0)))
    if flip is not None:
        turned = flip[:, None, None]
        before, after = jnp.where(turned, after[:, ::-1], before), jnp.where(turned, before[:, ::-1], after)
    return jnp.concatenate([before, middle, after], axis=1)


def _turned(rows: Shaped[Array, "_ size _"], flip: Bool[Array, " batch"] | None) -> Shaped[Array, "_ size _"]:
    return rows if flip is None else jnp.where(flip[:, None, None], rows[:, ::-1], rows)


def _widest(max_sigma: float) -> int:
    """Return how many pixels to each side a box filter reads at most."""
    return math.floor((math.sqrt(4 * max_sigma**2 + 1) - 1) / 2) + 1


def _short_boxes(size: int, sigma: Float[Array, " batch"], max_sigma: float) -> Float[Array, "batch size size"]:
    variance = sigma**2 / 3
    # A box of 2 whole + 1 pixels and two fractional ones at its ends has exactly this variance.
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    reach = (whole + fraction)[:, None, None]
    index = jnp.arange(size)
    box = jnp.zeros((sigma.shape[0], size, size), sigma.dtype)
    limit = _widest(max_sigma)
    for offset in range(-limit, limit + 1):
        weight = jnp.clip(reach + 1 - abs(offset), 0, 1) / (2 * reach + 1)
        box += weight * (jnp.clip(index + offset, 0, size - 1)[:, None] == index[None, :])
    return jnp.einsum("nij,njk,nkl->nil", box, box, box, precision=jax.lax.Precision.HIGHEST)
