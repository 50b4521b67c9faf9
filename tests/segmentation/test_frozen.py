"""Frozen features: nearest neighbours by hand, and both scores on features that do and do not tell the classes apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import halves

from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.interface.probing import probe
from cp2_jax.options import ConfigError
from cp2_jax.segmentation import frozen


def test_neighbours_by_hand():
    rng = np.random.default_rng(0)
    features, known = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(30, 5))
    shares = rng.dirichlet(np.ones(3), 30)
    ours = frozen.neighbours(*(jnp.asarray(x, jnp.float32) for x in (features, known, shares)), k=4)
    for index in np.ndindex(2, 3, 4):
        one = features[index]
        cosines = known @ one / np.linalg.norm(known, axis=1) / np.linalg.norm(one)
        nearest = np.argsort(-cosines)[:4]
        expected = sum(np.exp((cosines[i] - 1) / 0.07) * shares[i] for i in nearest)
        np.testing.assert_allclose(ours[index], expected, rtol=2e-4)


def test_shares_of_a_cell_leave_out_ignored_pixels():
    label = np.array([[[0, 0, 1, 255], [0, 2, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(frozen.cell_shares(label, 2, 3), [[[[0.75, 0, 0.25], [0, 0.25, 0]]]])


def test_the_linear_classifier_is_at_its_minimum():
    """Of the mean cross entropy plus half the decay times the squared weights, not the biases, of standardised features."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(100, 2)) * [3.0, 0.2] + [5.0, -1.0]
    shares = rng.dirichlet([6.0, 1.0, 1.0], 100) * rng.uniform(0.5, 1, (100, 1))  # less than 1 where pixels are ignored
    fitted = jax.jit(frozen.fit)(*(jnp.asarray(x, jnp.float32) for x in (features, shares)))
    kernel, bias = (np.asarray(x, np.float64) for x in fitted)
    mean, std = features.mean(0), features.std(0)
    standard, weights, offset = (features - mean) / std, kernel * std[:, None], bias + mean @ kernel
    guess = np.exp(standard @ weights + offset)
    wrong = guess / guess.sum(1, keepdims=True) * shares.sum(1, keepdims=True) - shares
    assert np.abs(standard.T @ wrong / 100 + 1e-3 * weights).max() < 1e-4 and np.abs(wrong.mean(0)).max() < 1e-4
    assert np.abs(weights).max() > 0.02


@pytest.fixture
def data(tmp_path):
    halves.halves_on_disk(tmp_path, "train", 4, sizes=[(32, 40), (40, 32)])
    halves.halves_on_disk(tmp_path, "val", 3)
    return tmp_path


def test_features_that_know_the_classes_score_high_and_others_do_not(data):
    """In these images the classes differ in brightness alone."""
    config = halves.folder_config(data)
    train, test = (open_examples(config.data, split) for split in ("train", "val"))

    def brightness(images):
        cells = jnp.asarray(images, jnp.float32).reshape(len(images), 8, 4, 8, 4, 3).mean(axis=(2, 4, 5)) / 255
        return jnp.stack([cells, 1 - cells], axis=-1)

    good = frozen.score(brightness, train, test, 3, size=32, cells=100, batch=2)
    blind = frozen.score(lambda images: jnp.ones((len(images), 8, 8, 2)), train, test, 3, size=32, cells=100, batch=2)
    for name in ("linear", "knn"):
        assert good[name].pixel_accuracy > 0.9 > 0.8 > blind[name].pixel_accuracy, name
        assert np.isnan(good[name].iou[2])  # the third class does not occur


def test_a_checkpoint_is_probed_and_bad_sizes_are_refused(data, tmp_path, monkeypatch):
    config = halves.finetuned(data, tmp_path / "run", monkeypatch, steps=1)
    found = probe(tmp_path / "run", config=config, size=32)
    assert found.keys() == {"linear", "knn"} and all(0 <= scores.mean_iou <= 1 for scores in found.values())
    with pytest.raises(ConfigError, match="size=33: must be a multiple of 4; use 32 or 36"):
        probe(tmp_path / "run", config=config, size=33)
    for wrong in ({"features": "stages"}, {"features": "bakbone"}, {"size": 0}, {"k": 0}, {"cells": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            probe(tmp_path / "run", config=config, **wrong)
    config.kind = "pretrain"
    with pytest.raises(ConfigError, match="a probe needs labelled images"):
        probe(tmp_path / "run", config=config, size=32)
