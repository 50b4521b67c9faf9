"""A task of nothing but sums, for the loop and what stands around it."""

import flax.struct
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics


@flax.struct.dataclass
class State:
    step: jax.Array
    total: jax.Array


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    loss: clu_metrics.Average.from_output("loss")
    last: clu_metrics.LastValue.from_output("last")


@jax.jit
def step(state, batch):
    """The loss of step n is the sum of the batches so far, over 3: no two steps alike, inexact in float32."""
    state = State(step=state.step + 1, total=state.total + batch)
    return state, Metrics.single_from_model_output(loss=state.total / 3, last=batch)


def batch(number):
    return jnp.float32(0.1 * number + 1)


def batches(start=0):
    number = start
    while True:
        yield batch(number)
        number += 1
