"""What the masks of a split have in common, and a mask with its photo: values, palettes, orientations."""

import numpy as np
import pytest
from helpers.miniatures import folder_section, write_pair
from PIL import Image

from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.labelled import check
from cp2_jax.data.labelled.examples import open_examples

pytestmark = pytest.mark.usefixtures("said")


def config(root, names=("background", "tumour"), **changes):
    return folder_section(root, **dict(num_classes=len(names), class_names=names) | changes)


def binary(root, value=255, count=3):
    for number in range(count):
        mask = np.zeros((12, 16), np.uint8)
        mask[2:6, 3 : 8 + number] = value
        _, path = write_pair(root, f"{number}", mask=mask)
        Image.fromarray(mask).save(path)
    return root


def test_binary_masks_of_0_and_255_are_found_out(tmp_path):
    root = binary(tmp_path)
    advice = (
        r"255 \(ignored\) covers 12.5%: is 255 the class tumour\? Then set data.label_map=\(\(255, 1\),\) with data.ignore"
    )
    with pytest.raises(SegmentationError, match=f"train: only background is labelled in all 3 masks, .*{advice}_label=254"):
        open_examples(config(root), "train")
    found = check.check_split(config(root), "train")
    assert found.images == 3 and len(found.problems) == 1 and "is 255 the class tumour?" in found.problems[0]
    followed = open_examples(config(root, label_map=((255, 1),), ignore_label=254), "train")
    assert set(np.unique(followed.load(0)[1])) == {0, 1}
    assert not check.check_split(config(root, label_map=((255, 1),), ignore_label=254), "train").problems


def test_who_says_that_255_is_ignored_is_believed_and_warned(tmp_path, said):
    examples = open_examples(config(binary(tmp_path), label_map=((255, 255),)), "train")
    assert set(np.unique(examples.load(0)[1])) == {0, 255} and "only background is labelled" in said.text


def test_masks_of_one_class_are_said(tmp_path, said):
    open_examples(config(binary(tmp_path, value=0)), "train")
    assert "train: only background is labelled in all 3 masks, no pixel is tumour" in said.text


def test_smoothed_masks_name_a_few_values(tmp_path):
    _, path = write_pair(tmp_path, "a")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16)).save(path)
    with pytest.raises(SegmentationError, match="has value 2, 3, 4, .* and 182 more, .*resized with smoothing"):
        open_examples(config(tmp_path), "train").load(0)


def with_palette(root, stem, mask, colors):
    _, path = write_pair(root, stem, mask=mask)
    picture = Image.fromarray(mask)
    picture.putpalette(np.array(colors, np.uint8).tobytes())
    picture.save(path)


QUARTERS = np.repeat(np.repeat(np.array([[0, 1], [1, 2]], np.uint8), 6, 0), 8, 1)
COLORS = [[0, 0, 0], [200, 0, 0], [0, 200, 0]]
NAMES = ("nothing", "red", "green")


def test_palettes_of_another_order_are_refused_with_both_names(tmp_path):
    with_palette(tmp_path, "a", QUARTERS, COLORS)
    with_palette(tmp_path, "b", QUARTERS, [COLORS[0], COLORS[2], COLORS[1]])
    conflict = r"colour \(0, 200, 0\) is value 2 in the palette of mask .*a\.png but value 1 in mask .*b\.png"
    with pytest.raises(SegmentationError, match=conflict):
        open_examples(config(tmp_path, NAMES), "train")
    (problem,) = check.check_split(config(tmp_path, NAMES), "train").problems
    assert "the order of their palettes differs" in problem


def test_a_palette_that_was_not_among_those_looked_at_is_found_when_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("cp2_jax.data.labelled.survey.SAMPLES", 2)
    for stem in "abc":
        with_palette(tmp_path, stem, QUARTERS, COLORS if stem != "b" else [COLORS[0], COLORS[2], COLORS[1]])
    examples = open_examples(config(tmp_path, NAMES), "train")
    with pytest.raises(SegmentationError, match="a.png but value . in mask .*b.png"):
        examples.load(1)
    examples.load(2)


def test_palettes_may_differ_where_no_pixel_is(tmp_path, said):
    with_palette(tmp_path, "a", QUARTERS, [*COLORS, [1, 1, 1]])
    with_palette(tmp_path, "b", QUARTERS, [*COLORS, [200, 0, 0], [0, 0, 0]])
    open_examples(config(tmp_path, NAMES), "train").load(1)
    assert not said.records


def test_other_colours_of_a_value_are_said(tmp_path, said):
    with_palette(tmp_path, "a", QUARTERS, COLORS)
    with_palette(tmp_path, "b", QUARTERS, [COLORS[0], [90, 90, 90], COLORS[2]])
    open_examples(config(tmp_path, NAMES), "train")
    assert "value 1 has colour (200, 0, 0)" in said.text and "(90, 90, 90) in mask" in said.text


def turned(root, orientation, size=(12, 16), mask_size=None):
    image, mask = write_pair(root, "a", size=size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.open(image).save(image, exif=exif)
    Image.fromarray(QUARTERS[: (mask_size or size)[0], : (mask_size or size)[1]]).save(mask)
    return root


def test_a_photo_turned_by_exif_and_its_mask(tmp_path, said):
    root = turned(tmp_path, 6)
    with pytest.raises(
        SegmentationError, match=r"turned by its EXIF orientation \(6\), its mask is not; set data.exif=Fal"
    ):
        open_examples(config(root, NAMES), "train").load(0)
    examples = open_examples(config(root, NAMES, exif=False), "train")
    image, label = examples.load(0)
    assert image.shape[:2] == label.shape == examples.size(0) == (12, 16) and not said.records


@pytest.mark.parametrize("orientation, size", [(3, (12, 16)), (2, (12, 16)), (6, (12, 12))])
def test_a_turn_that_sizes_do_not_tell_is_said(tmp_path, said, orientation, size):
    open_examples(config(turned(tmp_path, orientation, size), NAMES), "train").load(0)
    assert f"is turned by its EXIF orientation ({orientation})" in said.text and "set data.exif=False" in said.text


def test_an_upright_mask_of_a_turned_photo_is_right(tmp_path, said):
    root = turned(tmp_path, 6, (16, 12), (12, 16))
    assert open_examples(config(root, NAMES), "train").load(0)[0].shape == (12, 16, 3)
    assert not said.records
