"""A path of the wrong kind is refused in one line that says which it is."""

import pytest

from cp2_jax import config_files
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.images.sources import SourceError
from cp2_jax.data.labelled import pairs
from cp2_jax.interface import kinds, training
from cp2_jax.interface.converting import converted
from cp2_jax.interface.segmenter import load_segmenter
from cp2_jax.options import ConfigError
from cp2_jax.runs.checkpoints import CheckpointError


@pytest.fixture
def place(tmp_path):
    for folder in ("photos", "run/checkpoints", "my_data/images/train", "my_data/labels/train", "step/state"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "photos" / "a.JPG").touch()
    (tmp_path / "run" / "config.json").write_text('{"kind": "pretrain"}')
    return tmp_path


def test_what_a_path_is(place):
    words = {
        "photos": "a folder of images",
        "photos/a.JPG": "an image",
        "run": "a pretraining run",
        "run/config.json": "a file",
        "step": "a checkpoint",
        "my_data": "a folder of labelled images",
        "nowhere": "a path at which there is nothing",
    }
    assert {name: kinds.kind_of(place / name) for name in words} == words


def test_a_run_where_images_are_wanted_and_the_reverse(place):
    with pytest.raises(SourceError, match="run is a pretraining run, where a folder of images is wanted"):
        kinds.refuse_a_model(place / "run")
    for call in (load_segmenter, lambda path: converted(path, place / "converted"), kinds.refuse_images):
        with pytest.raises(CheckpointError, match="my_data is a folder of labelled images, where a run or a checkpoint is"):
            call(place / "my_data")
    kinds.refuse_images(place / "run")
    kinds.refuse_images(None)


def test_a_run_is_not_written_among_the_images(place):
    for out in ("photos", "photos/runs/a", "run/../photos"):
        with pytest.raises(ConfigError, match="the folder of the images, .*photos: name another place to write to"):
            kinds.refuse_inside(place / "photos", place / out)
    kinds.refuse_inside(place / "my_data", place / "my_data" / "run", inside=False)
    kinds.refuse_inside(place / "photos", place / "photos2")
    kinds.refuse_inside("", place)
    kinds.refuse_inside("gs://bucket/photos", place)
    kinds.refuse_inside(place, "gs://bucket/run")
    with pytest.raises(ConfigError, match="gs://bucket/photos/run lies in the folder of the images"):
        kinds.refuse_inside("gs://bucket/photos", "gs://bucket/photos/run")


def test_masks_in_a_folder_of_another_name(tmp_path):
    (tmp_path / "masks" / "train").mkdir(parents=True)
    with pytest.raises(SegmentationError, match=r"labels/train; .* \(is it masks\? then --config.data.labels=masks\)"):
        pairs._walked(tmp_path, tmp_path / "labels" / "train")


def test_masks_are_not_taken_for_photographs(place, tmp_path):
    kinds.refuse_masks(place / "my_data")  # without a mask in it
    (place / "my_data/labels/train/a.png").touch()
    with pytest.raises(SourceError, match=r"the masks in labels would be taken for photographs; give .*my_data/images$"):
        kinds.refuse_masks(place / "my_data")
    config = config_files.load("pretrain:small")
    config.data.path = str(place / "my_data")
    with pytest.raises(SourceError, match="masks in labels"):
        training.run_pretraining(config, tmp_path / "new")
    for fine in ("photos", "my_data/images", "nowhere", ""):
        kinds.refuse_masks(place / fine if fine else "")
