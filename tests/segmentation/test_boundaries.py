"""Boundary IoU against its definition, written pixel by pixel."""

import math

import numpy as np
import pytest

from cp2_jax.segmentation import boundaries, confusion


def near_by_hand(labels, distance):
    height, width = labels.shape
    near = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            for dy in range(-distance, distance + 1):
                for dx in range(-distance, distance + 1):
                    outside = not (0 <= y + dy < height and 0 <= x + dx < width)
                    near[y, x] |= outside or labels[y + dy, x + dx] != labels[y, x]
    return near


def blocks(seed, size, ignored=0.1):
    rng = np.random.default_rng(seed)
    labels = np.kron(rng.integers(0, 3, (4, 5)), np.ones((size[0] // 4, size[1] // 5))).astype(np.uint8)
    guess = np.roll(labels, 1, axis=1)
    labels[rng.random(labels.shape) < ignored] = 255
    return labels, guess


@pytest.mark.parametrize("distance", [1, 2])
def test_pixels_near_a_border(distance):
    labels, _ = blocks(0, (16, 20))
    np.testing.assert_array_equal(boundaries.near_border(labels, distance), near_by_hand(labels, distance))


@pytest.mark.parametrize("size", [(16, 20), (64, 100)])
def test_boundary_iou_is_its_definition(size):
    labels, guess = blocks(1, size, ignored=0.01)
    distance = max(1, round(0.02 * math.hypot(*size)))
    near_true, near_found, counted = near_by_hand(labels, distance), near_by_hand(guess, distance), labels != 255
    expected = []
    for c in range(3):
        true, found = (labels == c) & near_true & counted, (guess == c) & near_found & counted
        expected.append((true & found).sum() / (true | found).sum())
    counts = boundaries.count(labels, guess, 3)
    np.testing.assert_allclose(boundaries.iou(counts), expected)
    # Summed over images, as the confusion matrix is; a class without a border has no score.
    np.testing.assert_allclose(boundaries.iou(counts * 2), expected)
    assert np.isnan(boundaries.iou(boundaries.count(labels, guess, 4))[3])


def test_a_border_that_is_wrong_costs_more_than_the_area():
    truth = np.zeros((100, 100), np.uint8)
    truth[20:80, 20:80] = 1
    guess = np.roll(truth, 3, axis=1)
    matrix = np.array([[((truth == t) & (guess == g)).sum() for g in (0, 1)] for t in (0, 1)])
    result = confusion.scores(matrix, boundaries.count(truth, guess, 2))
    assert result.mean_iou > 0.9 and result.boundary_iou[1] < 0.6
    perfect = confusion.scores(np.diag(matrix.sum(1)), boundaries.count(truth, truth, 2))
    assert perfect.mean_boundary_iou == perfect.mean_dice == 1
