"""Transforms of labelled images. The oracle does with OpenCV alone, in float, what MMSegmentation's documentation says."""

import collections

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.data.labelled import transforms


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
        ((5, 10), (9, 5), (5, 9)),  # 4.5 is rounded up
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


class Ranges:
    """Stands for a generator; keeps between what is drawn (whole numbers: the upper bound is left out)."""

    def __init__(self):
        self.drawn = []

    def random(self):
        return 0.0

    def uniform(self, low, high):
        self.drawn.append((low, high))
        return low

    integers = uniform


def test_ranges_are_those_of_photo_metric_distortion():
    """MMSegmentation: brightness_delta 32, contrast and saturation 0.5 to 1.5, `random.randint(-18, 18)` of NumPy."""
    rng = Ranges()
    transforms.photometric_distortion(random_image(0), rng)
    assert rng.drawn == [(-32, 32), (0.5, 1.5), (0.5, 1.5), (-18, 18)]


@pytest.mark.parametrize("second_class, draws", [(4, 11), (5, 1)])
def test_a_crop_with_just_the_largest_share_is_drawn_again(second_class, draws):
    """12 of 16 pixels are as much as 0.75, 11 are less. The last of eleven is taken unseen."""
    mask, rng = np.zeros(16, np.uint8), Ranges()
    mask[:second_class] = 1
    transforms.random_crop(np.zeros((4, 4, 3), np.uint8), mask.reshape(4, 4), rng, (4, 4))
    assert rng.drawn == [(0, 1)] * 2 * draws


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
