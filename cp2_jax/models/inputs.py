"""The inputs of a network: RGB on [0, 1], less `config.model.mean`, divided by `config.model.std`."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

# Of ImageNet's images; torchvision's, MoCo's and CP²'s.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(images: UInt8[Array, "*shape"] | Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return uint8 images divided by 255, as float32; floats stay as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def normalize(
    images: UInt8[Array, "*batch height width 3"] | Float[Array, "*batch height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> Float[Array, "*batch height width 3"]:
    """Return (images - mean) / std per channel, of uint8 as float32, of floats in their own dtype.

    Args:
      images: uint8 in 0-255, which is first divided by 255, or float in [0, 1].
      mean, std: per RGB channel, on the scale [0, 1].
    """
    images = to_float(images)
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def denormalize(
    images: Float[np.ndarray, "*batch height width 3"],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """Undo `normalize`, on the host: back to uint8 RGB, clipped."""
    images = np.asarray(images, np.float32) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
