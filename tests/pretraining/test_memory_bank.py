"""The queue is first-in-first-out, and its pointer is the step."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.pretraining import memory_bank


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 5), batch=st.integers(1, 4), steps=st.integers(1, 12))
def test_queue_holds_the_newest_batches(rows, batch, steps):
    bank = jax.jit(memory_bank.init, static_argnums=(1, 2, 3))(jax.random.key(0), rows * batch, batch, 2)
    enqueue = jax.jit(memory_bank.enqueue)
    oracle = collections.deque([np.asarray(row) for row in bank], maxlen=rows)
    for step in range(steps):
        keys = jnp.full((batch, 2), step, jnp.float32)
        bank = enqueue(bank, keys, jnp.int32(step))
        oracle.append(np.asarray(keys))
    got = sorted(np.asarray(bank).reshape(rows, -1).tolist())
    assert got == sorted(np.asarray(oracle).reshape(rows, -1).tolist())
    assert memory_bank.age(bank, jnp.int32(steps)) == min(steps, rows)


def test_a_new_queue_holds_unit_vectors():
    bank = memory_bank.init(jax.random.key(1), 64, 8)
    assert bank.shape == (8, 8, 128)
    np.testing.assert_allclose(jnp.linalg.norm(bank, axis=-1), 1, rtol=1e-5)


def test_a_batch_that_does_not_divide_the_queue_is_refused():
    with pytest.raises(ValueError, match="65 is not a multiple of the batch size 8"):
        memory_bank.init(jax.random.key(0), 65, 8)
