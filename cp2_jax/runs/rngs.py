"""Random keys derived from seed, stream and step: nothing random is ever stored in a state or a checkpoint."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

# The numbers are part of every run's identity: append, never renumber.
STREAMS = {"init": 0, "augment": 1, "shuffle": 2, "dropout": 3, "queue": 4, "probe": 5}


def key(seed: int | Int[Array, ""], stream: str, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
    """Return the key of one stream at one step.

    Args:
      seed: the run's seed; may be traced.
      stream: one of `STREAMS`.
      step: number of finished training steps; may be traced.

    Raises:
      KeyError: for an unknown stream.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), STREAMS[stream]), step)


def per_sample(step_key: Key[Array, ""], batch: int) -> Key[Array, " batch"]:
    """Return one key for each row of the global batch; row r's key does not depend on the batch's size or sharding."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(batch))
