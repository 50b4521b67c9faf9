"""Masks that are pictures, masks in three equal bands, and masks of 16 bits."""

import numpy as np
import pytest
from helpers.images import encode
from helpers.miniatures import folder_section, write_pair
from PIL import Image

from cp2_jax.data import notices
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.labelled import check
from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.data.labelled.masks import read_mask

pytestmark = pytest.mark.usefixtures("said")


LABELS = np.random.default_rng(0).integers(0, 5, (9, 13)).astype(np.uint8)
GREY = Image.fromarray(LABELS)


COLORS = ((0, 0, 0), (200, 0, 0), (0, 200, 0))
NAMED = ("background", "apple", "pear")
VOID = (224, 224, 192)


def config(root, names=NAMED, **changes):
    return folder_section(root, **dict(num_classes=len(names), class_names=names) | changes)


def painted(root, numbers, colors=COLORS, mode="RGB", **options):
    """One pair whose mask is the picture of `numbers`."""
    _, path = write_pair(root, "a")
    Image.fromarray(np.array(colors, np.uint8)[numbers]).convert(mode).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_masks_in_the_colours_of_the_classes(tmp_path, mode):
    numbers = np.random.default_rng(0).integers(0, 3, (12, 16))
    painted(tmp_path, numbers, mode=mode)
    data = config(tmp_path, class_colors=COLORS)
    np.testing.assert_array_equal(open_examples(data, "train").load(0)[1], numbers)
    found = check.check_split(data, "train")
    assert not found.problems and list(found.pixels[:3]) == list(np.bincount(numbers.ravel()))
    # What label_map says of class numbers is not applied to colours.
    shifted = config(tmp_path, class_colors=COLORS, label_map=((0, 255), (1, 0), (2, 1), (3, 2)))
    np.testing.assert_array_equal(open_examples(shifted, "train").load(0)[1], numbers)


def test_colours_that_are_to_be_ignored_or_of_another_class(tmp_path):
    numbers = np.random.default_rng(1).integers(0, 4, (12, 16))
    painted(tmp_path, numbers, (*COLORS, VOID))
    with pytest.raises(SegmentationError, match=r"colour \(224, 224, 192\) in .* pixels, .* data.label_map=\(\(\(224, 224"):
        open_examples(config(tmp_path, class_colors=COLORS), "train").load(0)
    ignoring = config(tmp_path, class_colors=COLORS, label_map=((VOID, 255),))
    np.testing.assert_array_equal(open_examples(ignoring, "train").load(0)[1], np.where(numbers == 3, 255, numbers))
    merging = config(tmp_path, class_colors=COLORS, label_map=((VOID, 255), ([0, 200, 0], 1)))
    np.testing.assert_array_equal(open_examples(merging, "train").load(0)[1], np.array([0, 1, 1, 255])[numbers])


def test_pictures_that_cannot_be_masks(tmp_path):
    def refused(match, colors=COLORS):
        with pytest.raises(SegmentationError, match=match):
            open_examples(config(tmp_path, class_colors=colors), "train").load(0)

    numbers = np.random.default_rng(2).integers(0, 3, (12, 16))
    path = painted(tmp_path, numbers)
    refused("is an image of mode RGB, not of labels; .* give all classes theirs in classes.txt", ())
    refused(r"classes background and pear have the same colour \(0, 0, 0\)", (*COLORS[:2], COLORS[0]))
    Image.open(path).resize((32, 24)).resize((16, 12)).save(path)
    refused("colours that are no class's, .* it was resized with smoothing")
    clear = Image.fromarray(np.array(COLORS, np.uint8)[numbers])
    clear.putalpha(100)
    clear.save(path)
    refused("has transparent pixels")
    with pytest.raises(SegmentationError, match=r"has \(\(300, 0, 0\), 255\): give pairs"):
        open_examples(config(tmp_path, label_map=(((300, 0, 0), 255),)), "train")


@pytest.mark.parametrize("colors", [(), COLORS], ids=["no colours", "colours"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_class_numbers_in_three_equal_bands(tmp_path, said, colors, mode):
    """As `cv2.imwrite` of a picture, and lossless WebP, store them."""
    numbers = np.random.default_rng(3).integers(0, 3, (12, 16)).astype(np.uint8)
    numbers[0] = 255
    _, path = write_pair(tmp_path, "a")
    Image.fromarray(np.stack([numbers] * 3, -1)).convert(mode).save(path)
    examples = open_examples(config(tmp_path, class_colors=colors), "train")
    for _ in range(2):
        np.testing.assert_array_equal(examples.load(0)[1], numbers)
    assert [record.message.count("a.png is grey in three equal bands; its levels") for record in said.records] == [1]
    np.testing.assert_array_equal(read_mask(encode(GREY, "WEBP", lossless=True), "a.webp").values, LABELS)
    Image.fromarray(np.stack([numbers + 1] * 3, -1)).convert(mode).save(path)
    with pytest.raises(SegmentationError, match="a.png has value 3, which is neither a class nor ignored"):
        examples.load(0)


def test_equal_bands_that_may_be_colours_are_refused(tmp_path):
    """White is class 1; a smoothed mask of black and white has greys, and its 255 is no class number."""
    path = painted(tmp_path, np.eye(12, 16, dtype=int), ((0, 0, 0), (255, 255, 255)))
    data = config(tmp_path, ("ground", "road"), class_colors=((0, 0, 0), (255, 255, 255)))
    np.testing.assert_array_equal(open_examples(data, "train").load(0)[1], np.eye(12, 16))
    Image.open(path).resize((32, 24)).resize((16, 12)).save(path)
    picture = np.array(Image.open(path))
    picture[0, 0] = 255
    Image.fromarray(picture).save(path)
    with pytest.raises(SegmentationError, match="three equal bands, of which 255 is one class as a colour and another as"):
        open_examples(data, "train").load(0)


def test_a_class_that_no_mask_has_is_told(tmp_path, said):
    for value, told in (
        (2, []),
        (1, ["train: no pixel is pear in all 1 masks; if that is wrong, look whether"]),
    ):
        said.clear()
        mask = np.zeros((12, 16), np.uint8)
        mask[0, :2] = 1, value
        write_pair(tmp_path, "a", mask=mask)
        open_examples(config(tmp_path, NAMED), "train")
        assert [record.message.split(" the classes")[0] for record in said.records] == told


def test_class_numbers_in_16_bits():
    for kind in ("PNG", "TIFF"):
        data = encode(Image.fromarray(LABELS.astype(np.uint16)), kind)
        np.testing.assert_array_equal(read_mask(data, "m").values, LABELS)
    with pytest.raises(
        SegmentationError, match="16 or 32 bits a pixel and values from 0 to .*000; class numbers are 0 to 255"
    ):
        read_mask(encode(Image.fromarray(LABELS.astype(np.uint16) * 1000)), "m.png")


def test_a_palette_in_another_order_than_the_classes_is_told(tmp_path, said):
    numbers = np.random.default_rng(0).integers(0, 3, (12, 16)).astype(np.uint8)
    path = painted(tmp_path, numbers)
    data = config(tmp_path, class_colors=COLORS)

    def store(*order):
        picture = Image.fromarray(numbers)
        picture.putpalette([level for index in order for level in COLORS[index]])
        picture.save(path)
        said.clear()
        np.testing.assert_array_equal(open_examples(data, "train").load(0)[1], numbers)
        return said.text

    assert store(0, 1, 2) == ""
    told = store(0, 2, 1)
    assert "value 1, which is class apple, has the colour (0, 200, 0) of pear in the palette of mask" in told
    notices._said.clear()
    assert not check.check_split(data, "train").problems and "has the colour (0, 200, 0) of pear" in said.text
