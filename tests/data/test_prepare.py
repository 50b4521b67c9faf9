"""Data sets from users' layouts: prepared, checked, finetuned on and evaluated; and what is wrong with them."""

import functools
import pathlib
import shlex

import jax
import numpy as np
import pytest
from helpers import miniatures
from helpers.command_line import cp2
from PIL import Image

from configs import finetune_ade20k, finetune_camvid, finetune_cityscapes, finetune_folder, finetune_voc
from cp2_jax.cli import command
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.labelled import check, classes
from cp2_jax.data.labelled.examples import SegmentationError, open_examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.data.prepare import writing
from cp2_jax.data.prepare.voc import augment_voc
from cp2_jax.runs import mesh
from cp2_jax.segmentation import evaluation
from cp2_jax.segmentation import options as finetune_options
from cp2_jax.segmentation import step as finetune_step


def tiny(module, path, **data):
    """A data set's own config with a tiny model and tiny images."""
    config = module.get_config()
    config.data.path = str(path)
    config.data.update(workers=0, crop_size=(32, 32), resize=(48, 40), **data)
    config.update(batch_size=2, steps=2, image_size=32)
    config.model.dtype = "float32"
    config.model.resnet.update(depth=18, width=4, stem_width=4, stage_sizes=(1, 1, 1, 1))
    config.model.aspp.update(channels=4, dilations=(1,))
    config.evaluation.update(resize=(48, 40), batch_size=1, programs=1)
    classes.resolve(config)
    return config


def finetune_and_evaluate(config, predictions=None):
    """Two steps, then scores of the validation split."""
    finetune_options.check(config)
    examples = open_examples(config.data, config.data.split)
    stream = iter(training_dataset(examples, batch_size=2, seed=0, options=training_options(config.data)))
    one_device = mesh.make_mesh(jax.devices()[:1])
    initial_state, step = finetune_step.make_step(config, 2, 2, one_device)
    state = initial_state(finetune_step.init_variables(config))
    for _ in range(2):
        state, metrics = step(state, mesh.place_batch(one_device, next(stream)))
        assert np.isfinite(float(metrics.compute()["loss"]))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    result = evaluation.Evaluator(config, one_device)(variables, predictions)
    assert result.compilations == 1
    return result, variables


def labelled_pixels(config):
    """Of the validation split, counted from its files: those whose value has a class."""
    examples = open_examples(config.data, config.data.eval_split)
    return sum(int((examples.load(index)[1] < config.data.num_classes).sum()) for index in range(len(examples)))


def checked(config):
    checks = [check.check_split(config.data, split) for split in (config.data.split, config.data.eval_split)]
    assert not any(one.problems for one in checks), [one.problems for one in checks]
    return checks


def test_voc_with_sbd_through_files_and_records(tmp_path):
    voc, sbd, sbd_masks = miniatures.voc(tmp_path)
    assert augment_voc(voc, sbd) == 6
    listed = (voc / "ImageSets/Segmentation/train_aug.txt").read_text().split()
    # VOC's three, then those of SBD in neither list of VOC.
    assert listed == [f"2007_00000{n}" for n in (1, 2, 3)] + [f"2008_00000{n}" for n in (1, 2, 3)]

    def read(folder, name):
        return np.asarray(Image.open(voc / folder / f"{name}.png"))

    np.testing.assert_array_equal(read("SegmentationClassAug", "2008_000001"), sbd_masks["2008_000001"])
    own = read("SegmentationClass", "2007_000002")
    assert (own == 255).any()
    np.testing.assert_array_equal(read("SegmentationClassAug", "2007_000002"), own)  # though SBD has one, too

    config = tiny(finetune_voc, voc)
    train, val = checked(config)
    assert (train.images, val.images) == (6, 2) and train.pixels[255] > 0 and len(train.sizes) == 3
    result, variables = finetune_and_evaluate(config, tmp_path / "maps")
    assert result.matrix.sum() == labelled_pixels(config) and len(result.image_miou) == 2
    with Image.open(tmp_path / "maps/2007_000004.png") as saved, Image.open(voc / "JPEGImages/2007_000004.jpg") as image:
        assert saved.mode == "P" and saved.size == image.size and np.asarray(saved).max() <= 20

    # The same from array_record: names, bytes and scores.
    splits = {"train": config.data.split, "validation": config.data.eval_split}
    opened = {name: open_examples(config.data, split) for name, split in splits.items()}
    path = writing.write_pairs(tmp_path / "records", "voc", opened, config.data.class_names)
    config.data.update(source="tfds", path=str(tmp_path / "records"), split="train", eval_split="validation")
    assert [one.images for one in checked(config)] == [6, 2]
    records = open_examples(config.data, "validation")
    assert [records.stem(i) for i in (0, 1)] == ["2007_000004", "2007_000005"]
    assert records.encoded(1) == opened["validation"].encoded(1)
    again = evaluation.Evaluator(config, mesh.make_mesh(jax.devices()[:1]))(variables)
    np.testing.assert_array_equal(again.matrix, result.matrix)

    # Written again only if the files are others.
    before = {f: f.stat().st_mtime_ns for f in path.iterdir()}
    writing.write_pairs(tmp_path / "records", "voc", opened, config.data.class_names)
    assert {f: f.stat().st_mtime_ns for f in path.iterdir() if f.name != "classes.txt"}.items() <= before.items()
    miniatures.save(pathlib.Path(opened["train"].places(0)[1]), np.zeros((40, 48), np.uint8))
    writing.write_pairs(tmp_path / "records", "voc", opened, config.data.class_names)
    assert (open_examples(config.data, "train").load(0)[1] == 0).all()


def test_augmenting_voc_again_and_broken(tmp_path):
    voc, sbd, _ = miniatures.voc(tmp_path)
    mask = sbd / "cls/2008_000002.mat"
    good = mask.read_bytes()
    mask.write_bytes(good[:50])
    with pytest.raises(SegmentationError, match=r"2008_000002\.mat is no mask file of SBD"):
        augment_voc(voc, sbd)
    assert not (voc / "SegmentationClassAug").exists()
    mask.write_bytes(good)
    assert augment_voc(voc, sbd.parent) == 6  # benchmark_RELEASE will do, too
    assert not (voc / "SegmentationClassAug.incomplete").exists()
    mask.unlink()
    assert augment_voc(voc, sbd) == 6  # nothing is read again
    # A folder that was downloaded is taken if it is complete.
    (voc / "ImageSets/Segmentation/train_aug.txt").unlink()
    assert augment_voc(voc, sbd) == 6
    (voc / "ImageSets/Segmentation/train_aug.txt").unlink()
    (voc / "SegmentationClassAug/2008_000003.png").unlink()
    with pytest.raises(SegmentationError, match=r"lacks 2008_000003\.png \(1 in all\)"):
        augment_voc(voc, sbd)


def test_cityscapes(tmp_path):
    config = tiny(finetune_cityscapes, miniatures.cityscapes(tmp_path))
    train, val = checked(config)
    assert (train.images, val.images) == (4, 2)
    result, _ = finetune_and_evaluate(config, tmp_path / "maps")
    assert result.matrix.sum() == labelled_pixels(config)
    saved = Image.open(tmp_path / "maps/frankfurt_000000_000019.png")
    values = np.unique(np.asarray(saved))
    assert set(values) <= set(finetune_cityscapes.IDS)  # the server's ids, not the training labels
    palette = np.array(saved.getpalette()).reshape(-1, 3)
    for value in values:
        np.testing.assert_array_equal(palette[value], config.data.class_colors[finetune_cityscapes.IDS.index(value)])


def test_ade20k(tmp_path):
    config = tiny(finetune_ade20k, miniatures.ade20k(tmp_path))
    assert len(config.data.class_names) == 150 == len(set(config.data.class_names))
    assert (config.data.class_names[0], config.data.class_names[149]) == ("wall", "flag")
    train, val = checked(config)
    assert (train.images, val.images) == (4, 2)
    raw = sum(
        np.bincount(np.asarray(Image.open(p)).ravel(), minlength=256)
        for p in (tmp_path / "ADEChallengeData2016/annotations/training").iterdir()
    )
    np.testing.assert_array_equal(train.pixels[:150], raw[1:151])  # the background shift
    assert train.pixels[255] == raw[0] > 0
    result, _ = finetune_and_evaluate(config)
    assert result.matrix.sum() == labelled_pixels(config)


def test_own_folders_with_a_class_file(tmp_path):
    config = tiny(finetune_folder, miniatures.folder(tmp_path))
    assert config.data.class_names == ("nothing", "red apple", "pear") and config.model.num_classes == 3
    assert config.data.class_colors == ((10, 20, 30), (200, 0, 0), (0, 200, 0))
    assert "red apple" in check.report(checked(config), config.data.class_names)


def test_segnets_camvid_folders(tmp_path):
    for split in ("train", "val"):
        image, mask = miniatures.scene(1, range(12))
        miniatures.save(tmp_path / split / "0001TP.png", image)
        miniatures.save(tmp_path / f"{split}annot" / "0001TP.png", mask)
    config = tiny(finetune_camvid, tmp_path, images="{split}", labels="{split}annot")
    assert [one.images for one in checked(config)] == [1, 1]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\n", "names 1 classes"),
        ("a 1 2 3\nb\n", "line 2: no colour"),
        ("a 1 2 300\nb 1 2 3\n", r"line 1: \(1, 2, 300\) is no colour"),
        ("# classes\na\n\nb\na\n", "line 5: class 'a' is there already"),
        (None, "no file .*classes.txt: write one"),
    ],
)
def test_bad_class_files(tmp_path, text, message):
    config = finetune_folder.get_config()
    config.data.path = str(tmp_path)
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(SegmentationError, match=message) as error:
        classes.resolve(config)
    assert str(tmp_path / "classes.txt") in str(error.value)


def test_class_file_with_too_few_names(tmp_path):
    """Fewer than are asked for, or than the masks hold."""
    root = miniatures.folder(tmp_path, "nothing\nred apple\n")
    config = finetune_folder.get_config()
    config.data.update(path=str(root), num_classes=3)
    with pytest.raises(SegmentationError, match=r"classes\.txt has too few names: 2, but data.num_classes=3"):
        classes.resolve(config)
    config.data.num_classes = 0
    classes.resolve(config)
    problems = check.check_split(config.data, "train").problems
    assert problems and all("has value 2" in p and "classes.txt names 2 classes: add the missing" in p for p in problems)


def damage(root):
    """Return what a check must say of seven different kinds of damage."""
    images, labels = root / "images/train", root / "labels/train"
    for number in range(3, 8):
        image, mask = miniatures.scene(number, range(3))
        miniatures.save(images / f"{number}.jpg", image)
        miniatures.save(labels / f"{number}.png", mask)
    (labels / "0.png").unlink()
    miniatures.save(labels / "1.png", np.zeros((40, 47), np.uint8))
    miniatures.save(labels / "2.png", np.full((40, 48), 9, np.uint8))
    miniatures.save(labels / "3.png", np.full((40, 48, 3), (7, 8, 9), np.uint8))
    miniatures.save(labels / "4.png", np.full((40, 48), 256, np.uint16))
    (images / "5.jpg").write_bytes((images / "5.jpg").read_bytes()[:200])
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(labels / "6.png", format="JPEG")
    return (
        "images/train/0.jpg has no mask",
        "labels/train/1.png is 47x40",
        "labels/train/2.png has value 9",
        "labels/train/3.png has the colour (7, 8, 9)",
        "labels/train/4.png has 16",
        "images/train/5.jpg",
        "labels/train/6.png is a JPEG",
    )


def test_the_command_lists_every_problem_and_fails_or_checks_and_writes(tmp_path, capsys):
    root = miniatures.folder(tmp_path)
    prepare = functools.partial(cp2, capsys, "prepare")
    status, out, _ = prepare("folder", "--input", root, "--check", "--output", tmp_path / "records")
    assert status == 0
    assert "red apple" in out and str(tmp_path / "records/folder/1.0.0") in out
    typed = shlex.split(out.rpartition("next: cp2 finetune ")[2])
    config = command.changed(typed[1], [tuple(one.removeprefix("--config.").split("=")) for one in typed[4:]])
    classes.resolve(config)
    assert "red apple" in config.data.class_names and len(open_examples(config.data, config.data.eval_split)) == 2
    copied = classes.read_classes(tmp_path / "records/folder/1.0.0/classes.txt")
    assert copied == classes.read_classes(root / "classes.txt")
    assert len(TfdsSource(tmp_path / "records", "validation", ("image", "segmentation_mask"))) == 2
    expected = damage(root)
    status, out, err = prepare("folder", "--input", root, "--check", "--output", tmp_path / "other")
    assert status == 1 and "train: 7 problems" in out and err.strip().splitlines()[-1].endswith("7 problems, see above")
    assert all(any(text in line for line in out.splitlines()) for text in expected), out
    assert not (tmp_path / "other").exists()


def test_the_command_wants_the_whole_data_set(tmp_path, capsys):
    root = miniatures.ade20k(tmp_path)
    status, _, err = cp2(capsys, "prepare", "ade20k", "--input", root, "--check")
    assert status == 1 and "(4, 2) images, but (20210, 2000) are expected" in err
    status, out, _ = cp2(capsys, "prepare", "ade20k", "--input", root, "--check", "--any-count")
    assert (
        status == 0
        and f"no problems\nnext: cp2 finetune --config finetune_ade20k --workdir WORKDIR --config.data.path={root}\n" in out
    )


def test_report_shortens_a_long_list():
    one = check.Check("train", 0, check.collections.Counter(), np.zeros(256, int), np.zeros(256, int), ["bad"] * 30)
    text = check.report([one], ("a", "b"), limit=5)
    assert text.count("  bad") == 5 and "… and 25 more" in text


def test_report_fits_80_columns_where_most_classes_are_absent():
    one = check.Check("train", 1, check.collections.Counter(), np.zeros(256, int), np.zeros(256, int), [])
    text = check.report([one], [f"class {n}" for n in range(150)])
    assert "train: no pixel of 150 of 150 classes: class 0, class 1," in text and "… (0 images above)" in text
    assert max(map(len, text.split("\n"))) <= 80
