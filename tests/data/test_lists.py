"""Lists of images and folders of pairs as users write and fill them."""

import dataclasses
import os
import unicodedata

import numpy as np
import pytest
from helpers.miniatures import folder_section, write_pair
from PIL import Image

from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.labelled import check, survey
from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.data.labelled.pairs import find_pairs, match_pairs

pytestmark = pytest.mark.usefixtures("said")


def fill(root, *stems, images="images", labels="labels"):
    """Empty files, which is enough for matching names."""
    for stem in stems:
        for part, suffix in ((images, ".jpg"), (labels, ".png")):
            path = root / part / f"{stem}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


def listed(root, text, **layout):
    (root / "list.txt").write_text(text, encoding="utf-8")
    pairs, problems = match_pairs(root, "list.txt", **layout)
    assert not problems, problems
    return [
        (i.relative_to(root).as_posix(), m.relative_to(root).as_posix())
        for i, m in zip(pairs.images, pairs.masks, strict=True)
    ]


def test_the_whole_line_is_the_name_if_there_is_such_an_image(tmp_path):
    fill(tmp_path, "street 0", "road 1", "street", "road")
    (tmp_path / "list.txt").write_text("street 0\nroad 1\n")
    assert find_pairs(tmp_path, "list.txt").names == ("street 0", "road 1")
    (tmp_path / "list.txt").write_text("street 0\nstreet 1\n")
    assert find_pairs(tmp_path, "list.txt").names == ("street 0", "street")


@pytest.mark.parametrize(
    "line",
    [
        "train/s 0",
        "train/s 0.jpg",
        "/train/s 0.jpg",
        "./train/s 0",
        "images/train/s 0.jpg",
        "/images/train/s 0.jpg labels/train/s 0.png",
        "images/train/s 0.jpg\tlabels/train/s 0.png",
        "images/train/s 0.jpg,labels/train/s 0.png",
        "images/train/s 0.jpg; labels/train/s 0.png",
        '"images/train/s 0.jpg","labels/train/s 0.png"',
        "train\\s 0.jpg",
        "{root}/images/train/s 0.jpg",
        "{root}/images/train/s 0.jpg {root}/labels/train/s 0.png",
        "/home/somebody/data/images/train/s 0.jpg /home/somebody/data/labels/train/s 0.png",
        "train/s 0 -1",
        "train/s 0  1",
    ],
)
def test_a_line_may_be_a_name_a_path_or_a_pair(tmp_path, line):
    fill(tmp_path, "train/s 0", "train/s", "s 0")
    assert listed(tmp_path, line.format(root=tmp_path)) == [("images/train/s 0.jpg", "labels/train/s 0.png")]


def test_the_mask_of_a_pair_is_the_one_that_is_named(tmp_path):
    fill(tmp_path, "a", "b")
    assert listed(tmp_path, "images/a.jpg labels/b.png\n") == [("images/a.jpg", "labels/b.png")]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.jpg labels/c.png", r"list.txt has the line a.jpg labels/c.png, but there is no such mask in .*labels"),
        ("c\n# a comment\n", r"list.txt names c, but there is no such image in .*images"),
        ("# a comment\n", "no image in .*list.txt"),
        ("a\na.jpg\n", "list.txt names a 2 times"),
    ],
)
def test_what_a_list_names_must_be_there(tmp_path, text, message):
    fill(tmp_path, "a", "b")
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(SegmentationError, match=message):
        find_pairs(tmp_path, "list.txt")


def test_suffixes_in_lists_are_optional(tmp_path):
    for name in ("images/aachen/1_leftImg8bit.png", "labels/aachen/1_gtFine_labelIds.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    layout = dict(image_suffix="_leftImg8bit", label_suffix="_gtFine_labelIds")
    expected = [("images/aachen/1_leftImg8bit.png", "labels/aachen/1_gtFine_labelIds.png")]
    assert listed(tmp_path, "aachen/1\n", **layout) == expected
    assert listed(tmp_path, "images/aachen/1_leftImg8bit.png labels/aachen/1_gtFine_labelIds.png\n", **layout) == expected


@pytest.mark.parametrize("forms", [("NFC", "NFD", "NFC"), ("NFD", "NFC", "NFD"), ("NFC", "NFC", "NFD")])
def test_two_unicode_forms_of_a_name_are_one(tmp_path, forms):
    """macOS takes letters and accents apart, in folders and in lists."""
    names = [unicodedata.normalize(form, "Straße_ö") for form in forms]
    for part, name in zip(("images", "labels"), names, strict=False):
        fill(tmp_path, images=part)
        (tmp_path / part / "train").mkdir(parents=True)
        (tmp_path / part / "train" / f"{name}.png").touch()
    assert len(find_pairs(tmp_path, "train")) == 1
    (tmp_path / "list.txt").write_text(f"train/{names[2]}\n", encoding="utf-8")
    assert len(find_pairs(tmp_path, "list.txt")) == 1


def test_one_name_in_both_forms_is_ambiguous(tmp_path):
    for form in ("NFC", "NFD"):
        fill(tmp_path, "train/" + unicodedata.normalize(form, "ö"))
    with pytest.raises(SegmentationError, match="differ only in how accented letters are stored"):
        find_pairs(tmp_path, "train")


def test_an_empty_folder_key_is_the_data_set_itself(tmp_path):
    fill(tmp_path, "a", images="train", labels="masks/train")
    assert len(find_pairs(tmp_path, "train", images="", labels="masks")) == 1
    assert len(find_pairs(tmp_path, "/train", images="", labels="masks")) == 1
    with pytest.raises(SegmentationError, match=f"no such folder: {tmp_path}/val;"):
        find_pairs(tmp_path, "val", images="", labels="masks")


def test_home_is_expanded_in_every_path(tmp_path, monkeypatch):
    fill(tmp_path, "train/a")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "list.txt").write_text("train/a\n")
    for split in ("train", "~/list.txt"):
        assert len(find_pairs("~", split, images="~/images", labels="~/labels")) == 1


def test_photos_and_masks_of_one_folder_are_told_apart(tmp_path):
    for name in ("a.jpg", "a.png", "b.JPG", "b.png"):
        (tmp_path / "all" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "all" / name).touch()
    pairs = find_pairs(tmp_path, "", images="all", labels="all")
    assert [(i.name, m.name) for i, m in zip(pairs.images, pairs.masks, strict=True)] == [
        ("a.jpg", "a.png"),
        ("b.JPG", "b.png"),
    ]


@pytest.mark.parametrize("image_suffix, label_suffix", [("", "_mask"), ("_img", ""), ("_img", "_mask")])
def test_suffixes_tell_images_from_masks_in_one_folder(tmp_path, image_suffix, label_suffix):
    for stem in "ab":
        for suffix in (image_suffix, label_suffix):
            (tmp_path / f"{stem}{suffix}.png").touch()
    pairs = find_pairs(tmp_path, "", images="", labels="", image_suffix=image_suffix, label_suffix=label_suffix)
    assert [i.stem for i in pairs.images] == [f"a{image_suffix}", f"b{image_suffix}"]
    assert [m.stem for m in pairs.masks] == [f"a{label_suffix}", f"b{label_suffix}"]


def test_linked_folders_hold_pairs_too(tmp_path):
    for part in ("images", "labels"):
        fill(tmp_path, "train/s0")
        (tmp_path / "disk2" / part).mkdir(parents=True)
        (tmp_path / "disk2" / part / "s1.png").touch()
        os.symlink(f"../../disk2/{part}", tmp_path / part / "train/city_b", target_is_directory=True)
    assert find_pairs(tmp_path, "train").names == ("city_b/s1", "s0")


def test_names_that_differ_in_case_get_a_hint(tmp_path):
    fill(tmp_path, "train/a")
    (tmp_path / "labels/train/a.png").rename(tmp_path / "labels/train/A.png")
    with pytest.raises(SegmentationError, match=r"train/a.jpg has no mask.*A\.png is there: .*upper and lower case"):
        find_pairs(tmp_path, "train")


def test_masks_without_an_image_are_said(tmp_path, said):
    fill(tmp_path, "train/a", "train/b")
    (tmp_path / "images/train/b.jpg").rename(tmp_path / "images/train/b.heic")
    assert len(find_pairs(tmp_path, "train")) == 1
    assert "1 masks have no image and are not used" in said.text and "1 file passed over: .heic 1" in said.text


def test_broken_links_name_the_file(tmp_path):
    image, mask = write_pair(tmp_path, "a")
    for path, error in ((image, UnreadableImage), (mask, SegmentationError)):
        good = path.read_bytes()
        path.unlink()
        os.symlink("/nowhere", path)
        with pytest.raises(error, match=f"{path.name}.* cannot be read: No such file"):
            find_pairs(tmp_path, "train")[0]
        path.unlink()
        path.write_bytes(good)
    mask.unlink()
    os.symlink("/nowhere", mask)
    with pytest.raises(SegmentationError, match="a.png cannot be read"):
        find_pairs(tmp_path, "train").size(0)


def test_a_turned_mask_has_its_upright_size(tmp_path):
    _, mask = write_pair(tmp_path, "a", size=(12, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(mask, exif=exif)
    assert find_pairs(tmp_path, "train").size(0) == (16, 12)


def test_the_suffix_of_masks_is_told_by_their_names(tmp_path):
    fill(tmp_path, "a", "b")
    for mask in sorted((tmp_path / "labels").iterdir()):
        mask.rename(mask.with_name(f"{mask.stem}_mask.png"))
    _, problems = match_pairs(tmp_path, "")
    assert len(problems) == 2 and problems[0].endswith("labels/a_mask.png is there: set data.label_suffix=_mask)")
    assert len(find_pairs(tmp_path, "", label_suffix="_mask")) == 2
    for image in sorted((tmp_path / "images").iterdir()):
        image.rename(image.with_name(f"{image.stem}_img.jpg"))
    advice = r"labels/a_mask\.png is there: set data\.image_suffix=_img and data\.label_suffix=_mask\)"
    with pytest.raises(SegmentationError, match=advice):
        find_pairs(tmp_path, "")
    assert len(find_pairs(tmp_path, "", image_suffix="_img", label_suffix="_mask")) == 2
    (tmp_path / "images/a_img.jpg").rename(tmp_path / "images/a.jpg")
    (tmp_path / "labels/a_mask.png").rename(tmp_path / "labels/ab.png")  # perhaps another image's
    assert match_pairs(tmp_path, "")[1][0].endswith("labels/a.png is missing")


def test_folders_that_are_not_divided_or_divided_otherwise(tmp_path):
    fill(tmp_path, "a")
    with pytest.raises(SegmentationError, match=r"images is not divided: write two lists.*data\.split=train\.txt"):
        find_pairs(tmp_path, "train")
    fill(tmp_path / "coco", "train2017/a", "val2017/b")
    with pytest.raises(SegmentationError, match=r"\(images has train2017, val2017: set data\.split and data\.eval_split\)"):
        find_pairs(tmp_path / "coco", "train")


def test_a_missing_folder_of_images_is_not_said_to_be_that_of_the_masks(tmp_path):
    fill(tmp_path, "train/a", "val/b")
    (tmp_path / "images/val/b.jpg").unlink()
    (tmp_path / "images/val").rmdir()
    with pytest.raises(SegmentationError, match=r"no such folder: .*images/val; .* \(images has train: set data\.split"):
        find_pairs(tmp_path, "val")
    (tmp_path / "images").rename(tmp_path / "imgs")
    with pytest.raises(SegmentationError, match=r"\(is it imgs\? then --config\.data\.images=imgs\)"):
        find_pairs(tmp_path, "train")


def test_images_that_are_trained_on_and_scored_are_counted(tmp_path):
    for stem in ("a", "b", "c"):
        write_pair(tmp_path, stem, split="")
    for name, stems in (("train.txt", "a\nb\n"), ("val.txt", "b\nc\n"), ("rest.txt", "c\n")):
        (tmp_path / name).write_text(stems)
    train, val, rest = (open_examples(folder_section(tmp_path), f"{name}.txt") for name in ("train", "val", "rest"))
    text = survey.shared_images(train, val, "train.txt", "val.txt")
    assert text.startswith("1 of the 2 images that are scored (data.eval_split='val.txt')") and "images/b.jpg" in text
    assert survey.shared_images(train, rest, "train.txt", "rest.txt") == ""
    packed = [dataclasses.replace(one, pairs=[]) for one in (train, val)]
    assert survey.shared_images(*packed, "train", "train").startswith("2 of the 2 images")
    assert survey.shared_images(*packed, "train", "val") == ""
    data = folder_section(tmp_path, class_names=tuple("abcd"))
    checks = [check.check_split(data, split) for split in ("train.txt", "val.txt")]
    assert "\nmind: 1 of the 2 images" in check.report(checks, "abcd")
