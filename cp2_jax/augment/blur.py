"""Gaussian blur with one standard deviation per image."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gaussian_blur(
    planes: Float[Array, "batch 3 height width"], sigma: Float[Array, "batch"], max_sigma: float
) -> Float[Array, "batch 3 height width"]:
    """Blur each image with a separable Gaussian, its border pixels repeated outwards as Pillow does.

    Args:
      planes: images of any range.
      sigma: standard deviation in pixels; 0 leaves an image untouched.
      max_sigma: static upper bound of `sigma`; the kernel reaches ceil(4 max_sigma) pixels to each side.

    `PIL.ImageFilter.GaussianBlur`, which MoCo v2 uses, means this Gaussian but approximates it by three box filters.
    """
    radius = math.ceil(4 * max_sigma)
    offsets = jnp.arange(-radius, radius + 1, dtype=planes.dtype)
    # Below 0.05 the nearest neighbour's weight underflows anyway; the floor keeps sigma 0 from dividing by zero.
    kernel = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 0.05)[:, None]) ** 2)
    kernel = kernel / jnp.sum(kernel, axis=1, keepdims=True)
    for axis in (2, 3):
        size = planes.shape[axis]
        padded = jnp.pad(planes, [(radius, radius) if a == axis else (0, 0) for a in range(4)], mode="edge")
        # Shifted sums fuse into one pass; a convolution with a kernel per image would be a slow, grouped one.
        planes = sum(
            kernel[:, t, None, None, None] * jax.lax.slice_in_dim(padded, t, t + size, axis=axis)
            for t in range(2 * radius + 1)
        )
    return planes
