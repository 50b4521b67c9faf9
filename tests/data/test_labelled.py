"""Labelled data: matching, labels, transforms against OpenCV written from MMSegmentation's definition, the stream."""

import numpy as np
import pytest
from helpers.miniatures import folder_section, write_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cp2_jax.data.images.decoding import UnreadableImage
from cp2_jax.data.labelled.examples import SegmentationError, find_pairs, label_table, open_examples


def test_palette_indices_are_the_labels(tmp_path):
    write_pair(tmp_path, "a", size=(8, 10))
    image, label = open_examples(folder_section(tmp_path), "train").load(0)
    assert image.shape == (8, 10, 3) and image.dtype == np.uint8
    assert label.dtype == np.uint8 and label[0, 0] == 0 and label[0, 9] == 1 and label[7, 0] == 2 and label[7, 9] == 3


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_label_map_equals_replacing_one_value_after_the_other(seed):
    """ADE20K's rule: 0 is ignored and every class moves down by one."""
    mask = np.random.default_rng(seed).integers(0, 6, (5, 7)).astype(np.uint8)
    table = label_table(5, ((0, 255), (1, 0), (2, 1), (3, 2), (4, 3), (5, 4)))
    expected = np.array([[255 if v == 0 else v - 1 for v in row] for row in mask])
    np.testing.assert_array_equal(table[mask], expected)
    assert table[6] == -1 and table[255] == 255


@pytest.mark.parametrize("label_map", [((300, 0),), ((1, 9),), ((1, -2),), ((1, 0), (1, 2))])
def test_label_map_out_of_range_or_of_two_meanings_is_refused(label_map):
    with pytest.raises(SegmentationError, match="label_map"):
        label_table(4, label_map)


def test_too_many_classes_are_refused():
    with pytest.raises(SegmentationError, match="8 bits"):
        label_table(256)


def test_cityscapes_layout_matches_nested_names_with_suffixes(tmp_path):
    for city in ("aachen", "bonn"):
        for number in (0, 1):
            write_pair(
                tmp_path,
                f"{city}_{number}",
                split=f"train/{city}",
                image_suffix="_leftImg8bit",
                label_suffix="_gtFine_labelIds",
            )
            other = tmp_path / "labels/train" / city / f"{city}_{number}_gtFine_color.png"
            Image.new("RGB", (16, 12)).save(other)
    pairs = find_pairs(tmp_path, "train", image_suffix="_leftImg8bit", label_suffix="_gtFine_labelIds")
    assert [(i.name, m.name) for i, m in zip(pairs.images, pairs.masks, strict=True)] == [
        (f"{c}_{n}_leftImg8bit.jpg", f"{c}_{n}_gtFine_labelIds.png") for c in ("aachen", "bonn") for n in (0, 1)
    ]


def test_voc_split_file_chooses_and_orders(tmp_path):
    for stem in "abcd":
        write_pair(tmp_path, stem, split="")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("c\na\n\n")
    pairs = find_pairs(tmp_path, "lists/train.txt")
    assert [p.stem for p in pairs.images] == ["c", "a"] == [p.stem for p in pairs.masks]


def test_extensions_do_not_matter_but_must_not_clash(tmp_path):
    image, mask = write_pair(tmp_path, "a")
    image.rename(image.with_suffix(".JPEG"))
    assert len(find_pairs(tmp_path, "train")) == 1
    Image.new("RGB", (16, 12)).save(image.with_suffix(".png"))
    with pytest.raises(SegmentationError, match=r"a\.JPEG and .*a\.png differ only in their extension"):
        find_pairs(tmp_path, "train")


class TestBadInput:
    """One error each, naming the file."""

    def load(self, root, **changes):
        return open_examples(folder_section(root, **changes), "train").load(0)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(SegmentationError, match="no such folder: .*images/train"):
            self.load(tmp_path)

    def test_no_path(self):
        with pytest.raises(SegmentationError, match="data.path is empty"):
            self.load("")

    def test_image_without_mask(self, tmp_path):
        _, mask = write_pair(tmp_path, "a")
        mask.rename(mask.with_name("b.png"))
        with pytest.raises(SegmentationError, match=r"images/train/a\.jpg has no mask"):
            self.load(tmp_path)

    def test_split_file_names_absent_image(self, tmp_path):
        write_pair(tmp_path, "a", split="")
        (tmp_path / "list.txt").write_text("a\nnowhere\n")
        with pytest.raises(SegmentationError, match=r"list\.txt names nowhere"):
            find_pairs(tmp_path, "list.txt")

    def test_absent_and_empty_split_file(self, tmp_path):
        write_pair(tmp_path, "a", split="")
        with pytest.raises(SegmentationError, match="no such split file"):
            find_pairs(tmp_path, "list.txt")
        (tmp_path / "list.txt").write_text("\n")
        with pytest.raises(SegmentationError, match="no image in .*list.txt"):
            find_pairs(tmp_path, "list.txt")

    def test_unknown_label(self, tmp_path):
        mask = np.zeros((12, 16), np.uint8)
        mask[3, 4], mask[0, 0] = 7, 255
        write_pair(tmp_path, "a", mask=mask)
        with pytest.raises(SegmentationError, match=r"a\.png has value 7, which is neither"):
            self.load(tmp_path)

    def test_labels_that_count_from_1(self, tmp_path):
        write_pair(tmp_path, "a", mask=np.add.outer(np.arange(12) % 5, np.zeros(16)).astype(np.uint8))
        advice = r"reduce_zero_label\), data.label_map=\(\(0, 255\), \(1, 0\), \(2, 1\), \(3, 2\), …\)"
        with pytest.raises(SegmentationError, match=advice):
            self.load(tmp_path)

    def test_polygons_are_told_to_be_drawn(self, tmp_path):
        image, mask = write_pair(tmp_path, "a")
        mask.unlink()
        image.with_suffix(".json").write_text("{}")
        with pytest.raises(SegmentationError, match=r"a\.png is missing \(there is a \.json of that name: polygons"):
            self.load(tmp_path)

    def test_other_size(self, tmp_path):
        write_pair(tmp_path, "a", mask=np.zeros((12, 15), np.uint8))
        with pytest.raises(SegmentationError, match=r"a\.png is 15x12 but image .*a\.jpg is 16x12"):
            self.load(tmp_path)

    def test_broken_image_and_mask(self, tmp_path):
        image, mask = write_pair(tmp_path, "a")
        good = image.read_bytes()
        image.write_bytes(b"no image")
        with pytest.raises(UnreadableImage, match=r"a\.jpg"):
            self.load(tmp_path)
        image.write_bytes(good)
        mask.write_bytes(mask.read_bytes()[:60])
        with pytest.raises(SegmentationError, match=r"a\.png cannot be read"):
            self.load(tmp_path)

    def test_limit_above_the_number_of_images(self, tmp_path):
        write_pair(tmp_path, "a")
        with pytest.raises(SegmentationError, match="asks for 2 images, but train has 1"):
            open_examples(folder_section(tmp_path), "train", limit=2)


def test_limit_is_fixed_and_nested(tmp_path):
    for number in range(10):
        write_pair(tmp_path, f"{number}", size=(4, 4))

    def chosen(limit, seed=0):
        return set(open_examples(folder_section(tmp_path), "train", limit, seed).indices.tolist())

    assert len(chosen(0.25)) == 2 and len(chosen(0.01)) == 1 and len(chosen(7)) == 7 and len(chosen(0)) == 10
    assert chosen(2) < chosen(5) < chosen(9) and chosen(3) == chosen(0.3)
    assert chosen(5, seed=1) != chosen(5)


def test_files_made_from_images_have_names_of_their_own(tmp_path):
    for stem in ("one/a", "two/a", "two/b"):
        write_pair(tmp_path, stem)
    examples = open_examples(folder_section(tmp_path), "train")
    assert sorted(examples.stem(index) for index in range(3)) == ["b", "one/a", "two/a"]


def test_a_name_listed_twice_is_an_error(tmp_path):
    write_pair(tmp_path, "a", split="")
    (tmp_path / "list.txt").write_text("a\na\n")
    with pytest.raises(SegmentationError, match=r"list\.txt names a 2 times"):
        find_pairs(tmp_path, "list.txt")
