"""Labelled data: matching, labels, transforms against OpenCV written from MMSegmentation's definition, the stream."""

import collections

import cv2
import numpy as np
import pytest
from helpers.miniatures import PALETTE, write_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax.data.images.decoding import UnreadableImage
from cp2_jax.data.labelled import transforms
from cp2_jax.data.labelled.examples import SegmentationError, find_pairs, label_table, open_examples
from cp2_jax.data.labelled.stream import training_dataset


def config(root, **changes):
    return ConfigDict(
        dict(
            source="folder",
            path=str(root),
            images="images",
            labels="labels",
            image_suffix="",
            label_suffix="",
            classes="",
            num_classes=4,
            label_map=(),
            ignore_label=255,
        )
        | changes
    )


def test_palette_indices_are_the_labels(tmp_path):
    write_pair(tmp_path, "a", size=(8, 10))
    image, label = open_examples(config(tmp_path), "train").load(0)
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


@pytest.mark.parametrize("label_map", [((300, 0),), ((1, 9),), ((1, -2),)])
def test_label_map_out_of_range_is_refused(label_map):
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
        return open_examples(config(root, **changes), "train").load(0)

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

    def test_rgb_mask(self, tmp_path):
        _, mask = write_pair(tmp_path, "a")
        Image.new("RGB", (16, 12)).save(mask)
        with pytest.raises(SegmentationError, match=r"labels/train/a\.png is an image of mode RGB"):
            self.load(tmp_path)

    def test_16_bit_mask(self, tmp_path):
        write_pair(tmp_path, "a", mask=np.zeros((12, 16), np.uint16))
        with pytest.raises(SegmentationError, match=r"a\.png has 16"):
            self.load(tmp_path)

    def test_unknown_label(self, tmp_path):
        mask = np.zeros((12, 16), np.uint8)
        mask[3, 4], mask[0, 0] = 7, 255
        write_pair(tmp_path, "a", mask=mask)
        with pytest.raises(SegmentationError, match=r"a\.png has value 7, which is neither"):
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
            open_examples(config(tmp_path), "train", limit=2)


def test_limit_is_fixed_and_nested(tmp_path):
    for number in range(10):
        write_pair(tmp_path, f"{number}", size=(4, 4))

    def chosen(limit, seed=0):
        return set(open_examples(config(tmp_path), "train", limit, seed).indices.tolist())

    assert len(chosen(0.25)) == 2 and len(chosen(0.01)) == 1 and len(chosen(7)) == 7 and len(chosen(0)) == 10
    assert chosen(2) < chosen(5) < chosen(9) and chosen(3) == chosen(0.3)
    assert chosen(5, seed=1) != chosen(5)


# Transforms. The oracle does with OpenCV alone, in float, what MMSegmentation's documentation says.


def random_image(seed, height=40, width=50):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 5, width // 5, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize(
    "size, bounds, expected",
    [
        ((375, 500), (2048, 512), (512, 683)),
        ((500, 333), (2048, 512), (769, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((1024, 2048), (2048, 1024), (1024, 2048)),
        ((360, 480), (480, 360), (360, 480)),
    ],
)
def test_rescaled_size_fits_into_the_bounds(size, bounds, expected):
    assert transforms.rescaled_size(size, bounds) == expected == transforms.rescaled_size(size, bounds[::-1])


def test_resize_is_opencvs():
    image = random_image(0)
    mask = np.random.default_rng(1).integers(0, 5, (40, 50), dtype=np.uint8)
    np.testing.assert_array_equal(
        transforms.resize_image(image, (63, 31)), cv2.resize(image, (31, 63), interpolation=cv2.INTER_LINEAR)
    )
    np.testing.assert_array_equal(
        transforms.resize_mask(mask, (63, 31)), cv2.resize(mask, (31, 63), interpolation=cv2.INTER_NEAREST)
    )


def scale_shift(image, alpha=1.0, beta=0.0):
    return np.clip(image.astype(np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)


def distorted_by_hand(image, brightness, early, contrast, saturation, hue):
    """Each argument None: that step is off."""
    bgr = image[..., ::-1].copy()
    bgr = bgr if brightness is None else scale_shift(bgr, beta=brightness)
    bgr = scale_shift(bgr, alpha=contrast) if early and contrast is not None else bgr
    if saturation is not None:
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = scale_shift(hsv[..., 1], alpha=saturation)
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if hue is not None:
        hsv = cv2.cvtColor(bgr, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + hue) % 180
        bgr = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    bgr = scale_shift(bgr, alpha=contrast) if not early and contrast is not None else bgr
    return bgr[..., ::-1]


class Script:
    """Stands for a generator; says beforehand what is drawn."""

    def __init__(self, coins, values):
        self.coins, self.values = iter(coins), iter(values)

    def random(self):
        return 0.0 if next(self.coins) else 0.9

    def uniform(self, low, high):
        value = next(self.values)
        assert low <= value <= high
        return value

    def integers(self, low, high):
        value = next(self.values)
        assert low <= value < high
        return value


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    brightness=st.none() | st.floats(-32, 32),
    early=st.booleans(),
    contrast=st.none() | st.floats(0.5, 1.5),
    saturation=st.none() | st.floats(0.5, 1.5),
    hue=st.none() | st.integers(-18, 17),
)
def test_photometric_distortion_pixel_by_pixel(seed, brightness, early, contrast, saturation, hue):
    image = random_image(seed)

    def on(*steps):
        return ([s is not None for s in steps], [s for s in steps if s is not None])

    (b,), b_value = on(brightness)
    (c,), c_value = on(contrast)
    (s, h), sh_values = on(saturation, hue)
    coins = [b, early] + ([c, s, h] if early else [s, h, c])
    values = b_value + (c_value + sh_values if early else sh_values + c_value)
    ours = transforms.photometric_distortion(image, Script(coins, values))
    np.testing.assert_array_equal(ours, distorted_by_hand(image, brightness, early, contrast, saturation, hue))


def test_crop_avoids_a_single_class():
    """Nine tenths of the mask are class 0: nearly all accepted crops still show enough of class 1."""
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 36:] = 1
    image = np.repeat(mask[..., None], 3, axis=2)
    share = collections.Counter()
    for seed in range(200):
        _, crop = transforms.random_crop(image, mask, np.random.default_rng(seed), (10, 10))
        assert crop.shape == (10, 10)
        share["limited"] += (crop == 1).mean() > 0.25
        _, crop = transforms.random_crop(image, mask, np.random.default_rng(seed), (10, 10), max_ratio=1.0)
        share["free"] += (crop == 1).mean() > 0.25
    # Of 31 places, 2 show more than a quarter of class 1 (3 and 4 columns of 10).
    assert share["free"] < 40 and 60 < share["limited"]


def test_crop_does_not_count_ignored_pixels():
    mask = np.full((10, 20), 255, np.uint8)
    mask[:, 8], mask[:, 11] = 0, 1
    image = np.zeros((10, 20, 3), np.uint8)
    hits = 0
    for seed in range(100):
        _, crop = transforms.random_crop(image, mask, np.random.default_rng(seed), (10, 10))
        hits += {0, 1} <= set(np.unique(crop))
    assert hits > 95  # 6 of 11 places show both, and only those are accepted


def test_training_sample_keeps_image_and_mask_together():
    """Channel 0 of the image is the mask: after scale, crop, flip and padding it must still be, away from borders."""
    mask = (cv2.resize(np.random.default_rng(3).integers(0, 2, (6, 8), dtype=np.uint8), (80, 60), interpolation=0)) * 1
    image = np.repeat(mask[..., None] * 200, 3, axis=2).astype(np.uint8)
    sizes = set()
    for seed in range(20):
        sample = transforms.training_sample(
            image, mask, np.random.default_rng(seed), crop_size=(48, 48), bounds=None, ratio=(0.5, 2.0), photometric=False
        )
        height, width = sample["size"]
        sizes.add((int(height), int(width)))
        assert sample["image"].shape == (48, 48, 3) and sample["label"].shape == (48, 48)
        inside = sample["label"][:height, :width]
        agree = (sample["image"][:height, :width, 0] > 100) == (inside == 1)
        assert agree.mean() > 0.85  # OpenCV's nearest neighbour lies up to a pixel beside its bilinear
        assert (sample["label"][height:] == 255).all() and (sample["label"][:, width:] == 255).all()
        assert (sample["image"][height:] == 0).all() and (sample["image"][:, width:] == 0).all()
        assert not (inside == 255).any()
    assert (48, 48) in sizes and len(sizes) > 2


# The stream.

OPTIONS = dict(crop_size=(8, 8), bounds=None, ratio=(0.5, 2.0))


@pytest.fixture
def examples(tmp_path):
    for number in range(5):
        write_pair(tmp_path, f"{number}", size=(12, 12), mask=np.full((12, 12), number, np.uint8))
    return open_examples(config(tmp_path, num_classes=5), "train")


def take(count, examples, **options):
    iterator = iter(training_dataset(examples, options=OPTIONS, **dict(batch_size=4, seed=0) | options))
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x) and len(a) == len(b)


def test_position_follows_from_the_step(examples):
    whole = take(6, examples)
    assert same(whole[3:], take(3, examples, start_step=3))
    assert not same(whole[:3], whole[3:])
    assert not same(whole[:1], take(1, examples, seed=1))


@pytest.mark.parametrize("rows", [(0, 1), (2, 3), (1, 3)])
def test_rows_are_those_of_one_global_batch(examples, rows):
    part = take(4, examples, rows=rows)
    assert same(part, [{k: v[list(rows)] for k, v in batch.items()} for batch in take(4, examples)])


def test_rows_beyond_the_batch_are_refused(examples):
    with pytest.raises(ValueError, match="from 0 to 3"):
        take(1, examples, rows=(2, 4))


def test_worker_processes_change_nothing(examples):
    assert same(take(3, examples), take(3, examples, workers=2))


def test_every_epoch_shows_every_image_once_in_another_order(examples):
    shown = [int(label[0, 0]) for batch in take(10, examples) for label in batch["label"]]
    epochs = [shown[i : i + 5] for i in range(0, 40, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_an_unreadable_image_ends_the_stream(examples):
    examples.pairs.masks[2].write_bytes(b"broken")
    with pytest.raises(SegmentationError, match="2.png"):
        take(5, examples)


def test_files_made_from_images_have_names_of_their_own(tmp_path):
    for stem in ("one/a", "two/a", "two/b"):
        write_pair(tmp_path, stem)
    examples = open_examples(config(tmp_path), "train")
    assert sorted(examples.stem(index) for index in range(3)) == ["b", "one/a", "two/a"]


def test_a_name_listed_twice_is_an_error(tmp_path):
    write_pair(tmp_path, "a", split="")
    (tmp_path / "list.txt").write_text("a\na\n")
    with pytest.raises(SegmentationError, match=r"list\.txt names a 2 times"):
        find_pairs(tmp_path, "list.txt")


def test_a_jpeg_mask_is_refused_and_few_bits_are_not_spread(tmp_path):
    _, mask = write_pair(tmp_path, "a")
    Image.new("L", (16, 12)).save(mask, format="JPEG")
    with pytest.raises(SegmentationError, match=r"a\.png is a JPEG"):
        open_examples(config(tmp_path), "train").load(0)
    values = np.zeros((12, 16), np.uint8)
    values[3:] = 3
    picture = Image.fromarray(values)
    picture.putpalette(PALETTE[:12])
    picture.save(mask, bits=2)
    np.testing.assert_array_equal(open_examples(config(tmp_path), "train").load(0)[1], values)
