"""Confusion matrices and scores against counting loops and sets of pixels, written plainly."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.segmentation import confusion


def random_pair(seed, num_classes, batch=3, height=7, width=5):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, num_classes, (batch, height, width)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = 255
    return label, rng.integers(0, num_classes, (batch, height, width)).astype(np.int32)


def counted_by_hand(label, prediction, num_classes):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for truth, guess in zip(label.ravel(), prediction.ravel(), strict=True):
        if truth != 255:
            matrix[truth, guess] += 1
    return matrix


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), num_classes=st.sampled_from([2, 5, 150]))
def test_matrix_equals_counting(seed, num_classes):
    label, prediction = random_pair(seed, num_classes)
    ours = np.asarray(confusion.confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), num_classes))
    for one, truth, guess in zip(ours, label, prediction, strict=True):
        np.testing.assert_array_equal(one, counted_by_hand(truth, guess, num_classes))
    assert ours.dtype == np.int32 and ours.sum() == (label != 255).sum()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), absent=st.sets(st.integers(0, 4), max_size=3))
def test_scores_equal_sets_of_pixels(seed, absent):
    label, prediction = random_pair(seed, 5)
    kept = min(set(range(5)) - absent)
    for values in (label, prediction):
        values[np.isin(values, list(absent))] = kept
    result = confusion.scores(counted_by_hand(label, prediction, 5))
    labelled = label != 255
    ious, accuracies = [], []
    for c in range(5):
        truth, guess = labelled & (label == c), labelled & (prediction == c)
        union = (truth | guess).sum()
        if union == 0:
            assert math.isnan(result.iou[c])
        else:
            ious.append((truth & guess).sum() / union)
            np.testing.assert_allclose(result.iou[c], ious[-1])
        if truth.sum() == 0:
            assert math.isnan(result.accuracy[c])
        else:
            accuracies.append((truth & guess).sum() / truth.sum())
            np.testing.assert_allclose(result.accuracy[c], accuracies[-1])
    np.testing.assert_allclose(result.mean_iou, np.mean(ious))
    np.testing.assert_allclose(result.mean_accuracy, np.mean(accuracies))
    np.testing.assert_allclose(result.pixel_accuracy, (label == prediction)[labelled].mean())


def test_class_predicted_but_never_true_counts_as_zero():
    """It lowers the mean IoU but says nothing about the mean accuracy."""
    result = confusion.scores(np.array([[3, 1], [0, 0]]))
    assert result.iou[1] == 0 and result.mean_iou == pytest.approx(0.375)
    assert math.isnan(result.accuracy[1]) and result.mean_accuracy == pytest.approx(0.75)


def test_nothing_labelled_gives_nan_not_an_error():
    result = confusion.scores(np.zeros((3, 3), np.int64))
    assert math.isnan(result.mean_iou) and math.isnan(result.pixel_accuracy)
    assert confusion.as_dict(result, "abc")["mean_iou"] is None


def test_counts_beyond_32_bits_stay_exact():
    big = 2**53 + 1
    result = confusion.scores(np.array([[big, 0], [0, 1]], np.int64))
    assert result.iou[0] == 1.0 and result.pixel_accuracy == 1.0


def test_split_over_devices_equals_one_device():
    """The matrix needs no communication: each device counts its own images."""
    label, prediction = random_pair(0, 4, batch=len(jax.devices()) * 2)
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    split = jax.jit(lambda a, b: confusion.confusion_matrix(a, b, 4))(
        jax.device_put(label, place), jax.device_put(prediction, place)
    )
    np.testing.assert_array_equal(
        np.asarray(split), confusion.confusion_matrix(jnp.asarray(label), jnp.asarray(prediction), 4)
    )


@pytest.mark.parametrize("matrix", [np.zeros((2, 3), int), np.eye(2), np.zeros(4, int)])
def test_other_matrices_are_refused(matrix):
    with pytest.raises(ValueError, match="square matrix of integers"):
        confusion.scores(matrix)


def test_table_and_json_name_every_class():
    result = confusion.scores(np.array([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
    text = confusion.table(result, ["road", "sky", "car"])
    assert "road" in text and "75.00" in text
    assert [line.split() for line in text.splitlines() if line.startswith("car")] == [["car", "-", "-", "-"]]
    values = json.loads(json.dumps(confusion.as_dict(result, ["road", "sky", "car"])))
    assert values["iou"] == {"road": 0.75, "sky": 0.8, "car": None}
    with pytest.raises(ValueError):
        confusion.table(result, ["road", "sky"])
