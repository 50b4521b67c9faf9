"""A head that the package does not know, as a newcomer would write it: options, module, description."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn

from cp2_jax.models.conv import Conv
from cp2_jax.models.interface import Head, Masking, read


@dataclasses.dataclass(frozen=True)
class ContextOptions:
    """`config.model.context`: channels of the result."""

    channels: int = 5

    @classmethod
    def from_config(cls, section):
        return read(cls, "context", section)


class Context(nn.Module):
    """Each pixel beside the mean of its image."""

    options: ContextOptions
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        mean = jnp.broadcast_to(self.mean(x), x.shape)
        return nn.relu(Conv(self.options.channels, 1, dtype=self.dtype)(jnp.concatenate([x, mean], axis=-1)))

    def mean(self, x):
        return jnp.mean(x, axis=(1, 2), keepdims=True)


def _build_context(options, *, norm, dtype):
    return Context(options, dtype)


def _mean_over_the_image(options):
    return Masking(averaged=((Context, "mean"),))


HEAD = Head(options=ContextOptions, build=_build_context, masking=_mean_over_the_image)
