"""Evaluation and prediction of a run: its own config is the truth, scores are kept apart, nothing is lost."""

import json
import os
import pathlib

import numpy as np
import pytest
from helpers import halves
from PIL import Image

import cp2_jax
from cp2_jax.data.errors import SegmentationError, SourceError
from cp2_jax.options import ConfigError
from cp2_jax.runs.checkpoints import CheckpointError, read_variables, write_variables
from cp2_jax.segmentation import folders, run, saved


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set, a finetuned run of it with settings that are not the default, and its config."""
    root = tmp_path_factory.mktemp("run")
    halves.halves_on_disk(root / "data", "train", 4)
    halves.halves_on_disk(root / "data", "val", 3)
    changes = {"model.head": "aspp", "model.aspp.dilations": (1, 3), "model.mean": (0.3, 0.3, 0.3)}
    with pytest.MonkeyPatch.context() as patch:
        yield root, halves.finetuned(root / "data", root / "run", patch, **changes)


def scores(root, file="scores.json"):
    return json.loads((root / "run" / file).read_text())


def change(**values):
    return lambda config: config.update_from_flattened_dict({key.replace("__", "."): v for key, v in values.items()})


def test_the_work_directory_is_the_whole_command(trained, capsys):
    root, config = trained
    before = scores(root)
    assert (before["split"], before["step"], before["images"]) == ("val", 2, 3) and before["split_digest"]
    found = run.evaluate(root / "run")
    assert found.path == root / "run/scores.json"
    after = scores(root)
    assert after["matrix"] == before["matrix"] and after["split_digest"] == before["split_digest"]
    assert (after["step"], after["checkpoint"]) == (2, str(root / "run")) and after["best_mean_iou"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("newest checkpoint, step 2 (best: step ") and "\n3 images of split val\n" in printed
    assert f"in {root}/run/best)" in printed.split("\n3 images")[0].replace("\n", " ")  # which `cp2 predict` takes too
    assert "Dice %" in printed and "border %" in printed


def test_another_split_overwrites_nothing(trained):
    root, _ = trained
    before, pictures = scores(root), {p.name: p.read_bytes() for p in (root / "run/pictures").iterdir()}
    found = run.evaluate(root / "run", adapt=change(data__eval_split="train"))
    assert found.path.name == "scores_train.json" and scores(root) == before
    other = scores(root, "scores_train.json")
    assert (other["split"], other["images"]) == ("train", 4) and other["split_digest"] != before["split_digest"]
    now = {p.name: p.read_bytes() for p in (root / "run/pictures").iterdir()}
    assert pictures.items() <= now.items() and "evaluation_train_best.png" in now
    part = run.evaluate(root / "run", adapt=change(evaluation__limit=2))
    assert part.path.name == "scores_val.json" and scores(root) == before


def test_checkpoints_by_name(trained, capsys):
    root, _ = trained
    best = read_variables(root / "run/best")[1]["step"]
    assert saved.open_saved(root / "run", "best").step == best
    assert saved.open_saved(root / "run", 1).step == saved.open_saved(root / "run", root / "run/checkpoints/1").step == 1
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7; there are \[1, 2\]"):
        saved.open_saved(root / "run", 7)
    with pytest.raises(CheckpointError, match="no best model"):
        saved.open_saved(root / "run/best", "best")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        saved.open_saved(root / "nowhere")
    with pytest.raises(
        CheckpointError, match="last is no checkpoint of .*/run: give newest, best, the number of a step, or"
    ):
        saved.open_saved(root / "run", "last")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model.aspp.dilations", (1, 2), r"model.aspp.dilations=\(1, 2\) would make another network .* \(1, 3\)"),
        ("model.mean", (0.5, 0.5, 0.5), "model.mean=.* would make another network"),
        ("model.toy.channels", 7, "model.toy.channels=7 would make another network"),
        ("image_size", 64, "image_size=64 would make another network"),
        ("optimizer.learning_rate", 1.0, "optimizer.learning_rate=1.0: this is of training"),
    ],
)
def test_changes_of_the_network_are_refused(trained, key, value, message):
    with pytest.raises(ConfigError, match=message):
        saved.open_saved(trained[0] / "run", adapt=lambda config: config.update_from_flattened_dict({key: value}))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"data": {"split": "train"}}, "data.split: this is of training; of a test, data.eval_split says that"),
        ({"data": {"flip": 1.0}}, "data.flip: this is of training; of a test, evaluation.flip says that"),
        ({"data.photometric": False}, "data.photometric: this is of training alone"),
    ],
)
def test_keys_that_change_nothing_of_a_test(keys, message):
    """Also those of the value that the run has: `split="train"` was no error, and another split was scored."""
    with pytest.raises(ConfigError, match=message):
        cp2_jax.evaluate("runs/mine", changes=keys)
    with pytest.raises(ConfigError, match=message):
        cp2_jax.predict("runs/mine", "photos", "out", changes=keys)


def test_protocol_data_and_precision_may_change(trained):
    root, _ = trained
    model = saved.open_saved(
        root / "run", adapt=change(evaluation__flip=True, data__path="elsewhere", model__dtype="bfloat16")
    )
    assert model.config.evaluation.flip and model.config.data.path == "elsewhere"
    assert not model.own.evaluation.flip


def test_a_split_that_is_also_trained_on_is_told(trained, monkeypatch, tmp_path, caplog):
    config = saved.open_saved(trained[0] / "run").own
    config.init.checkpoint, config.data.eval_split = "", "train"
    monkeypatch.setattr(run.session, "run", lambda job, workdir, **options: "would run")
    assert run.train(config, tmp_path / "run") == "would run"
    assert "4 of the 4 images that are scored (data.eval_split='train') are also trained on" in caplog.text


def test_a_config_gives_data_and_protocol_and_must_be_of_the_same_network(trained):
    root, config = trained
    given = config.copy_and_resolve_references()
    given.evaluation.flip = True
    given.optimizer.learning_rate = 5.0  # of training: of no matter
    given.model.fcn.channels = 1  # of a head that is not used
    assert saved.open_saved(root / "run", config=given).config.evaluation.flip
    given.model.aspp.dilations = (1, 2)
    with pytest.raises(ConfigError, match=r"model.aspp.dilations=\(1, 2\) \(the run has \(1, 3\)\)"):
        saved.open_saved(root / "run", config=given)
    given.kind = "pretrain"
    with pytest.raises(ConfigError, match="this is a config of pretraining"):
        saved.open_saved(root / "run", config=given)


def test_models_without_classes_or_config_are_refused(trained, tmp_path):
    root, config = trained
    variables, meta = read_variables(root / "run")
    write_variables(tmp_path / "pretrained", variables, meta | {"kind": "pretrain"})
    with pytest.raises(CheckpointError, match="is of a pretraining run, which has no classes; finetune it first"):
        saved.open_saved(tmp_path / "pretrained")
    write_variables(tmp_path / "plain", variables, {})
    with pytest.raises(ConfigError, match="has no config of its own"):
        saved.open_saved(tmp_path / "plain")
    assert saved.open_saved(tmp_path / "plain", config=config).own is None
    backbone = {"params": {"backbone": variables["params"]["backbone"]}}
    write_variables(tmp_path / "backbone", backbone, {})
    with pytest.raises(CheckpointError, match="has no classifier, only backbone; finetune it first"):
        saved.open_saved(tmp_path / "backbone", config=config)


# Prediction of a folder.


def test_every_image_has_a_file_of_its_own():
    names = ["a.jpg", "a.png", "a.jpg.png", "b.JPG", "B.png", "c.jpg", "sub/a.jpg", "A.webp"]
    found = [path.as_posix() for path in folders.output_names(list(map(pathlib.PurePath, names)))]
    assert len({name.casefold() for name in found}) == len(names)
    assert found[5:7] == ["c.png", "sub/a.png"] and found[0].startswith("a.jpg")
    assert found == [path.as_posix() for path in folders.output_names(list(map(pathlib.PurePath, names)))]


def picture(path, size=(32, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def test_what_was_written_is_not_predicted_again(trained, tmp_path):
    picture(tmp_path / "in/a.png")
    for _ in range(2):  # the output lies inside the input, and is there the second time
        done = run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "in")
        assert done.count == 1 and not done.problems
    assert [p.name for p in (tmp_path / "in/masks").iterdir()] == ["a.png"]
    note = json.loads((tmp_path / "in/predictions.json").read_text())
    assert note["step"] == 2 and note["classes"] == ["left", "right"]


def test_masks_that_somebody_drew_are_not_overwritten(trained, tmp_path):
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "out/masks/a.png")
    before = (tmp_path / "out/masks/a.png").read_bytes()
    with pytest.raises(SegmentationError, match="masks/a.png is there already and no prediction wrote it"):
        run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/masks/a.png").read_bytes() == before


def test_what_cannot_be_read_is_named_and_the_rest_predicted(trained, tmp_path):
    picture(tmp_path / "in/good.png")
    os.symlink("/nowhere/x.jpg", tmp_path / "in/gone.jpg")
    (tmp_path / "in/broken.jpg").write_bytes(b"\xff\xd8 no more")
    done = run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "out")
    assert done.count == 1 and [p.name for p in (tmp_path / "out/masks").iterdir()] == ["good.png"]
    assert len(done.problems) == 2 and "gone.jpg" in "".join(done.problems) and "broken.jpg" in "".join(done.problems)


def test_an_image_too_large_for_the_memory_is_named_with_what_to_do(trained, tmp_path, monkeypatch):
    picture(tmp_path / "in/small.png")
    picture(tmp_path / "in/huge.png", (33, 41))
    class_map = folders._class_map

    def small_memory(predictor, variables, image, batch, name):
        if "huge" in name:
            predictor = type("Full", (), {"inputs": lambda *_: None, "predict": raising(MemoryError())})()
        return class_map(predictor, variables, image, batch, name)

    monkeypatch.setattr(folders, "_class_map", small_memory)
    done = run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "out")
    (problem,) = done.problems
    assert done.count == 1 and "huge.png: the memory is too small for 33 x 41 pixels" in problem
    assert "--config.evaluation.window='(512, 512)' --config.evaluation.stride='(341, 341)'" in problem
    windows = change(evaluation__window=(32, 32), evaluation__stride=(16, 16))
    monkeypatch.setattr(folders, "_class_map", class_map)
    assert run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "out", adapt=windows).count == 2


def raising(error):
    def call(*_):
        raise error

    return call


def test_outputs_that_cannot_be_written(trained, tmp_path, monkeypatch):
    picture(tmp_path / "in/a.png")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SegmentationError, match="output folder .*/file cannot be written: Not a directory"):
        run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "file")
    monkeypatch.setattr(folders, "save_class_map", raising(OSError(28, "No space left on device")))
    with pytest.raises(SegmentationError, match="masks/a.png cannot be written: No space left on device"):
        run.predict(trained[0] / "run", tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    "what, message", [("run", "is the work directory of a run"), ("data/images/val/0.jpg", "is a file")]
)
def test_other_places_than_folders_of_images_are_named(trained, tmp_path, what, message):
    with pytest.raises(SourceError, match=message):
        run.predict(trained[0] / "run", trained[0] / what, tmp_path / "out")
