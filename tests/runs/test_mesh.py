"""Placements: what is split, along which axis."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, PartitionSpec

from cp2_jax.runs import mesh

FOUR = AbstractMesh((4,), (mesh.DATA,))


def spec_of(*shape, split=True):
    return mesh.split_largest(FOUR, jax.ShapeDtypeStruct(shape, jnp.float32), split).spec


def test_arrays_are_split_along_their_largest_axis_that_divides():
    assert spec_of(3, 3, 8, 16) == PartitionSpec(None, None, None, "data")
    assert spec_of(3, 3, 16, 8) == PartitionSpec(None, None, "data")
    assert spec_of(64, 126) == PartitionSpec("data")  # 126 is larger, but 4 does not divide it
    for shape in [(), (3,), (7, 7, 3, 2), (0,)]:
        assert spec_of(*shape) == PartitionSpec()
    assert spec_of(16, 16, split=False) == PartitionSpec()


def test_a_split_array_takes_a_share_of_the_bytes():
    assert mesh.split_largest(FOUR, jax.ShapeDtypeStruct((3, 8, 6), jnp.float32)).shard_shape((3, 8, 6)) == (3, 2, 6)
    assert mesh.batch_sharding(FOUR, axis=1).shard_shape((5, 8, 6)) == (5, 2, 6)


def test_local_copies_hold_the_values():
    device_mesh = mesh.make_mesh()
    tree = {"a": jax.device_put(np.arange(6.0), mesh.replicated(device_mesh)), "b": jnp.ones((2, 2))}
    copied = mesh.local_copy(device_mesh, tree)
    np.testing.assert_array_equal(copied["a"], np.arange(6.0))
    assert all(len(x.devices()) == 1 for x in jax.tree.leaves(copied))
