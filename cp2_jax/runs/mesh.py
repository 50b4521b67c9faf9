"""Devices and placement: one mesh axis, `data`. The batch is split over it, parameters are replicated (or split, see
`split_largest`), and the queue is split as the batch is, so that enqueueing needs no communication.

JAX puts the devices of a TPU slice in the order of its torus, so that neighbours in the mesh are neighbours on the
wires. In that order the devices of one process are usually not next to each other: on v4-32 the processes come as 0, 1,
2, 3, 0, 1, … Nothing here or elsewhere may therefore assume that process p has the p-th part of a batch. `local_rows`
says which rows of a global batch a process has; the input pipelines make exactly these, `place_batch` puts them where
they belong, and `local_part` reads them back.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int64, Shaped

DATA = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Return the mesh of all devices of all processes (or of `devices`), TPUs in the order of their torus."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the placement of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Return the placement of an array whose dimension `axis` is the batch."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, DATA))


def local_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> tuple[int, ...]:
    """Return which rows of a global batch the devices of one process hold, in increasing order.

    Args:
      batch_size: number of rows of the global batch.
      process: its index; this process by default.

    Returns:
      The numbers of the rows. Those of all processes together are 0 to `batch_size` - 1, each once.

    Raises:
      ValueError: if `batch_size` is not a multiple of the number of devices, or the process has no device in the mesh.
    """
    if batch_size <= 0 or batch_size % mesh.size:
        raise ValueError(f"a batch of {batch_size} cannot be split over {mesh.size} devices: it must be a multiple of that")
    process = jax.process_index() if process is None else process
    places = batch_sharding(mesh).devices_indices_map((batch_size,))
    rows = [
        row
        for device, (part,) in places.items()
        if device.process_index == process
        for row in range(*part.indices(batch_size))
    ]
    if not rows:
        raise ValueError(f"process {process} has none of the {mesh.size} devices of this mesh")
    return tuple(sorted(rows))


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


def share_out(mesh: Mesh, gradients: Any, split: bool = True) -> Any:
    """Hold gradients, which are sums over the devices, inside a jitted function to the placements of `split_largest`.

    Each is held whole first. The gradient of a convolution by its kernel of which a device wants only its part is otherwise
    computed in parts on v5e, in rings in which the batch goes round: 1.6 times the step's memory traffic
    (docs/performance.md). The sums are the same.
    """
    return constrain(constrain(gradients, replicated(mesh)), split_largest(mesh, gradients, split))


def constrain_batch(tree: Any, mesh: Mesh | None, axis: int = 0) -> Any:
    """Hold arrays inside a jitted function to the placement of a batch; without a mesh, do nothing."""
    return tree if mesh is None else constrain(tree, batch_sharding(mesh, axis))


def local_copy(mesh: Mesh, tree: Any) -> Any:
    """Return a pytree of global arrays as arrays on this process's first device, so that it can compute without the others.

    All processes call it, for split arrays are gathered.
    """
    return jax.tree.map(lambda x: x.addressable_data(0), gathered(mesh, tree))


def gathered(mesh: Mesh, tree: Any) -> Any:
    """Return a pytree of global arrays so that every device holds all of them. All processes call it."""
    if all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
        return tree
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """Put a process's host batch on its devices, as its part of the global batch.

    Args:
      batch: pytree of arrays whose first dimension holds the rows `local_rows`, in that order.

    Returns:
      The pytree of global arrays.

    Raises:
      ValueError: if the number of rows is not a multiple of the number of this process's devices.
    """
    sharding = batch_sharding(mesh)
    here = sum(device.process_index == jax.process_index() for device in mesh.devices.flat)

    def place(x):
        x = np.asarray(x)
        if len(x) % here:
            raise ValueError(f"{len(x)} rows cannot be split over this process's {here} devices")
        shape = (len(x) // here * mesh.size, *x.shape[1:])
        position = {row: number for number, row in enumerate(local_rows(mesh, shape[0]))}

        def part(index):
            first = position[index[0].start or 0]
            return x[first : first + len(x) // here]

        return jax.make_array_from_callback(shape, sharding, part)

    return jax.tree.map(place, batch)


def local_part(array: Shaped[Array, " batch *rest"]) -> Shaped[np.ndarray, " rows *rest"]:
    """Return this process's rows of an array whose batch is split over devices, in the order of `local_rows`."""
    parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(parts[first]) for first in sorted(parts)])


def sum_over_processes(values: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """Return the sum of numbers, 0 or more, that each process has its own of; all processes call it."""
    values = np.asarray(values, np.int64)
    # Two halves, for JAX's integers have 32 bits.
    halves = np.stack([values >> 32, values & 0xFFFFFFFF]).astype(np.uint32)
    high, low = multihost_utils.process_allgather(halves).astype(np.int64).sum(axis=0)
    return (high << 32) + low
