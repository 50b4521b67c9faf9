"""Blocks and words: sizes, and that no word is cut off."""

import numpy as np
import pytest
from helpers.looks import random_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cp2_jax import pictures
from cp2_jax.pictures import canvas


def test_save_png_makes_its_folder_and_keeps_every_pixel(tmp_path):
    picture = random_images(1)[0]
    path = tmp_path / "new" / "deep" / "a.png"
    pictures.save_png(path, picture)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), picture)


def test_blocks_above_and_beside_each_other_keep_their_pixels():
    red, blue = np.full((4, 6, 3), (255, 0, 0), np.uint8), np.full((3, 2, 3), (0, 0, 255), np.uint8)
    for picture, shape in ((canvas.above([red, blue], 5), (12, 6, 3)), (canvas.beside([red, blue], 5), (4, 13, 3))):
        assert picture.shape == shape
        assert (picture == (255, 0, 0)).all(-1).sum() == 24 and (picture == (0, 0, 255)).all(-1).sum() == 6
        assert (picture == 255).all(-1).sum() == picture.shape[0] * picture.shape[1] - 30


def test_small_images_are_enlarged_by_whole_factors():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = canvas.enlarged(image, 5)
    assert large.shape == (6, 6, 3)
    np.testing.assert_array_equal(large[::3, ::3], image)
    assert canvas.enlarged(image, 2).shape == image.shape


@given(st.text(st.characters(codec="latin-1", exclude_categories=["Cc"]), max_size=60), st.integers(60, 300))
def test_words_are_broken_so_that_none_is_cut_off(words, width):
    """Nothing is drawn beyond the last column: with more paper to the right, the same pixels."""
    block = canvas.text(words, width)
    assert block.shape[1] == width
    lines = canvas._wrap(words, width, 14)
    assert all(canvas._length(line, 14) <= width for line in lines)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")


@pytest.mark.parametrize("name", ["a\rb", "a\tb", "bell\x07", "\x00", "\u202e\u200d", "half a \ud83d"])
def test_names_of_files_with_what_are_no_letters_can_be_drawn(name):
    """FreeType's layout fails on some of them, which would end an evaluation, or a prediction, at its caption."""
    assert canvas.text(name, 200).shape[1] == 200
    assert canvas.legend([(name, (1, 2, 3))], 200).shape[1] == 200


def test_a_legend_takes_as_many_rows_as_it_needs():
    entries = [(f"class {i}", (i, 200, 0)) for i in range(9)]
    narrow, wide = canvas.legend(entries, 200), canvas.legend(entries, 2000)
    assert narrow.shape[1] == 200 and narrow.shape[0] > 2 * wide.shape[0]
    for picture in (narrow, wide):
        for _, color in entries:
            assert (picture == color).all(-1).sum() > 100


def test_tables_refuse_columns_that_differ_in_length():
    image = random_images(1)[0]
    with pytest.raises(ValueError):
        canvas.table([("a", [image]), ("b", [image, image])])
    with pytest.raises(ValueError):
        canvas.table([("a", [image])], captions=["one", "two"])
