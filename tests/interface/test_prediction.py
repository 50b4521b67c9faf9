"""What a prediction does with its picture."""

import dataclasses
import os
import pathlib
import types

import numpy as np
import pytest
from helpers import packing
from PIL import Image

from cp2_jax.data.errors import UnreadableImage
from cp2_jax.interface import given, ranges, segmenter
from cp2_jax.options import ConfigError
from cp2_jax.paths import at
from cp2_jax.runs.checkpoints import write_variables
from cp2_jax.segmentation import folders


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


def test_nothing_is_saved_into_a_bucket(prediction):
    with pytest.raises(ConfigError, match="gs://bucket/x.png is in a bucket, where a path on the disk is wanted"):
        prediction.save("gs://bucket/x.png")


def test_arrays_saved_into_one_folder_overwrite_nothing(prediction, tmp_path):
    array = dataclasses.replace(prediction, name="")
    names = [one.save(tmp_path).name for one in (array, array, prediction, prediction, array)]
    assert names == ["prediction.png", "prediction_2.png", "cat.png", "cat.png", "prediction_3.png"]
    assert len(list(tmp_path.glob("*_overlay.png"))) == 4


def test_predictions_of_images_of_one_name_overwrite_nothing(prediction, tmp_path):
    tmp_path.joinpath("cat.png").write_bytes(b"somebody's own mask")
    here, there = prediction, dataclasses.replace(prediction, name="other/cat.jpg")
    names = [one.save(tmp_path).name for one in (here, there, here, there)]
    assert names == ["cat_2.png", "cat_3.png", "cat_2.png", "cat_3.png"]
    assert tmp_path.joinpath("cat.png").read_bytes() == b"somebody's own mask"
    with pytest.raises(ConfigError, match=r"cat\.jpg: class maps are written as PNG"):
        here.save(tmp_path / "cat.jpg")


def test_predictions_of_shards_of_one_name_stay_in_the_folder(tmp_path):
    for part in ("0", "1"):
        packing.write_tar(tmp_path / part / "x.tar", {"a.png": packing.png(1)})
    source, kept = folders.images_to_predict(f"{tmp_path}/{{0,1}}/x.tar", tmp_path / "out")
    places = [folders._relative(source, index).as_posix() for index in kept]
    assert places == ["0/x.tar/a.png", "1/x.tar/a.png"]
    elsewhere = types.SimpleNamespace(name=lambda index: "gs://other/1/x.tar/a.png", root=at("gs://first/0"))
    assert folders._relative(elsewhere, 0).as_posix() == "other/1/x.tar/a.png"


def test_an_image_whose_name_is_no_text(prediction, tmp_path):
    odd = dataclasses.replace(prediction, name=os.fsdecode(b"photos/caf\xe9.jpg"))
    path = odd.save(tmp_path)
    assert odd.save(tmp_path) == path and path.name == os.fsdecode(b"caf\xe9.png")


def test_a_pil_image_is_what_its_file_is(tmp_path, caplog):
    ramp = np.linspace(0, 65535, 12 * 8).reshape(8, 12)
    rgba = np.random.default_rng(0).integers(0, 256, (8, 12, 4), dtype=np.uint8)
    rgba[..., 3] = np.where(rgba[..., 3] > 128, 255, 0)
    for name, picture in {"deep.png": Image.fromarray(ramp.astype(np.uint16)), "clear.png": Image.fromarray(rgba)}.items():
        picture.save(tmp_path / name)
        (_, from_file), (_, opened), (_, made) = map(given.read, (tmp_path / name, Image.open(tmp_path / name), picture))
        np.testing.assert_array_equal(opened, from_file)
        np.testing.assert_array_equal(made, from_file)
    with pytest.raises(UnreadableImage, match="floating-point pixels, whose range is unknown"):
        given.read(Image.fromarray(ramp.astype(np.float32)))
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(rgba[..., :3]).save(tmp_path / "turned.jpg", exif=turned)
    _, opened = given.read(Image.open(tmp_path / "turned.jpg"))
    assert opened.shape == (8, 12, 3) and "PIL does not turn it" in caplog.text
    assert given.read(tmp_path / "turned.jpg")[1].shape == (12, 8, 3)
    assert given.read(tmp_path / "turned.jpg", turn=False)[1].shape == (8, 12, 3)


def test_deep_pixels_are_scaled_by_the_range_of_the_run(tmp_path):
    deep = np.arange(8 * 12, dtype=np.uint16).reshape(8, 12) * 30
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for image in (tmp_path / "deep.png", (tmp_path / "deep.png").read_bytes(), Image.open(tmp_path / "deep.png")):
        _, pixels = given.read(image, (0, 3000))
        np.testing.assert_array_equal(pixels[..., 0], np.rint(deep * (255 / 3000)).clip(0, 255))


def test_several_images_in_every_form(tmp_path):
    assert given.several("a.jpg") is given.several(pathlib.Path("a.jpg")) is given.several(np.zeros((2, 2, 3))) is None
    tmp_path.joinpath("a.jpg").touch()
    assert given.several(tmp_path.glob("*")) == [tmp_path / "a.jpg"]
    assert given.several(np.array(["a.jpg", "b.jpg"])) == ["a.jpg", "b.jpg"]
    assert given.several(("a.jpg",)) == ["a.jpg"]
    for wrong, advice in ((np.zeros((2, 2)), "grey"), (np.zeros((2, 2, 4)), "fourth channel"), (3, "give a path")):
        with pytest.raises(UnreadableImage, match=advice):
            given.read(wrong)


class Half:
    """Says of every pixel that both classes are equally probable."""

    def plan(self, sizes, batch_size, programs):
        return [types.SimpleNamespace(indices=[index], size=size) for index, size in enumerate(sizes)]

    def inputs(self, images, batch):
        assert images[0].shape[:2] == batch.size
        return images

    def probabilities(self, variables, inputs, batch):
        return np.full((1, *batch.size, 2), 0.5, np.float32)

    def predict(self, variables, inputs, batch):
        return np.zeros((1, *batch.size), np.uint8)


def test_files_are_read_as_the_run_reads_them(tmp_path, monkeypatch):
    """By `data.exif` and `data.value_range`, with the object and in a folder."""
    data = {"value_range": (0, 3000), "exif": False, "class_names": ("a", "b"), "class_colors": (), "label_map": ()}
    config = segmenter.ConfigDict({"data": data | {"num_classes": 2, "ignore_label": 255}, "evaluation": {"programs": 8}})
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(np.full((8, 12), 3000, np.uint16)).save(photos / "deep.png")
    turned = Image.Exif()
    turned[0x112] = 6
    Image.new("RGB", (12, 8)).save(photos / "turned.jpg", exif=turned)
    model = segmenter.Segmenter(("a", "b"), config, Half(), {})
    deep, stored = model.predict(sorted(photos.iterdir()))
    assert (deep.image == 255).all() and stored.labels.shape == (8, 12)
    seen = []
    monkeypatch.setattr(folders, "make_predictor", lambda config: Half())
    monkeypatch.setattr(folders.pictures, "overlay", lambda image, *rest, **more: seen.append(image) or image)
    count, done = folders.predict_folder(config, {}, photos, tmp_path / "predicted")
    assert (count, [*done]) == (2, ["", ""])
    assert (seen[0] == 255).all() and seen[1].shape == (8, 12, 3)


def test_features_of_deep_pixels_follow_the_run(tmp_path):
    write_variables(tmp_path / "run", {"params": {"w": np.ones(1)}}, {"config": {"data": {"value_range": [0, 3000]}}})
    write_variables(tmp_path / "converted", {"params": {"w": np.ones(1)}}, {})
    assert ranges.of_checkpoint(tmp_path / "run") == (0, 3000)
    assert ranges.of_checkpoint(tmp_path / "converted") == ()


def test_arrays_of_16_bits_are_read_as_files_of_them():
    deep = np.full((4, 5, 3), 3000, np.uint16)
    assert (given.read(deep)[1] == 12).all() and (given.read(deep, (0, 3000))[1] == 255).all()


@pytest.mark.parametrize(
    "image, message",
    [
        ({"a": np.zeros((4, 5, 3), np.uint8)}, "dict: give a path, an array, a PIL image, or a list of these"),
        (np.zeros((0, 5, 3), np.uint8), r"its shape is \(0, 5, 3\): it has no pixel"),
        (np.zeros((4, 5, 1), np.uint8), r"its shape is \(4, 5, 1\), .*: grey\? give image.repeat\(3, axis=-1\)"),
        (np.zeros((4, 5, 4), np.uint8), "leave the fourth channel out"),
    ],
)
def test_what_is_no_image_is_told_what_to_do(image, message):
    assert given.several(image) is None
    with pytest.raises(UnreadableImage, match=message):
        given.read(image)
