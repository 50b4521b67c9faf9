"""Gradient accumulation that changes nothing: microbatches are made of whole batch-norm groups."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cp2_jax.runs import mesh


@dataclasses.dataclass(frozen=True)
class Microbatches:
    """How a batch is cut into microbatches.

    Attributes:
      count: M, number of microbatches; divides `groups`.
      groups: G, batch-norm groups of the whole batch; each microbatch holds G/M of them, laid out as in the whole batch
        (`models.norm.BatchNorm`).
      strided: whether group g holds samples g, g + G, …, or a contiguous run.
      device_mesh: over which each microbatch is spread, or None.

    Which whole groups share a microbatch changes no result; it is chosen so that few samples have to move. Strided
    groups have samples on every device, and each device takes its own. Contiguous groups stay where they are if each
    device holds enough of them; otherwise the samples move once (all-to-all).
    """

    count: int
    groups: int
    strided: bool = False
    device_mesh: Mesh | None = None

    def split(self, batch: Any) -> Any:
        """Return arrays [batch, …] as [count, batch / count, …]."""
        return jax.tree.map(self._split, batch)

    def join(self, parts: Any) -> Any:
        """Undo `split`."""
        return jax.tree.map(self._join, parts)

    def over(self, function: Callable[[Any], tuple[Any, Any]], batch: Any) -> tuple[Any, Any]:
        """Call `function` on one microbatch after the other (see `run`).

        Args:
          batch: arrays [batch, …].

        Returns:
          The averages, and what belongs to single samples as arrays [batch, …].
        """
        average, parts = run(function, self.split(batch))
        return average, self.join(parts)

    def folded(self, batch: int) -> tuple[int, int, int]:
        """Return the shape that the batch axis is folded to; its second axis is the microbatch."""
        if self.strided:
            return batch // self.groups, self.count, self.groups // self.count
        devices = self.device_mesh.size if self.device_mesh else 1
        local = devices if self.groups % (devices * self.count) == 0 else 1
        return local, self.count, batch // (local * self.count)

    def _split(self, x):
        if self.count == 1:
            return x[None]
        parts = jnp.moveaxis(x.reshape(*self.folded(x.shape[0]), *x.shape[1:]), 1, 0)
        return mesh.constrain_batch(parts.reshape(self.count, -1, *x.shape[1:]), self.device_mesh, axis=1)

    def _join(self, parts):
        if self.count == 1:
            return parts[0]
        batch = self.count * parts.shape[1]
        first, count, last = self.folded(batch)
        whole = jnp.moveaxis(parts.reshape(count, first, last, *parts.shape[2:]), 0, 1)
        return mesh.constrain_batch(whole.reshape(batch, *parts.shape[2:]), self.device_mesh)


def run(function: Callable[[Any], tuple[Any, Any]], parts: Any) -> tuple[Any, Any]:
    """Call `function` on one microbatch after the other, so that only one's activations are in memory.

    Args:
      function: takes one microbatch; returns (what is averaged over the microbatches, what is stacked).
      parts: arrays [count, …], from `Microbatches.split`.

    Returns:
      The average, and arrays [count, …].
    """
    count = jax.tree.leaves(parts)[0].shape[0]
    if count == 1:
        average, stacked = function(jax.tree.map(lambda x: x[0], parts))
        return average, jax.tree.map(lambda x: x[None], stacked)

    def body(total, part):
        value, stacked = function(part)
        return jax.tree.map(jnp.add, total, value), stacked

    shapes, _ = jax.eval_shape(function, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, stacked = jax.lax.scan(body, zeros, parts)
    return jax.tree.map(lambda x: x / count, total), stacked
