"""Batch normalisation over groups of the batch: what several devices with their own statistics compute, on any number."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models import measured


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
        split = (batch // self.groups, self.groups) if self.strided else (self.groups, batch // self.groups)
        grouped = x.reshape(*split, *x.shape[1:])
        axes = tuple(a for a in range(grouped.ndim - 1) if a != int(self.strided))
        y, mean, var = normalize(grouped, scale, bias, axes, self.epsilon, self.dtype, self.relu)

        if not self.is_initializing():
            count = x.size // channels // self.groups
            new_mean = jnp.mean(mean, axis=tuple(range(grouped.ndim - 1)))
            new_var = jnp.mean(var, axis=tuple(range(grouped.ndim - 1))) * (count / max(count - 1, 1))
            running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * new_mean
            running_var.value = self.momentum * running_var.value + (1 - self.momentum) * new_var
        return y.reshape(x.shape)


def normalize(
    x: Float[Array, "*axes channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    axes: tuple[int, ...],
    epsilon: float,
    dtype: Any,
    relu: bool,
    form: str = "auto",
) -> tuple[Float[Array, "*axes channels"], Float[Array, "*_ channels"], Float[Array, "*_ channels"]]:
    """Return x normalised over some axes, of `dtype`, and the mean and the variance, whose axes have length 1.

    Args:
      relu: whether a ReLU is part of it.
      form: "differentiated": JAX differentiates it. "two_sums": a gradient of its own, which reads x and its cotangent
        twice and writes once, the least there is (the two sums must be known before anything can be written), and keeps
        no mask: the sign of the result is computed again from x. All sums are taken over each sample first, so that
        groups and how they are laid out are a matter of small arrays. Mean and variance have no gradient of their own.
        "auto": `measured.NORM` for the platform that the program is compiled for.

    Raises:
      KeyError: for an unknown form.
    """
    options = dict(axes=axes, epsilon=epsilon, dtype=dtype, relu=relu)
    return measured.by_platform(measured.NORM if form == "auto" else {"default": form}, _FORMS, x, scale, bias, **options)


def _differentiated(x, scale, bias, axes, epsilon, dtype, relu, average=jnp.mean):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # One pass over the activations. Cancellation is harmless: activations' means are of the size of their spread.
    mean = average(wide, axis=axes, keepdims=True)
    var = jnp.maximum(average(wide * wide, axis=axes, keepdims=True) - mean * mean, 0)
    factor = scale / jnp.sqrt(var + epsilon)
    y = (wide * factor + (bias - mean * factor)).astype(dtype)
    return nn.relu(y) if relu else y, mean, var


def _average(x, axis, keepdims):
    """The mean, over each sample first (the first two axes are groups and samples)."""
    space = tuple(range(2, x.ndim - 1))
    if space:  # the barrier keeps the compiler from making one sum of the two
        x = jax.lax.optimization_barrier(jnp.mean(x, axis=space, keepdims=True))
    return jnp.mean(x, axis=axis, keepdims=keepdims)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _two_sums(x, scale, bias, axes, epsilon, dtype, relu):
    return _differentiated(x, scale, bias, axes, epsilon, dtype, relu, _average)


def _own_forward(x, scale, bias, axes, epsilon, dtype, relu):
    y, mean, var = _differentiated(x, scale, bias, axes, epsilon, dtype, relu, _average)
    return (y, mean, var), (x, scale, bias, mean, var)


def _own_backward(axes, epsilon, dtype, relu, saved, cotangents):
    x, scale, bias, mean, var = saved
    wide = x.astype(mean.dtype)
    inverse = 1 / jnp.sqrt(var + epsilon)
    gradient = cotangents[0].astype(mean.dtype)
    if relu:
        factor = scale / jnp.sqrt(var + epsilon)
        positive = (wide * factor + (bias - mean * factor)).astype(dtype) > 0
        gradient = jnp.where(positive, gradient, 0)
    unit = (wide - mean) * inverse
    # Both sums in one pass over x and the cotangent; of each group the mean.
    total, along = (_average(v, axes, True) for v in (gradient, gradient * unit))
    by_x = scale * inverse * (gradient - total - unit * along)
    outer, count = tuple(range(x.ndim - 1)), x.size // total.size
    return by_x.astype(x.dtype), count * jnp.sum(along, axis=outer), count * jnp.sum(total, axis=outer)


_two_sums.defvjp(_own_forward, _own_backward)

_FORMS = {"differentiated": _differentiated, "two_sums": _two_sums}
