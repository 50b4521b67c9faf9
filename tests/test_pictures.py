"""Pictures: their numbers by hand, their pixels where they can be told, and what they refuse."""

import numpy as np
import pytest
from PIL import Image

from cp2_jax import pictures
from cp2_jax.models import inputs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def images(count=2, height=32, width=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def shows(picture, rgb, least=20):
    """Whether a picture has at least so many pixels of exactly this colour."""
    return (picture == np.array(rgb, np.uint8)).all(-1).sum() >= least


def is_picture(picture):
    return picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 0


def test_denormalize_undoes_normalize():
    batch = images()
    np.testing.assert_array_equal(inputs.denormalize(inputs.normalize(batch, MEAN, STD), MEAN, STD), batch)
    assert inputs.denormalize(np.full((1, 1, 3), 99.0), MEAN, STD).max() == 255
    assert inputs.denormalize(np.full((1, 1, 3), -99.0), MEAN, STD).max() == 0


def test_save_png_makes_its_folder_and_keeps_every_pixel(tmp_path):
    picture = images(1)[0]
    path = tmp_path / "new" / "deep" / "a.png"
    pictures.save_png(path, picture)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), picture)


def test_outline_draws_only_near_the_border():
    image = np.full((64, 64, 3), 100, np.uint8)
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 8:56] = 1
    drawn = pictures.outline(image, mask)
    changed = (drawn != image).any(-1)
    assert changed[16, 8:56].all() and changed[47, 8:56].all() and changed[16:48, 8].all() and changed[16:48, 55].all()
    assert not changed[22:42, 14:50].any() and not changed[:12].any() and not changed[52:].any()
    assert (image == 100).all()  # its input is left alone
    np.testing.assert_array_equal(pictures.outline(image, np.zeros((64, 64))), image)


def test_pairs_show_the_images_and_outlines():
    red, blue = np.full((3, 32, 32, 3), (255, 0, 0), np.uint8), np.full((3, 32, 32, 3), (0, 0, 255), np.uint8)
    mask = np.zeros((3, 32, 32), np.float32)
    mask[:, 8:24, 8:24] = 1
    picture = pictures.pairs(red, blue, mask, mask)
    assert shows(picture, (255, 0, 0), 1000) and shows(picture, (0, 0, 255), 1000) and shows(picture, (255, 215, 0))
    half = picture.shape[1] // 2
    assert not shows(picture[:, half:], (255, 0, 0)) and not shows(picture[:, :half], (0, 0, 255))
    assert picture.shape[0] > picture.shape[1]  # three rows, two columns
    with pytest.raises(ValueError):
        pictures.pairs(red, blue[:2], mask, mask[:2])


def test_mask_kinds():
    green = np.full((1, 32, 32, 3), (0, 255, 0), np.uint8)
    rectangle, full = np.zeros((1, 32, 32)), np.ones((1, 32, 32))
    picture = pictures.mask_kinds({"rectangle": (rectangle, green), "full": (full, green)})
    assert shows(picture, (0, 255, 0), 1000) and shows(picture, (0, 0, 0), 1000)
    with pytest.raises(ValueError):
        pictures.mask_kinds({"full": (np.ones((2, 32, 32)), green)})


def test_similarity_by_hand():
    query = np.zeros((2, 2, 2))
    query[1, 0] = [3.0, 0.0]
    key = np.array([[[5.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [1.0, 1.0]], [[0.0, 0.0], [2.0, 0.0]]])
    got = pictures.similarity(query, key, (1, 0))
    np.testing.assert_allclose(got, [[1, 0], [-1, 2**-0.5], [0, 1]], atol=1e-6)


def heat_of(picture):
    """The third panel of `dense_similarity`, without its colour bar."""
    width = picture.shape[1]
    return picture[30:-30, int(0.63 * width) : int(0.88 * width)].astype(float)


def test_dense_similarity_is_hot_where_the_features_agree():
    """The query point's feature occurs in the key's left half only; (y, x) must not be mistaken for (x, y)."""
    image = np.full((64, 64, 3), 128, np.uint8)
    query = np.zeros((4, 4, 2), np.float32)
    query[...] = [0.0, 1.0]
    query[0, 3] = [1.0, 0.0]
    key = np.zeros((4, 4, 2), np.float32)
    key[:, :2], key[:, 2:] = [1.0, 0.0], [0.0, 1.0]
    for point, hot_on_the_left in (((2, 60), True), ((60, 2), False)):
        picture = pictures.dense_similarity(image, image, query, key, point)
        assert is_picture(picture)
        brightness = heat_of(picture).mean((0, 2))
        third = len(brightness) // 3
        assert (brightness[:third].mean() > brightness[-third:].mean() + 50) == hot_on_the_left


@pytest.mark.parametrize("point", [(32, 0), (0, 48), (-1, 5)])
def test_dense_similarity_refuses_points_outside(point):
    image, features = images(1)[0], np.ones((2, 3, 4))
    with pytest.raises(ValueError, match="outside the query image of 32 x 48 pixels"):
        pictures.dense_similarity(image, image, features, features, point)


def test_class_colors_are_pascals_and_distinct():
    colors = pictures.class_colors(256)
    np.testing.assert_array_equal(colors[:4], [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]])
    np.testing.assert_array_equal(colors[15], [192, 128, 128])  # person
    np.testing.assert_array_equal(colors[20], [0, 64, 128])  # tv
    assert len(np.unique(colors, axis=0)) == 256


def test_predictions_colour_what_occurs():
    labels = np.full((2, 32, 48), 1)
    labels[:, :8] = 255
    predicted = np.full((2, 32, 48), 2)
    gray = np.full((2, 32, 48, 3), 77, np.uint8)
    picture = pictures.predictions(gray, labels, predicted, ["ground", "cat", "dog", "cow"])
    for rgb in ((77, 77, 77), (128, 0, 0), (0, 128, 0), (224, 224, 224)):
        assert shows(picture, rgb, 500)
    assert not shows(picture, (128, 128, 0), 1)  # no cow, neither in the images nor in the legend


def test_predictions_refuse_nameless_classes():
    with pytest.raises(ValueError, match=r"classes \[5\] occur, but only 2 names"):
        pictures.predictions(images(1), np.full((1, 32, 48), 5), np.zeros((1, 32, 48), int), ["a", "b"])


def test_curves():
    records = [{"step": s, "loss": 10.0 - s} for s in range(5)] + [{"step": 4, "miou": 0.5}]
    one = pictures.curves(records, {"loss": ["loss"], "absent": ["q"]})
    two = pictures.curves(records, {"loss": ["loss"], "mIoU": ["miou"]})
    assert is_picture(one) and is_picture(two) and two.shape[1] > 1.5 * one.shape[1]
    falling = pictures.curves(records, {"loss": ["loss"]})
    rising = pictures.curves([{"step": s, "loss": s} for s in range(5)], {"loss": ["loss"]})
    assert (falling != rising).any()


def test_curves_name_what_there_is():
    with pytest.raises(ValueError, match=r"none of \['los'\] was recorded; there are \['loss'\]"):
        pictures.curves([{"step": 0, "loss": 1.0}], {"loss": ["los"]})
