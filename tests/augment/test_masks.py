"""Laws of the copy-paste masks: the original's rectangles (recorded draws), areas, connectivity, coverage."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, stats

from cp2_jax.augment.masks import MASKS, MaskLaw

SIZE = 224
DRAWS = 5000
DEFAULT = MaskLaw()
COMPILE_WELL = True  # thousands of masks of full size


@functools.cache
def program(kind, aspect_law, height, width):
    """250 masks at a time; areas and aspects are arguments, so that one program serves many laws."""

    def one(key, area, aspect):
        return MASKS[kind](key, height, width, MaskLaw(area, aspect, aspect_law)) > 0

    return jax.jit(jax.vmap(one, (0, None, None)))


@functools.cache
def draw(kind, count, law=DEFAULT, height=SIZE, width=SIZE, seed=0):
    """`count` masks as a bool array, drawn in chunks so that memory stays small."""
    some, laws = program(kind, law.aspect_law, height, width), (np.float32(law.area), np.float32(law.aspect))
    keys = jax.random.split(jax.random.key(seed), -(-count // 250) * 250)
    return np.concatenate([np.asarray(some(part, *laws)) for part in np.split(keys, len(keys) // 250)])[:count]


@functools.cache
def boxes(law_name):
    """Top, left, height, width of our rectangles, int [draws, 4], checking that each is a filled rectangle."""
    result = []
    for mask in draw.__wrapped__("rectangle", DRAWS, MaskLaw(aspect_law=law_name)):  # 250 MB, not kept
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert mask.sum() == box[2] * box[3]
        result.append(box)
    return np.array(result)


FEATURES = {
    "top": lambda b: b[:, 0],
    "left": lambda b: b[:, 1],
    "height": lambda b: b[:, 2],
    "width": lambda b: b[:, 3],
    "area": lambda b: b[:, 2] * b[:, 3],
    "aspect": lambda b: b[:, 2] / b[:, 3],
    # where in the free room: tells a uniform position from one that only has the right marginal
    "top_share": lambda b: b[:, 0] / (SIZE - b[:, 2]),
    "left_share": lambda b: b[:, 1] / (SIZE - b[:, 3]),
}


@pytest.mark.parametrize("law", ["uniform", "log_uniform"])
@pytest.mark.parametrize("feature", FEATURES)
def test_rectangle_has_the_original_law(reference, law, feature):
    recorded = reference("D_random_erasing")[law].astype(int)
    value = FEATURES[feature]
    assert stats.ks_2samp(value(boxes(law)), value(recorded)).pvalue > 1e-3


@pytest.mark.parametrize("law", ["uniform", "log_uniform"])
def test_rectangle_has_the_original_coupling(reference, law):
    """Correlations of position and size: height and width share an area, position shares the room that they leave."""
    ours = np.corrcoef(boxes(law).T)
    recorded = np.corrcoef(reference("D_random_erasing")[law].astype(float).T)
    # Fisher: a difference of two correlations has standard deviation at most sqrt(2 / draws) = 0.02.
    assert np.abs(ours - recorded).max() < 4 * np.sqrt(2 / DRAWS)
    assert recorded[0, 2] < -0.3  # so that the comparison above says something


def test_the_two_aspect_laws_are_told_apart(reference):
    recorded = reference("D_random_erasing")
    for law, other in (("uniform", "log_uniform"), ("log_uniform", "uniform")):
        value = FEATURES["aspect"]
        assert stats.ks_2samp(value(boxes(law)), value(recorded[other].astype(int))).pvalue < 1e-4


def test_rectangle_of_an_oblong_image():
    for mask in draw("rectangle", 64, height=60, width=80):
        share = mask.mean()
        assert 0.48 < share < 0.82
        assert not mask.all(0).any() and not mask.all(1).any()  # smaller than the image both ways


def test_rectangle_is_empty_when_no_try_fits():
    """Aspect 8 at more than half the area is taller than the image: the original then erases nothing."""
    assert not draw("rectangle", 16, MaskLaw(aspect=(8.0, 9.0))).any()


def test_rectangles_reach_every_place_but_never_the_whole_height():
    """RandomErasing: `randint(0, height - tall + 1)`, and only where tall < height and wide < width."""
    squares = draw("rectangle", 250, MaskLaw((0.5, 0.5), (1.0, 1.0)), height=60, width=80)  # of 49 pixels
    assert (squares.sum((1, 2)) == 49**2).all()
    assert set(squares.any(2).argmax(1)) == set(range(12))
    left = squares.any(1).argmax(1)
    assert (left.min(), left.max()) == (0, 31)
    assert not draw("rectangle", 250, MaskLaw((0.9, 0.9), (0.8334, 0.8334)), height=60, width=80).any()  # 60 x 72


def test_rectangle_tries_again():
    """With half of the aspects impossible, ten tries nearly always find a possible one."""
    found = draw("rectangle", 500, MaskLaw(area=(0.5, 0.5), aspect=(1.0, 3.0))).any((1, 2))
    # aspect < 2 fits: probability one half per try, so 0.1 % are expected to be empty.
    assert found.mean() > 0.98


@pytest.mark.parametrize("kind", ["polygon", "blocks", "patches"])
def test_area_is_uniform_in_its_range(kind):
    share = draw(kind, 1000).mean((1, 2))
    slack = {"polygon": 1e-3, "blocks": 3e-3, "patches": 0.5 / 196 + 1e-6}[kind]
    assert share.min() > 0.5 - slack and share.max() < 0.8 + slack
    assert stats.kstest(share, stats.uniform(0.5, 0.3).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", ["polygon", "blocks", "patches"])
def test_area_follows_its_range(kind):
    share = draw(kind, 32, MaskLaw(area=(0.25, 0.26))).mean((1, 2))
    assert (np.abs(share - 0.255) < 0.01).all()


@pytest.mark.parametrize("kind", ["rectangle", "polygon"])
def test_foreground_is_one_piece(kind):
    for mask in draw(kind, 1000)[:300]:
        labels, count = ndimage.label(mask, np.ones((3, 3)))
        largest = np.bincount(labels.ravel())[1:].max()
        assert largest >= 0.999 * mask.sum(), f"{count} pieces"


def test_polygon_is_star_shaped_and_no_rectangle():
    """Every pixel on the way from the middle of a polygon's kernel to a foreground pixel is foreground."""
    for mask in draw("polygon", 1000)[:40]:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        filled = mask.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1))
        assert filled < 0.97
        # Holes would show as background that does not touch the border.
        labels, count = ndimage.label(np.pad(~mask, 1, constant_values=True))
        assert count == 1


def test_polygon_has_straight_edges():
    """A polygon is described by few corners: its outline's simplification has at most 8 + the image's 4 + cuts."""
    cv2 = pytest.importorskip("cv2")
    for mask in draw("polygon", 1000)[:40]:
        outline = max(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
        assert len(cv2.approxPolyDP(outline, 2.0, True)) <= 20


def test_blocks_are_many_and_axis_aligned():
    counts = []
    for mask in draw("blocks", 1000)[:100]:
        # Only axis-aligned edges: a corner is where a 2 x 2 window holds an odd number of foreground pixels.
        window = mask[:-1, :-1].astype(int) + mask[1:, :-1] + mask[:-1, 1:] + mask[1:, 1:]
        counts.append((window % 2 == 1).sum())
    assert min(counts) > 8 and max(counts) < 150
    # A rectangle has 4 corners, a polygon's staircase hundreds, patches hundreds.
    slanted = draw("polygon", 1000)[0]
    window = slanted[:-1, :-1].astype(int) + slanted[1:, :-1] + slanted[:-1, 1:] + slanted[1:, 1:]
    assert (window % 2 == 1).sum() > 150


def test_patches_are_whole_cells():
    drawn = draw("patches", 1000)
    cells = drawn.reshape(1000, 14, 16, 14, 16)
    assert (cells == cells[:, :, :1, :, :1]).all()
    pieces = [ndimage.label(~mask)[1] for mask in drawn[:50]]
    assert np.median(pieces) > 10


def test_patches_cut_at_the_border_of_odd_sizes():
    assert draw("patches", 4, height=40, width=50).shape == (4, 40, 50)


@pytest.mark.parametrize("kind, low, high", [("patches", 0.6, 0.7), ("blocks", 0.6, 0.7)])
def test_coverage_is_even(kind, low, high):
    """Each place of the image is foreground equally often: no favourite corner."""
    coverage = draw(kind, 1000).mean(0).reshape(14, 16, 14, 16).mean((1, 3))
    assert low - 0.03 < coverage.min() and coverage.max() < high + 0.03


def test_rectangle_and_polygon_cover_the_middle_most():
    for kind in ("rectangle", "polygon"):
        coverage = draw(kind, DRAWS if kind == "rectangle" else 1000).mean(0)
        assert coverage[112, 112] == 1.0 and coverage[0, 0] < 0.5
        # symmetric in law
        assert np.abs(coverage.mean(0) - coverage.mean(0)[::-1]).max() < 0.08
        assert np.abs(coverage.mean(1) - coverage.mean(1)[::-1]).max() < 0.08


def test_full_is_all_foreground():
    assert draw("full", 3, height=8, width=9).all()


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_binary_float32_and_follow_their_key(kind):
    def one(seed):
        return MASKS[kind](jax.random.key(seed), 64, 48, MaskLaw())

    mask = one(0)
    assert mask.dtype == jnp.float32 and mask.shape == (64, 48)
    assert set(np.unique(mask)) <= {0.0, 1.0}
    np.testing.assert_array_equal(mask, one(0))
    if kind != "full":
        assert not np.array_equal(mask, one(1))


@pytest.mark.parametrize("kind", MASKS)
def test_double_precision_draws_the_same(kind):
    key = jax.random.key(3)
    single = np.asarray(MASKS[kind](key, 64, 64, MaskLaw()))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(MASKS[kind](key, 64, 64, MaskLaw()), single)


def test_patch_is_one_feature_at_the_papers_output_stride_and_may_be_another():
    assert MaskLaw().patch == 16
    small = np.asarray(MASKS["patches"](jax.random.key(0), 48, 48, MaskLaw(patch=8)))
    cells = small.reshape(6, 8, 6, 8).mean(axis=(1, 3))
    assert set(np.unique(cells)) == {0.0, 1.0} and 0.5 <= cells.mean() <= 0.8 + 1 / 36
