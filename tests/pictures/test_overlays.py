"""Palettes, overlays and predictions: colours, what stays clear, and who can tell what apart."""

import numpy as np
import pytest
from helpers.looks import is_picture, random_images, shows
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax import pictures
from cp2_jax.pictures import overlays, palettes

NAMES = ["background", "cat", "dog", "cow"]


def test_class_colors_are_pascals_and_distinct():
    colors = pictures.class_colors(256)
    np.testing.assert_array_equal(colors[:4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]])
    np.testing.assert_array_equal(colors[15], [192, 128, 128])  # person
    np.testing.assert_array_equal(colors[20], [0, 64, 128])  # tv
    assert len(np.unique(colors, axis=0)) == 256


def test_lab_by_hand():
    """White, black and red's published coordinates; a protanope's red is much darker, and red and green are close."""
    normal, protan, deutan = palettes.seen(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 160, 0]]))
    np.testing.assert_allclose(normal[:3], [[100, 0, 0], [0, 0, 0], [53.2, 80.1, 67.2]], atol=0.1)
    assert protan[2, 0] < 45
    far, near = np.linalg.norm(normal[2] - normal[3]), np.linalg.norm(deutan[2] - deutan[3])
    assert near < far / 3


@pytest.mark.parametrize("count, least", [(2, 100), (6, 32), (8, 30), (12, 20), (21, 12)])
def test_bright_colors_are_told_apart_by_all_eyes(count, least):
    views = palettes.seen(pictures.bright_colors(count))
    distances = np.linalg.norm(views[:, :, None] - views[:, None], axis=-1).min(axis=0)
    assert distances[~np.eye(count, dtype=bool)].min() > least


def test_there_are_bright_colors_for_all_labels():
    colors = pictures.bright_colors(256)
    assert colors.dtype == np.uint8 and len(np.unique(colors, axis=0)) == 256
    np.testing.assert_array_equal(pictures.bright_colors(5), colors[:5])
    colors[:] = 0  # the caller's own
    assert pictures.bright_colors(3).any()


@given(st.integers(0, 10**6))
def test_painting_leaves_clear_labels_as_they_are(seed):
    rng = np.random.default_rng(seed)
    image = random_images(1, 20, 30, seed)[0]
    labels = np.kron(rng.integers(0, 3, (2, 3)), np.ones((10, 10), int))
    labels[:3, :4] = 255
    table = overlays._colors(NAMES, None, [0, 1, 2], 255)
    painted = overlays.paint(image, labels, table, clear=(0,))
    np.testing.assert_array_equal(painted[labels == 0], image[labels == 0])
    grey = image.mean(-1)
    for label in (1, 2):
        region = labels == label
        expected = 0.45 * grey[..., None] + 0.55 * table[label]
        either = np.abs(painted - expected).max(-1) < 1
        either |= (painted == table[label]).all(-1)  # the line around it
        assert either[region].all()


def test_lines_stand_where_classes_meet_and_not_at_the_images_border():
    labels = np.ones((40, 40), int)
    labels[:, 20:] = 2
    table = overlays._colors(NAMES, None, [1, 2], 255)
    painted = overlays.paint(np.zeros((40, 40, 3), np.uint8), labels, table)
    full = (painted == table[labels]).all(-1)
    assert full[:, 19:21].all() and full.sum() == 80


def test_an_overlay_has_its_legend_below():
    gray = np.full((40, 60, 3), 77, np.uint8)
    labels = np.zeros((40, 60), np.uint8)
    labels[:, :15] = 1
    labels[:5, 50:] = 255
    picture = pictures.overlay(gray, labels, NAMES, caption="a/b.jpg")
    yellow, blue = pictures.bright_colors(2)
    assert is_picture(picture) and shows(picture, yellow, 50) and not shows(picture, blue, 1)
    assert shows(picture, (77, 77, 77), 60_000) and shows(picture, (170, 170, 170), 100)
    own = pictures.overlay(gray, labels, NAMES, pictures.class_colors(4))
    assert shows(own, (128, 0, 0), 50) and not shows(own, yellow, 1) and own.shape[0] < picture.shape[0]


def test_background_is_coloured_where_it_is_a_class_of_its_own():
    gray, labels = np.full((40, 60, 3), 77, np.uint8), np.zeros((40, 60), np.uint8)
    road = pictures.overlay(gray, labels, ["road", "sky"])
    clear = pictures.overlay(gray, labels, ["Background", "sky"])
    assert not shows(road, (77, 77, 77), 500) and shows(clear, (77, 77, 77), 60_000)


def test_predictions_colour_what_occurs():
    labels = np.full((2, 32, 48), 1)
    labels[:, :8] = 255
    predicted = np.full((2, 32, 48), 2)
    predicted[:, :, :8] = 0
    gray = np.full((2, 32, 48, 3), 77, np.uint8)
    colors = pictures.class_colors(4)
    picture = pictures.predictions(gray, labels, predicted, NAMES, colors=colors, captions=["one", "two"])
    third = picture.shape[1] // 3
    for rgb, where in (((105, 35, 35), 1), ((35, 105, 35), 2), ((77, 77, 77), 0), ((77, 77, 77), 2)):
        assert shows(picture[:, where * third : (where + 1) * third], rgb, 500)
    assert shows(picture, (128, 0, 0), 100) and shows(picture, (0, 128, 0), 100)  # legend
    assert not shows(picture, (128, 128, 0), 1)  # no cow, neither in the images nor in the legend


def test_wide_images_are_made_smaller():
    image, labels = random_images(1, 512, 1024), np.ones((1, 512, 1024), np.uint8)
    picture = pictures.predictions(image, labels, labels, NAMES)
    assert picture.shape[1] < 2000


def test_nameless_classes_are_refused():
    with pytest.raises(ValueError, match=r"classes \[5\] occur, but only 2 names"):
        pictures.predictions(random_images(1), np.full((1, 32, 48), 5), np.zeros((1, 32, 48), int), ["a", "b"])
    with pytest.raises(ValueError, match=r"classes \[5\] occur, but only 2 names"):
        pictures.overlay(random_images(1)[0], np.full((32, 48), 5), ["a", "b"])


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1), (3, 900)])
def test_images_of_one_row_or_column_are_shown(size):
    """An evaluation draws its worst image, whatever its shape."""
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    for drawn in (
        overlays.predictions(image[None], label[None], label[None], ("a", "b"), captions=["a name"]),
        overlays.overlay(image, label, ("a", "b"), caption="a name"),
    ):
        assert drawn.shape[0] < 5200 and 100 <= drawn.shape[1] < 6000
