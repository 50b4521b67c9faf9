"""Bilinear resizing of dense predictions, as PyTorch's `interpolate(mode="bilinear", align_corners=False)`."""

import jax
from jaxtyping import Array, Float


def bilinear(x: Float[Array, "batch h w channels"], size: tuple[int, int]) -> Float[Array, "batch height width channels"]:
    """Resize to `size` (height, width), larger or smaller, without antialiasing, in the dtype of `x`.

    Beyond the outermost pixel centres the border's value goes on, which is what clamping coordinates (PyTorch) and
    renormalising weights (JAX) both come to.
    """
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False, precision=jax.lax.Precision.HIGHEST)
