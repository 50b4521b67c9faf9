"""The dtype of sums, statistics and logits: at least float32, whatever the activations have."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def wide(x: Float[Array, "..."]) -> jnp.dtype:
    """Return float32, or float64 where `x` is of it. bfloat16 can only count to 256."""
    return jnp.promote_types(x.dtype, jnp.float32)


def widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return x.astype(wide(x))
