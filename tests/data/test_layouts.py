"""A folder in another layout than it was taken for: the error says what it looks like and what to type."""

import json
import re

import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

from configs import finetune_folder
from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.labelled import classes
from cp2_jax.data.labelled.pairs import find_pairs


def made(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch() if "." in path else (root / path).mkdir(exist_ok=True)
    return root


VOC = ("JPEGImages", "Annotations", "ImageSets/Segmentation/train.txt", "SegmentationClass/a.png")


@pytest.mark.parametrize(
    "paths, said",
    [
        (VOC, "data looks like the data set voc: --config finetune_voc --config.data.path=.*data$"),
        (
            tuple(f"VOCdevkit/VOC2012/{path}" for path in VOC),
            "--config finetune_voc --config.data.path=.*/VOCdevkit/VOC2012",
        ),
        (("leftImg8bit/train", "gtFine/train"), "--config finetune_cityscapes "),
        (("images/training", "annotations/training"), "--config finetune_ade20k "),
        (
            ("labelmap.txt", "JPEGImages", "SegmentationClass", "ImageSets/Segmentation/default.txt"),
            r"is it labelmap\.txt\? then --config\.data\.classes=labelmap\.txt --config\.data\.images=JPEGImages "
            r"--config\.data\.labels=SegmentationClass$",
        ),
        (("labels.txt", "a.jpg", "a.json"), "polygons of LabelMe have to be drawn"),
        (("a.jpg", "a.json"), "polygons of LabelMe have to be drawn"),
        (("train2017/a.jpg", "annotations/instances_train2017.json"), "COCO's annotations have to be drawn"),
        (("images/train/a.jpg", "labels/train/a.png"), "write one, with the name of a class on each line"),
    ],
)
def test_without_a_file_of_classes(tmp_path, paths, said):
    config = finetune_folder.get_config()
    config.data.path = str(made(tmp_path / "data", *paths))
    with pytest.raises(SegmentationError, match=rf"no file .*data/classes\.txt: .*{said}"):
        classes.resolve(config)


def test_no_path_is_not_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SegmentationError, match="data.path is empty; set it to"):
        classes.resolve(finetune_folder.get_config())


def test_a_folder_that_was_unpacked_once_too_deep(tmp_path):
    made(tmp_path, "VOC2012/JPEGImages", "other", ".hidden/JPEGImages")
    with pytest.raises(SegmentationError, match=r"JPEGImages; .*/VOC2012/JPEGImages is there: is data\.path=.*/VOC2012\?"):
        find_pairs(tmp_path, "train.txt", images="JPEGImages", labels="SegmentationClassAug")


def test_voc_without_sbd(tmp_path):
    made(tmp_path, *VOC)
    with pytest.raises(
        SegmentationError, match=r"cp2 prepare voc .*--sbd .*data\.labels=SegmentationClass and data\.split"
    ):
        find_pairs(tmp_path, "train.txt", images="JPEGImages", labels="SegmentationClassAug")


def test_polygons_of_labelme_drawn_and_divided_as_the_page_shows(tmp_path, monkeypatch):
    """docs/data.md's two pieces of Python, on photos that have a .json and a Mac's files beside them."""
    images = tmp_path / "my_data/images"
    images.mkdir(parents=True)
    shape = {"label": "car", "shape_type": "polygon", "points": [[2, 2], [6, 2], [6, 6], [2, 6]]}
    for index in range(10):
        Image.new("RGB", (12, 8)).save(images / f"{index}.jpg")
        (images / f"{index}.json").write_text(json.dumps({"imageWidth": 12, "imageHeight": 8, "shapes": [shape]}))
    monkeypatch.chdir(tmp_path)
    divide, draw = re.findall(r"```python\n(.*?)```", (ROOT / "docs/data.md").read_text(), re.DOTALL)
    exec(draw, {})
    mask = np.asarray(Image.open("my_data/labels/3.png"))
    assert mask.shape == (8, 12) and mask[4, 4] == 1 and mask[0, 0] == 0
    (tmp_path / "my_data/labels/._3.png").touch()
    exec(divide, {})
    train, val = ((tmp_path / "my_data" / name).read_text().split("\n") for name in ("train.txt", "val.txt"))
    assert len(val) == 2 and sorted(train + val) == [str(index) for index in range(10)]
    assert len(find_pairs(tmp_path / "my_data", "train.txt")) == 8
