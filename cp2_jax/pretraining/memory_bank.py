"""The memory bank of keys (section 3.1; MoCo): an array of rows, one row for each batch, and no pointer.

Shape `[K/B, B, C]`. The batch of step t goes into row t mod K/B, so the oldest row is overwritten (first in, first out)
and the pointer is the step itself. Splitting the second axis over devices as the batch is split makes enqueueing local.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cp2_jax.pretraining.losses import l2_normalize


def init(key: Key[Array, ""], size: int, batch: int, channels: int = 128) -> Float[Array, "rows batch channels"]:
    """Return a queue of random unit vectors, as the original starts with (builder.py: randn, then normalise).

    Args:
      size: K, the number of vectors (65,536 in the paper).
      batch: B, the global batch size.

    Raises:
      ValueError: if the batch does not divide the size.
    """
    if size % batch:
        raise ValueError(f"queue size {size} is not a multiple of the batch size {batch}")
    return l2_normalize(jax.random.normal(key, (size // batch, batch, channels)))


def enqueue(
    queue: Float[Array, "rows batch channels"], keys: Float[Array, "batch channels"], step: Int[Array, ""]
) -> Float[Array, "rows batch channels"]:
    """Overwrite the oldest row with this step's keys.

    Args:
      keys: k+ of the batch, l2-normalised; no gradient is wanted through them.
      step: number of finished steps before this one.

    Raises:
      ValueError: the keys do not fill a row, as those of a smaller last batch.
    """
    if keys.shape != queue.shape[1:]:
        raise ValueError(f"keys of shape {keys.shape} do not fill a row of the queue {queue.shape}: take whole batches")
    return jax.lax.dynamic_update_index_in_dim(queue, keys.astype(queue.dtype), step % queue.shape[0], axis=0)


def age(queue: Float[Array, "rows batch channels"], step: Int[Array, ""]) -> Int[Array, ""]:
    """Age in steps of the oldest real key, which is the number of rows that hold real keys: grows to the number of rows,
    then stays. Below that, the rest is random."""
    return jnp.minimum(step, queue.shape[0])
