"""Files of scores: one for each split, and what may be compared with what."""

import json

import pytest

from cp2_jax.options import ConfigError
from cp2_jax.segmentation import reports

VAL, TRAIN = reports.Split("lists/val.txt", "a" * 16), reports.Split("train", "b" * 16)


def write(folder, split=VAL, miou=0.5, file="scores.json", images=10, **more):
    folder.mkdir(parents=True, exist_ok=True)
    values = {"mean_iou": miou, "pixel_accuracy": 0.9, "images": images} | (split.as_dict() if split else {}) | more
    (folder / file).write_text(json.dumps(values))
    return folder


def test_each_split_has_a_file_of_its_own(tmp_path):
    assert reports.scores_path(tmp_path, VAL, own=True).name == "scores.json"
    assert reports.scores_path(tmp_path, VAL, own=False).name == "scores_val.json"
    write(tmp_path, VAL, file="scores_val.json")
    assert reports.scores_path(tmp_path, VAL, own=False).name == "scores_val.json"
    other = reports.Split("elsewhere/val.txt", "c" * 16)
    assert reports.scores_path(tmp_path, other, own=False).name == "scores_val_cccccc.json"
    odd = reports.Split("validation[:10%]", "d" * 16)
    assert reports.scores_path(tmp_path, odd, own=False).name == "scores_validation_10_.json"
    assert reports.is_free(tmp_path / "scores_val.json", VAL) and not reports.is_free(tmp_path / "scores_val.json", other)
    (tmp_path / "scores_x.json").write_text("half")
    assert reports.is_free(tmp_path / "scores_x.json", VAL) and reports.is_free(tmp_path / "absent.json", VAL)


def test_scores_of_different_images_are_not_compared(tmp_path):
    one, two = write(tmp_path / "one"), write(tmp_path / "two", miou=0.7)
    table = reports.compare({"a": [one, two], "b": [two]})
    assert "60.00 ± 14.14" in table and "70.00" in table and "mind" not in table
    write(two, TRAIN, miou=0.9, file="scores_train.json")
    with pytest.raises(ConfigError, match="10 images of split lists/val.txt; .*10 images of split train"):
        reports.compare({"a": [one], "b": [two / "scores_train.json"]})
    assert "90.00" in reports.compare({"b": [two / "scores_train.json"]})
    old = write(tmp_path / "old", split=None, images=9)
    with pytest.raises(ConfigError, match=r"9 images of split \(not recorded\)"):
        reports.compare({"a": [one], "old": [old]})
    assert "50.00" in reports.compare({"a": [one], "old": [write(tmp_path / "older", split=None)]})


def test_another_protocol_is_said(tmp_path):
    one = write(tmp_path / "one", protocol={"flip": False, "ratios": [1.0], "batch_size": 1})
    two = write(tmp_path / "two", protocol={"flip": True, "ratios": [1.0], "batch_size": 4})
    last = reports.compare({"a": [one], "b": [two]}).splitlines()[-1]
    assert last == f"mind: {two} was tested in another way: flip=True ({one}: False)"


@pytest.mark.parametrize("text", [None, "half a fi", "[]", "{}"])
def test_no_scores_is_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ConfigError, match="no scores of a finished finetuning in .*scores.json"):
        reports.read_scores(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "pretrain"}')
    with pytest.raises(ConfigError, match="is a pretraining run, which has no scores: finetune it first"):
        reports.read_scores(tmp_path)
