"""Masks are read exactly as stored or refused, whatever container, palette or orientation they come in."""

import struct
import zlib

import numpy as np
import pytest
from helpers.images import encode
from helpers.miniatures import PALETTE, write_pair
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.labelled import check
from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.data.labelled.masks import read_mask

pytestmark = pytest.mark.usefixtures("said")


def values(data, name="m") -> np.ndarray:
    return read_mask(data, name).values


LABELS = np.random.default_rng(0).integers(0, 5, (9, 13)).astype(np.uint8)
GREY = Image.fromarray(LABELS)
INDEXED = GREY.copy()
INDEXED.putpalette(PALETTE)


@pytest.mark.parametrize("image", [GREY, INDEXED], ids=["grey", "palette"])
@pytest.mark.parametrize(
    "kind, options",
    [("PNG", {}), ("BMP", {}), ("GIF", {}), ("TGA", {}), ("TIFF", {})]
    + [("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd")],
)
def test_exact_containers_keep_every_value(image, kind, options):
    np.testing.assert_array_equal(values(encode(image, kind, **options), f"m.{kind.lower()}"), LABELS)


@pytest.mark.parametrize(
    "kind, options, reason",
    [
        ("JPEG", {}, "is a JPEG, which changes labels; store masks as PNG"),
        ("MPO", {"save_all": True, "append_images": [GREY]}, "is a JPEG"),
        ("TIFF", {"compression": "jpeg"}, r"is a TIFF compressed with loss \(jpeg\)"),
        ("WEBP", {"quality": 90}, "is a WebP compressed with loss"),
        ("AVIF", {}, "is of the format AVIF, which may change labels"),
        ("JPEG2000", {}, "is of the format JPEG2000, which may change labels"),
    ],
)
def test_loss_is_found_in_any_container(kind, options, reason):
    with pytest.raises(SegmentationError, match=f"mask labels/a.png {reason}"):
        values(encode(GREY, kind, **options), "labels/a.png")


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG"])
def test_several_pictures_are_no_mask(kind):
    """Some programs write a picture for each class: the first alone would be the background's."""
    other = Image.fromarray(LABELS[::-1].copy())
    with pytest.raises(SegmentationError, match="mask m holds 2 pictures of one size; store one"):
        values(encode(GREY, kind, save_all=True, append_images=[other]), "m")


def test_smaller_copies_in_a_tiff_are_passed_over():
    data = encode(INDEXED, "TIFF", save_all=True, append_images=[INDEXED.resize((6, 4), 0)])
    np.testing.assert_array_equal(values(data, "m.tif"), LABELS)


def png_of_few_bits(bits, row) -> bytes:
    """A grey PNG of one row and four columns."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_few_levels_are_not_spread():
    for bits, row, want in ((2, b"\x1b", [0, 1, 2, 3]), (4, b"\x0f\x5a", [0, 15, 5, 10])):
        np.testing.assert_array_equal(values(png_of_few_bits(bits, row)), [want])
    few = Image.fromarray(LABELS % 4)
    few.putpalette(PALETTE[:12])
    np.testing.assert_array_equal(values(encode(few, bits=2)), LABELS % 4)
    body = LABELS.tobytes()
    for levels in (4, 20, 255):
        np.testing.assert_array_equal(values(b"P5 # a comment\n13 9 %d\n" % levels + body, "m.pgm"), LABELS)
    bits = np.packbits(LABELS[:, :8] > 2, axis=1).tobytes()
    np.testing.assert_array_equal(values(b"P4 8 9\n" + bits, "m.pbm"), LABELS[:, :8] > 2)
    np.testing.assert_array_equal(values(encode(Image.fromarray(LABELS > 2)), "m.png"), LABELS > 2)
    with pytest.raises(SegmentationError, match="16 or 32 bits"):
        values(b"P5 13 9 1000\n" + LABELS.astype(">u2").tobytes(), "m.pgm")


def test_an_empty_file_is_named():
    with pytest.raises(SegmentationError, match="mask some/mask.png cannot be read: the file is empty"):
        values(b"", "some/mask.png")


def test_a_tiff_whose_0_is_white_is_refused():
    data = encode(GREY, "TIFF", tiffinfo={262: 0})
    with pytest.raises(SegmentationError, match="a TIFF whose 0 is white"):
        values(data, "m.tif")


# What the masks of a split have in common.


def config(root, names=("background", "tumour"), **changes):
    data = dict(source="folder", path=str(root), images="images", labels="labels", image_suffix="", label_suffix="")
    data |= dict(classes="", num_classes=len(names), class_names=names, label_map=(), ignore_label=255) | changes
    return ConfigDict(data)


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
