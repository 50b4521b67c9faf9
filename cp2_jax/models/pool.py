"""MoCo v2's head: global average pooling, without parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.interface import Head, read
from cp2_jax.models.precision import wide
from cp2_jax.models.tops import Features


@dataclasses.dataclass(frozen=True)
class PoolOptions:
    """`config.model.pool`: there is nothing to choose."""

    @classmethod
    def from_config(cls, section: Mapping) -> "PoolOptions":
        """Read the section; raises `ConfigError` if it holds anything."""
        return read(cls, "pool", section)


class PoolHead(nn.Module):
    """Global average pooling to one pixel: with `Projection` on it, MoCo v2's network (its "MLP head").

    The masks of a pooled map are one pixel, too, so that losses and step are those of CP2.
    """

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Float[Array, "batch 1 1 channels"]:
        del train
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=wide(x)).astype(x.dtype)


def _build(options: PoolOptions, *, norm: Callable[..., nn.Module], dtype: Any) -> PoolHead:
    return PoolHead()


HEAD = Head(options=PoolOptions, build=_build, dense=False)
