"""Schedules against the recorded values of the original, optimisers against PyTorch's update rules in plain NumPy."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.paths import DATA
from ml_collections import ConfigDict

from cp2_jax.runs import optim


def config(**changed):
    return ConfigDict(
        dict(
            name="sgd",
            learning_rate=0.03,
            momentum=0.9,
            weight_decay=1e-4,
            schedule="cosine",
            warmup_steps=0,
            power=0.9,
            min_learning_rate=1e-4,
        )
        | changed
    )


def test_poly_equals_the_recorded_schedule():
    recorded = json.loads((DATA / "E_lr.json").read_text())["poly"]
    schedule = optim.schedule(config(schedule="poly", learning_rate=recorded["base"]), recorded["max_iters"], 1)
    for step, value in recorded["values"].items():
        np.testing.assert_allclose(schedule(int(step)), value, rtol=2e-5)


def test_cosine_by_epoch_equals_the_recorded_schedule():
    recorded = json.loads((DATA / "E_lr.json").read_text())["cosine_by_epoch"]["values"]
    for name, values in recorded.items():
        rate, epochs = (float(part.split("=")[1]) for part in name.split(","))
        schedule = optim.schedule(config(schedule="cosine_by_epoch", learning_rate=rate), int(epochs) * 7, 7)
        for epoch, value in values.items():
            for step_in_epoch in (0, 6):
                # In float32 1 + cos has an absolute error of 1e-7, which near the end is no longer a small relative one.
                step = int(epoch) * 7 + step_in_epoch
                np.testing.assert_allclose(schedule(jnp.int32(step)), value, rtol=2e-6, atol=rate * 1e-7)


def test_cosine_by_epoch_counts_an_epoch_that_is_begun_and_those_of_the_warmup():
    """10 steps are 3 epochs of 4, of which the last has a rate, too: the original's 1 + cos(pi epoch / epochs)."""
    expected = np.repeat(0.03 / 2 * (1 + np.cos(np.pi * np.arange(3) / 3)), 4)[:10]
    for warmup in (0, 5):
        schedule = optim.schedule(config(schedule="cosine_by_epoch", warmup_steps=warmup), 10, 4)
        np.testing.assert_allclose([schedule(step) for step in range(warmup, 10)], expected[warmup:], rtol=1e-6)


def test_cosine_per_step_and_warmup():
    schedule = optim.schedule(config(warmup_steps=10), 110, 11)
    assert schedule(0) == 0
    np.testing.assert_allclose(schedule(5), 0.015, rtol=1e-6)
    np.testing.assert_allclose(schedule(10), 0.03, rtol=1e-6)
    np.testing.assert_allclose(schedule(60), 0.015, rtol=1e-6)
    np.testing.assert_allclose(schedule(110), 0, atol=1e-9)


def test_unknown_schedule_is_refused():
    with pytest.raises(KeyError, match="stairs"):
        optim.schedule(config(schedule="stairs"), 10, 1)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_equals_pytorchs_rule(x64, name):
    rng = np.random.default_rng(0)
    c = config(name=name, weight_decay=0.01)
    optimizer = optim.make(c, optax.constant_schedule(0.05))
    p = rng.normal(size=5)
    params = jnp.asarray(p)
    state = optimizer.init(params)
    buffer = m = v = np.zeros(5)
    for t in range(1, 6):
        g = rng.normal(size=5)
        updates, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, updates)
        if name == "sgd":
            g = g + 0.01 * p
            buffer = 0.9 * buffer + g
            p = p - 0.05 * buffer
        else:
            p = p * (1 - 0.05 * 0.01)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(params, p, rtol=1e-12)
