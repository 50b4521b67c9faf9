"""Batch normalisation over groups of the batch: what several devices with their own statistics compute, on any number."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models import measured
from cp2_jax.models.precision import widened


class BatchNorm(nn.Module):
    """Batch norm whose statistics belong to groups of the batch, not to devices.

    Attributes:
      groups: G; the batch is split into G groups of equal size. 1 is synchronised batch norm.
      strided: False: group g holds a contiguous run of samples; True: samples g, g + G, g + 2G, …
      momentum: share of the running averages that is kept (1 minus PyTorch's).
      epsilon: added to the variance.
      dtype: of the output; statistics are computed in float32 (float64 for float64 input).
      relu: whether a ReLU follows: part of it, so that the two have one gradient.

    Running averages take the mean over groups; the running variance is the unbiased one (n/(n-1)), the normalising
    variance is not, as in PyTorch.
    """

    groups: int = 1
    strided: bool = False
    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    relu: bool = False

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
        if not train:
            factor = scale / jnp.sqrt(running_var.value + self.epsilon)
            y = (x * factor + (bias - running_mean.value * factor)).astype(self.dtype)
            return nn.relu(y) if self.relu else y

        batch = x.shape[0]
        if batch % self.groups:
            raise ValueError(f"batch of {batch} cannot be split into {self.groups} batch-norm groups of equal size")
        layout = Groups(self.groups, batch // self.groups, self.strided)
        y, mean, var = normalize(x, scale, bias, layout, self.epsilon, self.dtype, self.relu)

        if not self.is_initializing():
            count = x.size // channels // self.groups
            new_mean, new_var = jnp.mean(mean, axis=0), jnp.mean(var, axis=0) * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * new_mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * new_var
        return y


@dataclasses.dataclass(frozen=True)
class Groups:
    """How a batch falls into groups, and averages over them, each taken over every sample first.

    So groups are a matter of small arrays: were the activations themselves reshaped into them, compilers would not fuse
    what comes before and after (699 MB a sample instead of 665, compiled for an H100: docs/performance_details.md).

    Attributes:
      count, size: number of groups, and samples of each.
      strided: see `BatchNorm`.
    """

    count: int
    size: int
    strided: bool = False

    def average(self, values: Float[Array, "batch *space channels"]) -> Float[Array, "groups channels"]:
        """Return each group's average."""
        each = jnp.mean(values, axis=tuple(range(1, values.ndim - 1)))
        if self.strided:
            return jnp.mean(each.reshape(self.size, self.count, -1), axis=0)
        return jnp.mean(each.reshape(self.count, self.size, -1), axis=1)

    def spread(self, values: Float[Array, "groups channels"], dimensions: int) -> Float[Array, "batch *_ channels"]:
        """Return, for each sample, what its group has, with as many dimensions as the activations."""
        values = values[None, :] if self.strided else values[:, None]
        shape = (self.size, self.count) if self.strided else (self.count, self.size)
        each = jnp.broadcast_to(values, (*shape, values.shape[-1]))
        return each.reshape(self.count * self.size, *[1] * (dimensions - 2), -1)


def normalize(
    x: Float[Array, "batch *space channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    groups: Groups,
    epsilon: float,
    dtype: Any,
    relu: bool,
    form: str = "auto",
) -> tuple[Float[Array, "batch *space channels"], Float[Array, "groups channels"], Float[Array, "groups channels"]]:
    """Return x normalised within groups, of `dtype`, and the groups' means and variances.

    Args:
      relu: whether a ReLU is part of it.
      form: of the gradient. "differentiated": JAX differentiates it. "two_sums": one of its own, which reads x and its
        cotangent twice and writes once, the least there is (the two sums must be known before anything can be written),
        and keeps no mask: the sign of the result is computed again from x. Mean and variance have no gradient of their
        own. "auto": `measured.NORM` for the platform that the program is compiled for.

    Raises:
      KeyError: for an unknown form.
    """
    table = tuple(sorted((measured.NORM if form == "auto" else {"default": form}).items()))
    return _by_platform(x, scale, bias, table, groups, epsilon, jnp.dtype(dtype), relu)


# Compiled into whatever calls it; by itself, for tracing: a network has few different norms, and each is traced once.
@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7))
def _by_platform(x, scale, bias, table, groups, epsilon, dtype, relu):
    options = dict(groups=groups, epsilon=epsilon, dtype=dtype, relu=relu)
    return measured.by_platform(dict(table), _FORMS, x, scale, bias, **options)


def _normalize(x, scale, bias, groups, epsilon, dtype, relu):
    wide = widened(x)
    # One pass over the activations. Cancellation is harmless: activations' means are of the size of their spread.
    mean = groups.average(wide)
    var = jnp.maximum(groups.average(wide * wide) - mean * mean, 0)
    y = _scaled(wide, scale, bias, mean, var, groups, epsilon).astype(dtype)
    return nn.relu(y) if relu else y, mean, var


def _scaled(wide, scale, bias, mean, var, groups, epsilon):
    factor = scale / jnp.sqrt(var + epsilon)
    return wide * groups.spread(factor, wide.ndim) + groups.spread(bias - mean * factor, wide.ndim)


_two_sums = functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))(_normalize)


def _own_forward(x, scale, bias, groups, epsilon, dtype, relu):
    y, mean, var = _normalize(x, scale, bias, groups, epsilon, dtype, relu)
    return (y, mean, var), (x, scale, bias, mean, var)


def _own_backward(groups, epsilon, dtype, relu, saved, cotangents):
    x, scale, bias, mean, var = saved
    wide, gradient = x.astype(mean.dtype), cotangents[0].astype(mean.dtype)
    if relu:
        positive = _scaled(wide, scale, bias, mean, var, groups, epsilon).astype(dtype) > 0
        gradient = jnp.where(positive, gradient, 0)
    spread, inverse = functools.partial(groups.spread, dimensions=x.ndim), 1 / jnp.sqrt(var + epsilon)
    unit = (wide - spread(mean)) * spread(inverse)
    # Both sums in one pass over x and the cotangent; of each group the mean.
    total, along = groups.average(gradient), groups.average(gradient * unit)
    by_x = spread(scale * inverse) * (gradient - spread(total) - unit * spread(along))
    count = x.size // total.size
    return by_x.astype(x.dtype), count * jnp.sum(along, axis=0), count * jnp.sum(total, axis=0)


_two_sums.defvjp(_own_forward, _own_backward)

_FORMS = {"differentiated": _normalize, "two_sums": _two_sums}
