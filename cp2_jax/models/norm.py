"""Batch normalisation over groups of the batch: what several devices with their own statistics compute, on any number."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Batch norm whose statistics belong to groups of the batch, not to devices.

    Attributes:
      groups: G; the batch is split into G groups of equal size. 1 is synchronised batch norm.
      strided: False: group g holds a contiguous run of samples; True: samples g, g + G, g + 2G, …
      momentum: share of the running averages that is kept (1 minus PyTorch's).
      epsilon: added to the variance.
      dtype: of the output; statistics are computed in float32 (float64 for float64 input).

    Running averages take the mean over groups; the running variance is the unbiased one (n/(n-1)), the normalising
    variance is not, as in PyTorch.
    """

    groups: int = 1
    strided: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space channels"], train: bool) -> Float[Array, "batch *space channels"]:
        """Normalise; with `train`, by the groups' own statistics, updating `batch_stats`.

        Raises:
          ValueError: if the groups do not divide the batch.
        """
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        precise = jnp.promote_types(x.dtype, jnp.float32)
        if not train:
            factor = scale / jnp.sqrt(running_var.value + self.epsilon)
            return (x * factor + (bias - running_mean.value * factor)).astype(self.dtype)

        batch = x.shape[0]
        if batch % self.groups:
            raise ValueError(f"batch of {batch} cannot be split into {self.groups} batch-norm groups of equal size")
        split = (batch // self.groups, self.groups) if self.strided else (self.groups, batch // self.groups)
        grouped = x.reshape(*split, *x.shape[1:])
        axes = tuple(a for a in range(grouped.ndim - 1) if a != int(self.strided))
        wide = grouped.astype(precise)
        # One pass over the activations. Cancellation is harmless: activations' means are of the size of their spread.
        mean = jnp.mean(wide, axis=axes, keepdims=True)
        var = jnp.maximum(jnp.mean(wide * wide, axis=axes, keepdims=True) - mean * mean, 0)
        factor = scale / jnp.sqrt(var + self.epsilon)
        y = (wide * factor + (bias - mean * factor)).astype(self.dtype).reshape(x.shape)

        if not self.is_initializing():
            count = x.size // channels // self.groups
            new_mean = jnp.mean(mean, axis=tuple(range(grouped.ndim - 1)))
            new_var = jnp.mean(var, axis=tuple(range(grouped.ndim - 1))) * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * new_mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * new_var
        return y
