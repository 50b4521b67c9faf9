"""Probes against brute force and closed forms in NumPy; the hook that writes them."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny import choose_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.pretraining import hooks, metrics, probes
from cp2_jax.runs import mesh

SETTINGS = settings(max_examples=20, deadline=None)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def auc_by_pairs(query, key, mask_query, mask_key):
    """Every foreground query pixel, every pair of a foreground and a background key pixel."""
    similarity = unit(query.astype(np.float64)) @ unit(key.astype(np.float64)).T
    areas = []
    for row in similarity[mask_query > 0]:
        wins = [
            (positive > negative) + 0.5 * (positive == negative)
            for positive in row[mask_key > 0]
            for negative in row[mask_key == 0]
        ]
        areas.append(np.mean(wins))
    return np.mean(areas)


@SETTINGS
@given(st.integers(0, 2**31))
def test_separability_equals_counting_all_pairs(seed):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, 2, 12, 5)).astype(np.float32)
    masks = (rng.random((2, 2, 12)) < 0.5).astype(np.float32)
    masks[..., 0], masks[..., 1] = 0, 1
    found = probes.separability(query, key, *masks)
    expected = [auc_by_pairs(*sample) for sample in zip(query, key, *masks, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_ties_count_half_and_collapsed_features_give_chance():
    features, mask = np.ones((1, 9, 4), np.float32), (np.arange(9) < 4).astype(np.float32)[None]
    assert probes.separability(features, features, mask, mask)[0] == 0.5


def test_separability_is_one_or_zero_when_foregrounds_are_alike_or_opposite():
    mask = (np.arange(6) < 3).astype(np.float32)[None]
    features = np.where(mask[..., None] > 0, [1.0, 0.0], [0.0, 1.0]).astype(np.float32)
    assert probes.separability(features, features, mask, mask)[0] == 1
    assert probes.separability(features, features[..., ::-1], mask, mask)[0] == 0


@pytest.mark.parametrize("query, key", [(0, 0.5), (0.5, 0), (0.5, 1)])
def test_separability_without_one_kind_of_pixel_is_nan(query, key):
    def share(x):
        return (np.arange(4) < 4 * x).astype(np.float32)[None]

    features = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)
    assert np.isnan(probes.separability(features, features, share(query), share(key))[0])


def test_retrieval_counts_nearest_neighbours():
    rng = np.random.default_rng(1)
    key = rng.normal(size=(20, 6)).astype(np.float32)
    query = key + 0.8 * rng.normal(size=key.shape).astype(np.float32)
    nearest = np.argmax(unit(query) @ unit(key).T, axis=1)
    expected = np.mean(nearest == np.arange(20))
    assert 0 < expected < 1
    np.testing.assert_allclose(probes.retrieval(query, key), expected, rtol=1e-6)
    assert probes.retrieval(key, 3 * key) == 1
    np.testing.assert_allclose(probes.retrieval(np.ones_like(key), np.ones_like(key)), 1 / 20, rtol=1e-6)


def test_effective_rank_in_closed_form():
    def rank(x):
        return float(probes.effective_rank(probes.spectrum(jnp.asarray(x, jnp.float32))))

    np.testing.assert_allclose(rank(np.ones((10, 4))), 1, atol=1e-3)
    np.testing.assert_allclose(rank(np.repeat(np.eye(5), 3, axis=0)), 5, rtol=1e-5)
    # Directions seen 9 and 1 times: singular values 3 and 1, shares 3/4 and 1/4.
    skewed = np.eye(2)[[0] * 9 + [1]]
    np.testing.assert_allclose(rank(skewed), np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)), rtol=1e-5)


@SETTINGS
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 8))
def test_effective_rank_lies_between_one_and_the_rank_and_ignores_rotation(seed, count, channels):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, channels)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(channels, channels)))[0].astype(np.float32)
    measure = jax.jit(lambda x: probes.effective_rank(probes.spectrum(x)))
    rank, turned = measure(features), measure(features @ rotation)
    assert 1 - 1e-5 <= rank <= min(count, channels) + 1e-4
    np.testing.assert_allclose(rank, turned, rtol=1e-4)


def test_measure_pools_the_foreground_alone():
    """Equal foregrounds on different backgrounds are the same thing to retrieval; the backgrounds are not looked at."""
    rng = np.random.default_rng(2)
    foreground = np.repeat(rng.normal(size=(6, 1, 1, 8)), 16, axis=1).reshape(6, 4, 4, 8)
    mask = np.zeros((6, 4, 4), np.float32)
    mask[:, 1:3, :3] = 1
    query, key = (np.where(mask[..., None] > 0, foreground, rng.normal(size=foreground.shape)) for _ in range(2))
    found = probes.measure(query.astype(np.float32), key.astype(np.float32), mask, mask)
    assert found["retrieval"] == 1 and found["auc"] > 0.9
    np.testing.assert_allclose(np.sum(found["spectrum"]), 1, rtol=1e-5)
    pooled = unit(foreground[:, 0, 0])
    values = np.linalg.svd(pooled, compute_uv=False)
    np.testing.assert_allclose(found["spectrum"], values / values.sum(), atol=1e-5)


def test_feature_std_is_one_on_the_whole_sphere_and_less_to_one_side():
    rng = np.random.default_rng(0)
    everywhere = rng.normal(size=(2000, 16))
    for features in (unit(everywhere), unit(everywhere + np.eye(16)[3] * 6)):
        deviations = [np.sqrt(np.mean((channel - channel.mean()) ** 2)) for channel in features.T]
        found = metrics.feature_std(jnp.float32(features))
        np.testing.assert_allclose(found, 4 * np.mean(deviations), rtol=1e-5)
        assert abs(found - 1) < 0.01 if features[:, 3].mean() < 0.1 else found < 0.6


def test_collapse_is_named_and_a_good_run_is_not():
    good = {"probe/output_effective_rank": 20.0, "probe/output_retrieval": 0.4}
    assert hooks.collapse(good, 128) == ""
    bad = good | {"probe/backbone_effective_rank": 1.02, "probe/backbone_retrieval": 0.01}
    assert "backbone" in hooks.collapse(bad, 128) and "output" not in hooks.collapse(bad, 128)


class Recorder:
    def __init__(self):
        self.lines, self.messages = [], []

    def scalars(self, step, values):
        self.lines.append((step, json.loads(json.dumps(values))))

    def text(self, message):
        self.messages.append(message)


@pytest.fixture(scope="module")
def tiny():
    from configs import pretrain_demo
    from cp2_jax.pretraining import forward

    config = pretrain_demo.get_config()
    config.image_size, config.probe_every = 32, 2
    config.update(batch_size=4)
    crops = np.random.default_rng(0).integers(0, 256, (2, 6, 2, 32, 32, 3), np.uint8)
    choose_vit(config.model)
    return config, {"foreground": crops[0], "background": crops[1]}, forward.build_models(config)[0]


def test_hook_writes_both_levels_when_due_and_warns_of_collapse(tiny):
    config, crops, model = tiny
    writer = Recorder()
    hook = hooks.pretrain_probes(config, crops, writer, mesh.make_mesh(), last=5)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)

    class State:
        params, batch_stats = variables["params"], variables["batch_stats"]

    for step in range(1, 6):
        hook(step, State)
    assert [step for step, _ in writer.lines] == [2, 4, 5]  # and at the end
    names = {f"probe/{level}_{name}" for level in ("output", "backbone") for name in ("auc", "retrieval", "effective_rank")}
    assert set(writer.lines[0][1]) == names and not writer.messages
    assert writer.lines[0][1] == writer.lines[1][1]  # the same pairs each time

    class Collapsed(State):
        # A projection without weights gives its bias everywhere.
        params = jax.tree.map(jnp.copy, State.params)

    Collapsed.params["projection"]["conv2"]["kernel"] *= 0
    hook(6, Collapsed)
    values = writer.lines[-1][1]
    np.testing.assert_allclose(values["probe/output_effective_rank"], 1, atol=1e-2)
    np.testing.assert_allclose(values["probe/output_auc"], 0.5, atol=1e-6)
    assert "output" in writer.messages[0] and "backbone" not in writer.messages[0]


def test_pictures_are_drawn_at_the_start_when_due_and_at_the_end(tiny):
    config, crops, model = tiny
    config = config.copy_and_resolve_references()
    config.picture_every, drawn = 3, []
    writer = types.SimpleNamespace(image=lambda step, name, picture: drawn.append((step, name, picture.shape)))
    hook = hooks.pretrain_pictures(config, crops, writer, mesh.make_mesh(), 5)
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)
    state = types.SimpleNamespace(**variables)
    for step in range(1, 6):
        hook(step, state)
    assert [entry[:2] for entry in drawn] == [(1, "pairs"), (1, "similarity"), (3, "similarity"), (5, "similarity")]
    assert len({shape for _, name, shape in drawn if name == "similarity"}) == 1


def test_pooled_models_are_probed_at_the_backbone_alone(tiny):
    config, crops, _ = tiny
    config = config.copy_and_resolve_references()
    config.model.head, config.augment.mask = "pool", "full"
    from cp2_jax.pretraining import forward

    model = forward.build_models(config)[0]
    variables = jax.jit(model.init, static_argnames="train")(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)
    assert jax.eval_shape(lambda: model.apply(variables, jnp.zeros((2, 32, 32, 3)), train=False)).shape == (2, 1, 1, 128)
    found = hooks.make_probe(config)(variables, hooks.probe_pairs(config, crops))
    assert set(found) == {"backbone"} and 0 <= found["backbone"]["auc"] <= 1
