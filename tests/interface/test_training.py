"""The notebook's lines: pretrain, finetune from it, predict; and the wrong kind of path."""

import inspect
import io
import json
import pathlib
import re
import shutil
import textwrap
import zipfile

import jax
import numpy as np
import pytest
from helpers import checkpoints, miniatures, packing, servers
from ml_collections import ConfigDict
from PIL import Image

import cp2_jax
from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.interface import embedding, segmenter, training
from cp2_jax.options import ConfigError
from cp2_jax.runs.checkpoints import CheckpointError, read_variables
from cp2_jax.segmentation import run

VIT = {
    "backbone": "vit",
    "vit": {"width": 12, "depth": 1, "heads": 3, "patch": 8},
}  # compiles in a fifth of a ResNet's time
TINY = VIT | {"dtype": "float32", "head": "fcn", "fcn": {"channels": 8, "num_convs": 1}}
PRETRAIN = dict(config="pretrain:demo", model=TINY, steps=2, batch_size=4, bn_groups=1, picture_every=0, probe_every=0)
CHANGES = {"loss.queue_size": 8, "augment.jitter_probability": 0.0, "augment.grayscale": 0.0, "augment.blur": 0.0}
SHORT = dict(steps=2, batch_size=2, log_every=1, save_every=2)
SIZES = {"data.crop_size": (32, 32), "data.resize": (), "data.workers": 0, "evaluation.resize": ()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return miniatures.folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory):
    keys = PRETRAIN | dict(data={"workers": 0}, changes=CHANGES)
    return cp2_jax.pretrain(data / "images", tmp_path_factory.mktemp("runs") / "photos", **keys)


@pytest.fixture(scope="module")
def finetuned(data, pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "mine"
    return cp2_jax.finetune(data, out, checkpoint=pretrained, changes=SIZES, eval_every=0, **SHORT)


def test_a_run_is_a_path_with_its_last_metrics(pretrained):
    assert pretrained.steps == 2 and np.isfinite(pretrained.metrics["loss"])
    assert (pretrained.path / "metrics.jsonl").exists() and str(pretrained.path) == pretrained.__fspath__()
    assert [picture.name for picture in pretrained.pictures] == ["curves.png"]


def test_run_again_it_is_finished_and_says_what_to_type_next(pretrained, data, capsys):
    keys = PRETRAIN | dict(data={"workers": 0}, changes=CHANGES)
    again = cp2_jax.pretrain(data / "images", pretrained.path, **keys)
    out = capsys.readouterr().out
    assert again.steps == 2 and re.search('finished: 2 steps.*\nnext: cp2_jax.finetune.DATA, OUT, checkpoint="/', out)
    with pytest.raises(ConfigError, match="holds a run with another config:\n  seed: was 0, now 3"):
        cp2_jax.pretrain(data / "images", pretrained.path, seed=3, **keys)


def test_finetuning_takes_the_model_from_its_checkpoint(finetuned, pretrained):
    assert finetuned.steps == 2 and 0 <= finetuned.metrics["miou"] <= 1
    theirs, ours = (cp2_jax.load(run)[0] for run in (pretrained, finetuned))
    assert ours.network.backbone.options == theirs.network.backbone.options


def test_a_segmenter_takes_paths_arrays_and_lists(finetuned, data, tmp_path):
    segmenter = cp2_jax.load_segmenter(finetuned)
    assert segmenter.class_names == ("nothing", "red apple", "pear")
    path = data / "images/val/0.jpg"
    pixels = np.asarray(Image.open(path))
    one = segmenter.predict(path)
    assert one.labels.shape == pixels.shape[:2] and one.labels.dtype == np.uint8
    np.testing.assert_allclose(one.probabilities.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(one.probabilities.argmax(-1), one.labels)
    assert sum(one.shares.values()) == pytest.approx(1) and set(one.shares) <= set(segmenter.class_names)
    images = [str(path), Image.open(path), pixels, pixels.astype(np.float32) / 255, pixels[:20, :24]]
    several = segmenter.predict(images)
    for other in several[:4]:
        np.testing.assert_array_equal(other.labels, one.labels)
    assert several[4].labels.shape == (20, 24)
    written = one.save(tmp_path / "out")
    assert written == tmp_path / "out/0.png" and written.with_name("0_overlay.png").exists()
    np.testing.assert_array_equal(np.asarray(Image.open(written)), one.labels)


def test_a_notebook_evaluates_predicts_and_exports(finetuned, data, tmp_path, capsys):
    scores = cp2_jax.evaluate(finetuned)
    assert scores.mean_iou == pytest.approx(finetuned.metrics["miou"])
    out = capsys.readouterr().out
    assert "scores in" in out and f'next: cp2_jax.predict("{finetuned.path}", IMAGES, OUTPUT)' in out
    mirrored = cp2_jax.evaluate(finetuned, 2, data={"eval_split": "train"}, evaluation={"flip": True})
    assert np.isfinite(mirrored.mean_iou) and (finetuned.path / "scores_train.json").exists()
    with pytest.raises(ConfigError, match="model.backbone=resnet would make another network"):
        cp2_jax.evaluate(finetuned, changes={"model.backbone": "resnet"})
    with pytest.raises(CheckpointError, match="has no checkpoint of step 9"):
        cp2_jax.evaluate(finetuned, 9)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes((data / "images/val/0.jpg").read_bytes())
    (tmp_path / "photos/b.jpg").write_bytes(b"no image")
    done = cp2_jax.predict(finetuned, tmp_path / "photos", tmp_path / "predicted")
    assert done.count == 1 and len(done.problems) == 1 and "b.jpg" in done.problems[0]
    assert "1 images, 1 not predicted; masks" in capsys.readouterr().out
    mask = np.asarray(Image.open(tmp_path / "predicted/masks/a.png"))
    np.testing.assert_array_equal(mask, cp2_jax.load_segmenter(finetuned).predict(data / "images/val/0.jpg").labels)
    with zipfile.ZipFile(cp2_jax.export(finetuned, tmp_path / "a.pth", layout="timm")) as written:
        assert any(name.endswith("data.pkl") for name in written.namelist())


@pytest.mark.parametrize(
    "image, message",
    [
        ("nowhere.jpg", "nowhere.jpg: No such file"),
        (np.zeros((3, 8, 9), np.uint8), r"\(3, 8, 9\), not \(height, width, 3\): move the channels to the end"),
        (np.zeros((2, 8, 9, 3), np.uint8), r"\(2, 8, 9, 3\), not \(height, width, 3\): give a list of images"),
        (np.full((8, 9, 3), 255.0), r"floats lie between 255 and 255; give them in \[0, 1\], or uint8"),
        (np.full((8, 9, 3), np.nan), "floats lie between nan and nan"),
        (np.zeros((8, 9, 3), np.int32), "its type is int32; give uint8"),
    ],
)
def test_what_is_no_image(finetuned, image, message):
    with pytest.raises(UnreadableImage, match=message):
        cp2_jax.load_segmenter(finetuned).predict(image)


def test_the_wrong_kind_of_path_is_told_which_it_is(pretrained, finetuned, data, tmp_path):
    with pytest.raises(SourceError, match="is a pretraining run, where a folder of images is wanted"):
        cp2_jax.pretrain(pretrained, tmp_path / "a")
    with pytest.raises(SourceError, match="is a finetuning run, where a folder of labelled images is wanted"):
        cp2_jax.finetune(finetuned, tmp_path / "a")
    with pytest.raises(SourceError, match="is a pretraining run, where a folder of images is wanted"):
        cp2_jax.embed(finetuned, pretrained, tmp_path / "a.npz")
    with pytest.raises(CheckpointError, match="is of a pretraining run, which has no classes; finetune it first"):
        cp2_jax.load_segmenter(pretrained)
    with pytest.raises(UnreadableImage, match="it is a folder of images; give a file, or a list"):
        cp2_jax.load_segmenter(finetuned).predict(data / "images/val")
    with pytest.raises(CheckpointError, match="is a folder of labelled images, where a run or a checkpoint is wanted"):
        cp2_jax.finetune(data, tmp_path / "a", checkpoint=data)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"size": 30}, "size=30: image of 30 x 30 pixels: a ViT needs multiples of its patch, 8"),
        ({"batch": 0}, "batch=0: must be a whole number above 0"),
        ({"dtype": "int8"}, "dtype=int8: must be one of float32, float16"),
        ({"features": "bakbone"}, r"features=bakbone: must be one of .*did you mean backbone\?"),
        ({"features": "stages"}, "are several maps of each image"),
    ],
)
def test_features_that_cannot_be_written(pretrained, data, tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        cp2_jax.embed(pretrained, data / "images/val", tmp_path / "a.npz", **wrong)
    assert not (tmp_path / "a.npz").exists()


def test_somebodys_file_is_converted_once_and_the_model_follows(tmp_path, capsys):
    file = tmp_path / "dino.pth"
    checkpoints.save_torch(file, checkpoints.TORCH["dino"][1])
    config = training.pretraining_config("photos", tmp_path / "run", checkpoint=file)
    assert config.init.checkpoint == str(tmp_path / "run/converted")
    assert (config.model.backbone, config.optimizer.name, config.loss.queue_start) == ("vit", "adamw", "keys")
    assert f"converted {file} into" in capsys.readouterr().out and (tmp_path / "run/converted/report.txt").exists()
    training.pretraining_config("photos", tmp_path / "run", checkpoint=file)
    assert f"converted {file} into" not in capsys.readouterr().out
    other = tmp_path / "other.pth"
    checkpoints.save_torch(other, checkpoints.TORCH["timm"][1])
    with pytest.raises(CheckpointError, match="holds the conversion of dino.pth: remove it"):
        training.pretraining_config("photos", tmp_path / "run", checkpoint=other)


def test_the_size_of_crops_has_another_name_in_finetuning(tmp_path, capsys):
    config = training.finetuning_config("photos", tmp_path / "a")
    training.settle(config, tmp_path / "a", {"image_size"})
    assert (
        "mind: image_size is a ViT's for its positions; the crops are data.crop_size=(512, 512)" in capsys.readouterr().out
    )
    training.settle(config, tmp_path / "a", {"image_size", "data.crop_size"})
    assert not capsys.readouterr().out


def test_keys_and_models_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match=r"lr: there is no such key \(did you mean optimizer.learning_rate\?\)"):
        cp2_jax.pretrain("photos", tmp_path / "a", lr=0.1)
    with pytest.raises(ConfigError, match="there is no variant 'resnet'"):
        cp2_jax.pretrain("photos", tmp_path / "a", model="resnet")
    with pytest.raises(ConfigError, match="finetune_voc is a config of `cp2 finetune`, not of `cp2 pretrain`"):
        cp2_jax.pretrain("photos", tmp_path / "a", config="finetune_voc")
    with pytest.raises(ConfigError, match="pretrain:vit is a config of `cp2 pretrain`, not of `cp2 finetune`"):
        cp2_jax.finetune("photos", tmp_path / "a", config="pretrain:vit")
    with pytest.raises(ConfigError, match=r"data.crop_sizes: there is no such key \(did you mean data.crop_size\?\)"):
        cp2_jax.finetune("photos", tmp_path / "a", data={"crop_sizes": (3, 3)})
    with pytest.raises(SourceError, match="a list was given, where a folder of images is wanted; .* set data.list"):
        cp2_jax.pretrain(["a.jpg", "b.jpg"], tmp_path / "a")
    with pytest.raises(SourceError, match="photos does not exist"):
        cp2_jax.pretrain("photos", tmp_path / "a")


def test_everything_in_a_bucket(pretrained, finetuned, data, tmp_path):
    """From the checkpoint to predictions, features and exports: runs, labelled images and outputs in a bucket."""
    with servers.proxied("gs") as proxy:
        bucket = proxy.new_bucket()
        for split in ("train", "val"):
            files = sorted(data.glob(f"*/{split}/*"), key=lambda file: file.name)
            packed = packing.write_tar(tmp_path / f"{split}.tar", {file.name: file.read_bytes() for file in files})
            (bucket / f"{split}.tar").write_bytes(packed.read_bytes())
        (bucket / "classes.txt").write_bytes((data / "classes.txt").read_bytes())
        for file in filter(pathlib.Path.is_file, pretrained.path.rglob("*")):
            (bucket / "photos" / str(file.relative_to(pretrained.path))).write_bytes(file.read_bytes())

        changes = SIZES | {"data.source": "tar", "data.path": f"{bucket}/{{split}}.tar"}
        options = dict(checkpoint=bucket / "photos", changes=changes, eval_every=0, **SHORT)
        mine = cp2_jax.finetune(None, bucket / "mine", **options)
        ours, theirs = (read_variables(one)[0] for one in (mine.path, finetuned))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        assert run.evaluate(mine.path).path == bucket / "mine/scores.json"
        images = data / "images/val"
        run.predict(mine.path, images, bucket / "predicted")
        mask = np.asarray(Image.open(io.BytesIO((bucket / "predicted/masks/0.png").read_bytes())))
        np.testing.assert_array_equal(mask, cp2_jax.load_segmenter(finetuned).predict(images / "0.jpg").labels)
        both = [
            embedding.read(cp2_jax.embed(run, images, out))
            for run, out in ((bucket / "photos", bucket / "f.npz"), (pretrained, tmp_path / "f.npz"))
        ]
        assert both[0][0] == both[1][0]
        np.testing.assert_array_equal(both[0][1], both[1][1])
        program = cp2_jax.export_program(mine.path, bucket / "mine.stablehlo", size=(16, 16))
        assert program.is_file() and (bucket / "mine.stablehlo.json").is_file()


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        ({"model": ["vit", "fcn"]}, ConfigError, "model is a list: give variants of the config as a text"),
        ({"model": pathlib.Path("vit")}, ConfigError, "model is a PosixPath: give variants"),
        ({"model": ConfigDict(TINY)}, ConfigError, "model is a ConfigDict: .* or a dict of keys of config.model"),
        ({"config": {"steps": 2}}, ConfigError, r"config is a dict: .* changed with changes=\{…\}"),
        ({"config": ConfigDict({"steps": 2})}, ConfigError, "this is a config without a kind, not of `cp2 pretrain`"),
        ({"config": pathlib.Path("pretrain"), "bath_size": 2}, ConfigError, r"did you mean batch_size\?"),
        ({"changes": "steps=2"}, ConfigError, "changes is a str: give a dict of keys and values"),
        ({"changes": [1]}, ConfigError, "changes is a list: give a dict"),
        ({"data": {"crop_scale": {0.2: 1.0}}}, ConfigError, r"data.crop_scale has no keys, it takes a tuple.*; pairs"),
        ({"checkpoint": {"params": {}}}, ConfigError, "a value of type dict was given, where a path is wanted"),
        ({"checkpoint": np.zeros(3)}, ConfigError, "a value of type ndarray was given, where a path is wanted"),
        ({"images": np.zeros((2, 8, 8, 3), np.uint8)}, SourceError, "a ndarray was given, where a folder of images"),
        ({"out": None}, ConfigError, "None was given, where a path is wanted"),
        ({"out": 5}, ConfigError, "a value of type int was given"),
        ({"out": b"runs"}, ConfigError, "a value of type bytes was given"),
        ({"out": ""}, ConfigError, "out is an empty text, which would be the current directory"),
    ],
)
def test_arguments_of_the_wrong_type_are_one_line(tmp_path, wrong, error, message):
    """A model that is neither text nor dict was passed over in silence: another one was trained."""
    with pytest.raises(error, match=f"(?s:{message})") as caught:
        cp2_jax.pretrain(**{"images": "photos", "out": tmp_path / "a"} | wrong)
    assert "\n" not in str(caught.value) and not (tmp_path / "a").exists()


def test_no_path_is_not_the_current_directory():
    with pytest.raises(CheckpointError, match="an empty text was given as the path of a checkpoint"):
        cp2_jax.load("")
    with pytest.raises(ConfigError, match="None was given, where a path is wanted"):
        cp2_jax.evaluate(None)
    with pytest.raises(ConfigError, match="changes is a list: give a dict"):
        cp2_jax.evaluate("runs/mine", changes=[1])


def test_several_images_where_a_folder_is_wanted(finetuned, tmp_path):
    with pytest.raises(SourceError, match=r"a list was given, .*, use cp2_jax.load_segmenter\(run\).predict\(images\)"):
        cp2_jax.predict(finetuned, ["a.jpg"], tmp_path / "a")
    with pytest.raises(SourceError, match=r"a generator was given, .*, load the model \(`cp2_jax.load`\)"):
        cp2_jax.embed(finetuned, (name for name in "ab"), tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["evaluate", "predict", "load_segmenter", "embed", "load"])
def test_the_examples_of_the_docstrings_run(name, pretrained, finetuned, data, tmp_path, monkeypatch):
    """In a folder with runs/photos, runs/mine, photos and photo.jpg; numbers of NumPy are taken, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segmenter.Prediction, "show", lambda self: None)
    (tmp_path / "runs").mkdir()
    for link, place in (("runs/photos", pretrained), ("runs/mine", finetuned), ("photos", data / "images/val")):
        (tmp_path / link).symlink_to(place)
    (tmp_path / "photo.jpg").write_bytes((data / "images/val/0.jpg").read_bytes())
    for part in ("images", "labels"):
        shutil.copytree(data / part / "val", data / part / "test", dirs_exist_ok=True)
    lines = inspect.getdoc(getattr(cp2_jax, name)).split("Example:\n")[1].split("\n\n")[0]
    known = {"cp2_jax": cp2_jax, "jax": jax, "numpy": np, "images": np.zeros((1, 16, 16, 3), np.uint8)}
    exec(textwrap.dedent(lines), known)
    if name == "embed":
        cp2_jax.embed("runs/photos", "photos", "f.npz", size=np.int64(16), batch=np.int32(2), dtype=np.float16)
        table = np.load("f.npz")
        assert table["features"].dtype == np.float16 and len(table["names"]) == 2
    if name == "evaluate":
        assert json.loads(json.dumps(known["scores"].as_dict()))["iou"].keys() == {"nothing", "red apple", "pear"}
        assert "red apple" in str(known["scores"])


def test_every_function_has_an_example():
    assert [name for name in cp2_jax.__all__ if "Example:" not in getattr(cp2_jax, name).__doc__] == []
