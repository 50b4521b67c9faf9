"""The laws that a training step keeps, whatever its network."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny

from cp2_jax.augment.compose import Pair
from cp2_jax.pretraining import memory_bank
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, optim


def make(config):
    schedule = optim.schedule(config.optimizer, 10, 1)
    optimizer = optim.make(config.optimizer, schedule)
    return optimizer, jax.jit(pretrain_step.make_update(config, optimizer, schedule))


def begin(config, optimizer):
    """The state before the first step, compiled whole."""
    return jax.jit(lambda: pretrain_step.init_state(config, optimizer))()


def test_the_queue_wraps_and_holds_the_newest_keys(monkeypatch):
    """With a queue of two rows, the third step overwrites the first step's row."""
    config = tiny.toy_pretrain_config(monkeypatch)
    config.loss.queue_size = 16
    optimizer, update = make(config)
    state = begin(config, optimizer)
    banks = [state.queue]
    for step in range(3):
        state, _ = update(state, random_pair(step))
        banks.append(state.queue)
    np.testing.assert_array_equal(banks[1][1], banks[0][1])
    np.testing.assert_array_equal(banks[2][0], banks[1][0])
    assert not np.allclose(banks[3][0], banks[2][0])
    np.testing.assert_allclose(jnp.linalg.norm(banks[3], axis=-1), 1, rtol=1e-5)


def random_pair(seed, batch=8, size=64):
    rng = np.random.default_rng(seed)
    mask = np.zeros((2, batch, size, size), np.float32)
    mask[:, :, 8:48, 8:48] = 1
    images = rng.normal(size=(2, batch, size, size, 3)).astype(np.float32)
    return Pair(image_query=images[0], image_key=images[1], mask_query=mask[0], mask_key=mask[1])


def test_strided_groups_are_one_of_the_permutations(x64, monkeypatch):
    """The static shuffle equals moving the images: sample i sits in group i mod G."""
    config = tiny.toy_pretrain_config(monkeypatch)
    config.model.dtype = "float64"
    config.update(bn_groups=2, key_shuffle="none")
    optimizer, moved = make(config)
    config.key_shuffle = "strided"
    _, strided = make(config)
    state = begin(config, optimizer)
    order = jnp.asarray([0, 2, 4, 6, 1, 3, 5, 7])
    a, b = strided(state, random_pair(0))[0], moved(state, random_pair(0), order)[0]
    np.testing.assert_allclose(a.queue, b.queue, atol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), a.key_batch_stats, b.key_batch_stats)


def test_key_encoder_follows_by_momentum_and_keeps_its_own_statistics(monkeypatch):
    config = tiny.toy_pretrain_config(monkeypatch)
    config.loss.momentum = 0.9
    optimizer, update = make(config)
    first, _ = update(begin(config, optimizer), random_pair(0))
    second, _ = update(first, random_pair(1))
    expected = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, first.key_params, first.params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), second.key_params, expected)
    means = (s["head"]["convs_0"]["bn"]["mean"] for s in (second.key_batch_stats, second.batch_stats))
    assert not np.allclose(*means)
    # Each encoder's averages go on from its own, whatever the other's are.
    changed = jax.tree.map(lambda x: x + 1, first.batch_stats)
    other, _ = update(first.replace(batch_stats=changed), random_pair(1))
    jax.tree.map(np.testing.assert_array_equal, other.key_batch_stats, second.key_batch_stats)
    ours, theirs = (s.batch_stats["head"]["convs_0"]["bn"]["mean"] for s in (other, second))
    np.testing.assert_allclose(ours, theirs + 0.9, rtol=1e-5)


def test_quick_tunings_queue_fills_and_unusable_masks_are_counted_in_microbatches(monkeypatch):
    """No vector of the first queue is a negative, then those of the first step alone. Of what microbatches measure all but
    the skipped samples are means."""
    config = tiny.toy_pretrain_config(monkeypatch)
    config.update(bn_groups=2, accumulate=2)
    config.loss.queue_start = "keys"
    pair = random_pair(0, size=32)
    pair.mask_query[[0, 5]] = 0
    pair.mask_key[6] = 1
    optimizer, update = make(config)
    losses = []

    def step(state):
        state, metrics = update(state, pair)
        assert metrics.compute()["skipped_samples"] == 3
        losses.append(float(metrics.compute()["loss_instance"]))
        return state

    first = step(begin(config, optimizer))
    for row in (1, 0):
        step(first.replace(queue=first.queue.at[row].set(0.0)))
    step(first)
    assert losses[0] == 0 < losses[3] == losses[1] != losses[2]


def uint8_batch(seed, batch=8, size=64):
    rng = np.random.default_rng(seed)
    return {k: rng.integers(0, 256, (batch, 2, size, size, 3), dtype=np.uint8) for k in ("foreground", "background")}


@pytest.mark.parametrize("shuffle", ["strided", "permutation", "none"])
def test_full_step_runs_and_repeats_exactly(monkeypatch, shuffle):
    """From uint8 crops to a new state; the same seed gives the same losses to the bit."""
    config = tiny.toy_pretrain_config(monkeypatch)
    config.update(bn_groups=2, key_shuffle=shuffle)
    if shuffle != "strided":  # every draw once is enough
        config.augment.update(jitter_probability=0.0, grayscale=0.0, blur=0.0)
    device_mesh = mesh.make_mesh()
    initial_state, step = pretrain_step.make_step(config, 10, 5, device_mesh)

    def run():
        state, losses = initial_state(), []
        for index in range(2):
            state, metrics = step(state, mesh.place_batch(device_mesh, uint8_batch(index, size=32)))
            losses.append(float(metrics.compute()["loss"]))
        assert int(state.step) == 2
        return losses

    losses = run()
    assert np.isfinite(losses).all() and run() == losses


def test_state_starts_with_equal_encoders_and_random_queue(monkeypatch):
    config = tiny.toy_pretrain_config(monkeypatch)
    optimizer, _ = make(config)
    state = begin(config, optimizer)
    jax.tree.map(np.testing.assert_array_equal, state.params, state.key_params)
    assert state.queue.shape == (2, 8, 128)
    assert memory_bank.age(state.queue, state.step) == 0
    assert not any(
        re.search("classifier|conv_seg", jax.tree_util.keystr(p))
        for p, _ in jax.tree_util.tree_leaves_with_path(state.params)
    )
