"""Training states with everything that a state may hold, and their checkpoints."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cp2_jax.runs.checkpoints import Checkpoints

META = {"kind": "pretrain", "config": {"seed": 3, "crop": [0.2, 1.0]}, "iterator": {"next_batch": 7}}


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict
    batch_stats: dict
    key_params: dict
    key_batch_stats: dict
    opt_state: optax.OptState
    queue: jax.Array


def make_state(step, optimizer="sgd", width=3, batch_norm=True):
    rng = np.random.default_rng(step)

    def random(*shape):  # NumPy's: the same to the bit however JAX compiles
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {"backbone": {"conv1": {"kernel": random(3, 3, 2, width)}}}
    params["head"] = {"bias": random(width).astype(jnp.bfloat16)}
    stats = {"backbone": {"bn1": {"mean": random(width)}}} if batch_norm else {}
    update = {"sgd": optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9)), "adamw": optax.adamw(1e-3)}
    return State(
        step=jnp.int32(step),
        params=params,
        batch_stats=stats,
        key_params=jax.tree.map(lambda x: x + 1, params),
        key_batch_stats=jax.tree.map(lambda x: x + 1, stats),
        opt_state=jax.tree.map(lambda x: x + 2, update[optimizer].init(params)),
        queue=random(2, 8, 4),
    )


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save_steps(directory, *steps, keep=9):
    saver = Checkpoints(directory, keep=keep)
    for step in steps:
        saver.save(step, make_state(step), META)
    saver.close()


def restore(directory, like=None):
    saver = Checkpoints(directory)
    try:
        return saver.restore(make_state(0) if like is None else like)
    finally:
        saver.close()


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncate(step):
    file = largest_file(step / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
