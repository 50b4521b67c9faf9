"""What a prediction does with its picture."""

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from cp2_jax.interface import segmenter


@pytest.fixture
def prediction():
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    probabilities = np.full((24, 32, 2), 0.5, np.float32)
    config = segmenter.ConfigDict({"class_colors": ((0, 0, 0), (255, 0, 0))})
    return segmenter.Prediction(image, probabilities, ("background", "cat"), "photos/cat.jpg", config)


@pytest.mark.parametrize("display, program, shown", [(True, True, True), (True, False, False), (False, True, False)])
def test_show_without_display_or_program_says_where_the_picture_is(
    prediction, monkeypatch, tmp_path, capsys, display, program, shown
):
    seen = []
    monkeypatch.setattr(segmenter.sys, "platform", "linux")
    monkeypatch.setattr(segmenter.tempfile, "mkdtemp", lambda prefix: tmp_path)
    monkeypatch.setattr(segmenter.ImageShow, "show", lambda picture, title: seen.append(title) or program)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    if not display:
        monkeypatch.delenv("DISPLAY")
    prediction.show()
    assert seen == ["photos/cat.jpg"] * display
    printed = capsys.readouterr().out
    assert (printed == "") == shown
    if not shown:
        (path,) = (pathlib.Path(word) for word in printed.split() if word.endswith(".png"))
        assert path == tmp_path / "cat_overlay.png"
        np.testing.assert_array_equal(np.asarray(Image.open(path)), prediction.overlay())


def test_arrays_saved_into_one_folder_overwrite_nothing(prediction, tmp_path):
    array = dataclasses.replace(prediction, name="")
    names = [one.save(tmp_path).name for one in (array, array, prediction, prediction, array)]
    assert names == ["prediction.png", "prediction_2.png", "cat.png", "cat.png", "prediction_3.png"]
    assert len(list(tmp_path.glob("*_overlay.png"))) == 4
