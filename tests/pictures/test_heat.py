"""Dense similarity: its numbers by hand, one scale for all, and where it is hot."""

import numpy as np
import pytest
from helpers.looks import is_picture, random_images

from cp2_jax import pictures
from cp2_jax.pictures import canvas

SIDE = 224  # of an image in the picture


def test_similarity_by_hand():
    query = np.zeros((2, 2, 2))
    query[1, 0] = [3.0, 0.0]
    key = np.array([[[5.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 0.0]]])
    got = pictures.similarity(query, key, (1, 0))
    np.testing.assert_allclose(got, [[1, 0], [-1, 2**-0.5], [0, 1]], atol=1e-6)


def heat_of(picture, row=0):
    """The map in a row of a `dense_similarity` of images of 224 pixels without a title: its brightness."""
    left = canvas.MARGIN + 2 * (SIDE + canvas.GAP)
    top = canvas.MARGIN + canvas.text("", 9).shape[0] + canvas.GAP
    top += row * (SIDE + 2 * canvas.GAP + canvas.text("", 9, 12).shape[0])
    return picture[top : top + SIDE, left : left + SIDE].astype(float).mean(-1)


def features(*values):
    """One row of features, of which each is (1, 0) turned by arccos of a value: its cosine to (1, 0)."""
    cosine = np.array(values, np.float32)
    return np.stack([cosine, np.sqrt(1 - cosine**2)], axis=-1)[None, None]


def test_it_is_hot_where_the_features_agree():
    """The query point's feature occurs in the key's left half only; (y, x) must not be mistaken for (x, y)."""
    image = np.full((1, SIDE, SIDE, 3), 128, np.uint8)
    query = np.zeros((1, 4, 4, 2), np.float32)
    query[...] = [0.0, 1.0]
    query[0, 0, 3] = [1.0, 0.0]
    key = np.zeros((1, 4, 4, 2), np.float32)
    key[:, :, :2], key[:, :, 2:] = [1.0, 0.0], [0.0, 1.0]
    for point, hot_on_the_left in (((7, 210), True), ((210, 7), False)):
        picture = pictures.dense_similarity(image, image, query, key, [point])
        assert is_picture(picture)
        brightness = heat_of(picture).mean(0)
        third = len(brightness) // 3
        assert (brightness[:third].mean() > brightness[-third:].mean() + 50) == hot_on_the_left


def test_one_scale_for_all_rows_and_pictures():
    """A similarity of 0.6 has the same colour whatever else is shown; brighter means more similar; 0 is black."""
    image = np.full((2, SIDE, SIDE, 3), 128, np.uint8)
    query = np.repeat(features(1.0), 2, axis=0)

    def levels(first, second):
        key = np.concatenate([features(first), features(second)])
        picture = pictures.dense_similarity(image, image, query, key, [(9, 9)] * 2)
        return [heat_of(picture, row).mean() for row in (0, 1)]

    assert levels(0.6, 0.6)[0] == levels(0.6, -1.0)[0] == levels(0.1, 0.6)[1]
    zero, low, high, one = (levels(value, 0.0)[0] for value in (0.0, 0.3, 0.8, 1.0))
    assert zero < 5 and zero < low < high < one and levels(-0.7, 0.0)[0] == zero


def test_an_untrained_model_looks_untrained():
    """All features alike, as of a model that has learned nothing: one colour all over, though values differ a little."""
    rng = np.random.default_rng(0)
    alike = 1 + 0.02 * rng.normal(size=(1, 7, 7, 16))
    image = random_images(1, SIDE, SIDE)
    picture = pictures.dense_similarity(image, image, alike, alike[:, ::-1], [(100, 100)])
    assert heat_of(picture).std() < 2


def test_the_foreground_is_outlined_and_its_mean_told():
    image, mask = random_images(1, SIDE, SIDE), np.zeros((1, SIDE, SIDE), np.float32)
    mask[:, 50:150, 50:150] = 1
    same = np.ones((1, 4, 4, 2))
    plain = pictures.dense_similarity(image, image, same, same, [(1, 1)])
    drawn = pictures.dense_similarity(image, image, same, same, [(1, 1)], mask, "After step 3")
    assert (drawn == (255, 215, 0)).all(-1).sum() > 300 > (plain == (255, 215, 0)).all(-1).sum()
    assert drawn.shape[0] > plain.shape[0]  # the title
    full = pictures.dense_similarity(image, image, same, same, [(1, 1)], np.ones_like(mask))
    assert full.shape == plain.shape


@pytest.mark.parametrize("point", [(32, 0), (0, 48), (-1, 5)])
def test_points_outside_are_refused(point):
    image, values = random_images(1), np.ones((1, 2, 3, 4))
    with pytest.raises(ValueError, match="outside the query image of 32 x 48 pixels"):
        pictures.dense_similarity(image, image, values, values, [point])
