"""Devices and placement: one mesh axis, `data`. The batch is split over it, parameters are replicated (or split, see
`split_largest`), and the queue is split as the batch is, so that enqueueing needs no communication."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return the mesh of all devices of all processes (or of `devices`)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the placement of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the placement of an array whose dimension `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


def split_largest(mesh: Mesh, tree: Any, split: bool = True) -> Any:
    """Return the placements of a pytree of arrays that no two devices need hold alike (ZeRO: optimiser state, parameters).

    Each array is split along its largest axis that the number of devices divides; one without such an axis, such as a
    scalar, is replicated. With `split` False all are.
    """

    def place(x):
        axes = [axis for axis, size in enumerate(x.shape) if size % mesh.size == 0 and size > 0]
        if not split or not axes:
            return replicated(mesh)
        return batch_sharding(mesh, max(axes, key=lambda axis: x.shape[axis]))

    return jax.tree.map(place, tree)


def constrain(tree: Any, shardings: Any) -> Any:
    """Hold values inside a jitted function to placements (a pytree of them, or one for all)."""
    return jax.lax.with_sharding_constraint(tree, shardings)


def constrain_batch(tree: Any, mesh: Mesh | None, axis: int = 0) -> Any:
    """Hold arrays inside a jitted function to the placement of a batch; without a mesh, do nothing."""
    return tree if mesh is None else constrain(tree, batch_sharding(mesh, axis))


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """Return a pytree of global arrays as arrays of this process's first device, with which it can compute alone.

    All processes call it, for split arrays are gathered.
    """
    if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        tree = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def place_batch(mesh: Mesh, batch):
    """Put a process's host batch (pytree of arrays, batch first) on the devices as its part of the global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)
