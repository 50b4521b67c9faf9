"""Every impossible config is refused with the key, the value and what would work; every shipped config is possible."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import finetune_voc, pretrain_demo, pretrain_r50_aspp, pretrain_vit_aspp
from cp2_jax import config_files
from cp2_jax.data.labelled import classes
from cp2_jax.options import ConfigError, flatten
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.runs import settings
from cp2_jax.segmentation import options as finetune_options


def make(module=pretrain_r50_aspp, **changes):
    config = module.get_config()
    config.data.path = "images"
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


def _save(workdir, config):
    """What a run does with its config first."""
    settings.check_config(workdir, config)
    settings.save_config(workdir, config)


PRETRAINING = (
    "pretrain",
    "pretrain:fcn",
    "pretrain:vit",
    "pretrain:vit,fcn",
    "pretrain:moco_v2",
    "pretrain:demo",
    "quick_tune",
    "quick_tune:vit,fcn",
    "pretrain:original",
)


@pytest.mark.parametrize("name", PRETRAINING)
def test_shipped_pretraining_configs_are_possible(name):
    config = config_files.load(name)
    config.data.path = "images"
    pretrain_options.check(config)


def test_what_the_model_does_not_have_is_no_difference(tmp_path):
    """A shipped default of ViTs changed (paper_vs_code): runs of a ResNet go on, runs of a ViT are refused."""
    old, new = ({"model.vit.heads": heads} for heads in (12, 6))
    for folder, module in (("resnet", pretrain_r50_aspp), ("vit", pretrain_vit_aspp)):
        _save(tmp_path / folder, make(module, **old))
        with_checkpoint(tmp_path / folder)
    _save(tmp_path / "resnet", make(**new))
    with pytest.raises(ConfigError, match="model.vit.heads: was 12, now 6"):
        _save(tmp_path / "vit", make(pretrain_vit_aspp, **new))
    with pytest.raises(ConfigError, match="model.head: was aspp, now fcn"):
        _save(tmp_path / "resnet", make(**{"model.head": "fcn"}))


def test_a_preset_is_another_run(tmp_path):
    _save(tmp_path, make())
    with_checkpoint(tmp_path)
    config = pretrain_r50_aspp.get_config("original")
    config.data.path = "images"
    with pytest.raises(ConfigError, match="loss.dense_axis: was key, now query"):
        _save(tmp_path, config)


@pytest.mark.parametrize("name", [name for name in config_files.names() if name.startswith("finetune")])
def test_shipped_finetuning_configs_are_possible(name, tmp_path):
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    for variants in ("", "baseline", "fcn", "baseline,vit", "vit,fcn"):
        config = config_files.load(f"{name}:{variants}")
        config.data.path = str(tmp_path)
        classes.resolve(config)
        finetune_options.check(config)
        assert (config.init.head == "random") == ("baseline" in variants)
        assert (config.optimizer.name == "adamw") == ("vit" in variants or name == "finetune_demo")


@pytest.mark.parametrize(
    "changes,devices,message",
    [
        (dict(batch_size=254), 1, "batch_size=254: must be divisible by bn_groups=4; use 252 or 256"),
        (dict(batch_size=4, bn_groups=4), 8, "batch_size=4: must be divisible by the number of devices, 8; use 8"),
        (dict(batch_size=96), 1, "loss.queue_size=65536: must be a multiple of batch_size=96; use 65472 or 65568"),
        (dict(image_size=225), 1, "image_size=225: must be a multiple of the output stride, 16; use 224 or 240"),
        (dict(model__backbone="resent"), 1, r"model.backbone=resent: must be one of resnet, vit \(did you mean resnet"),
        (dict(loss__dense_axis="rows"), 1, "loss.dense_axis=rows: must be one of key, query"),
        (dict(optimizer__schedule="cosin"), 1, "did you mean cosine?"),
        (dict(key_shuffle="random"), 1, "key_shuffle=random: must be one of strided, permutation, none"),
        (dict(epochs=0), 1, "give a length: steps or epochs above 0"),
        (dict(batch_size=0), 1, "batch_size=0: must be greater than 0"),
        (dict(data__path=""), 1, "say where the images are: --config.data.path"),
        (dict(data__crop_scale=(0.5, 0.2)), 1, "data.crop_scale=.*0 < low <= high <= 1"),
        (dict(model__resnet__depth=51), 1, "model.resnet.depth=51: must be 18, 34, 50, 101 or 152"),
        (dict(model__resnet__stage_sizes=(1, 2)), 1, "give 4 numbers"),
        (dict(model__resnet__output_stride=2), 1, "must be 4, 8, 16 or 32"),
        (dict(loss__momentum=1.5), 1, "loss.momentum=1.5: must lie between 0 and 1"),
        (dict(batch_size=250), 8, r"batch_size=250: .*bn_groups=4; use 248 or 256, or bn_groups=2 or 5$"),
        (dict(batch_size=4), 1, "bn_groups=4: leaves one image per group, too few .*; use 2 at most"),
        (dict(batch_size=1, bn_groups=1), 1, "needs two images per step"),
        (dict(data__source="folders"), 1, r"data.source=folders: must be one of .* \(did you mean folder\?\)$"),
        (dict(data__workers=-1), 1, "data.workers=-1: must be 0 or more"),
        (dict(seed=-1), 1, "seed=-1: must be 0 or more"),
        (dict(optimizer__name="adam"), 1, r"must be one of sgd, adamw \(did you mean adamw\?\)$"),
        (dict(optimizer__weight_decay=-0.1), 1, "optimizer.weight_decay=-0.1: must be 0 or more"),
        (dict(optimizer__learning_rate=float("nan")), 1, "optimizer.learning_rate=nan: must be greater than 0"),
        (dict(optimizer__schedule="poly", optimizer__min_learning_rate=1.0), 1, "not be above optimizer.learning_rate"),
        (dict(model__aspp__dilations=()), 1, "one whole number above 0 for each branch"),
        (dict(model__head="fcn", model__fcn__channels=0), 1, "model.fcn.channels=0: must be greater than 0"),
        (dict(data__crop_scale=(0.2,)), 1, r"data.crop_scale=\(0.2,\): must be two shares"),
        (dict(loss__alpha=-1.0), 1, "loss.alpha=-1.0: must be 0 or more"),
        (dict(loss__queue_start="real"), 1, "loss.queue_start=real: must be one of random, keys"),
        (dict(init__head="checkpiont"), 1, r"init.head=checkpiont: .*\(did you mean checkpoint\?\)"),
        (dict(init__projection="new"), 1, "init.projection=new: must be one of checkpoint, random"),
        (dict(model__resnet__padding="valid"), 1, "model.resnet.padding=valid: must be one of torch, same, same_pool"),
        (dict(model__backbone="vit", model__vit__attention="cudnn", model__dtype="float32"), 1, "needs model.dtype=bfl"),
        (dict(data__backgrounds="in_bach"), 1, r"data.backgrounds=in_bach: .*\(did you mean in_batch\?\)$"),
        (dict(data__backgrounds="in_batch", batch_size=2, bn_groups=1), 1, "batch_size=2: is too small for two other"),
        (dict(augment__mask="attention"), 1, "augment.mask=attention needs data.attention"),
        (dict(augment__blur_sigma=("a", "b")), 1, "augment.blur_sigma is .* two numbers"),
        (dict(model__mean=("a", 0.5, 0.5)), 1, "model.mean=.*: give three numbers"),
        (dict(model__std=(0.0, 1.0, 1.0)), 1, "model.std=.*: give three numbers above 0"),
    ],
)
def test_impossible_values_are_refused_with_the_fix(changes, devices, message):
    with pytest.raises(ConfigError, match=message):
        pretrain_options.check(make(**changes), devices)


def test_a_vit_needs_multiples_of_its_patch_and_heads_that_divide():
    with pytest.raises(ConfigError, match="image_size=100: must be a multiple of the ViT's patch, 16; use 96 or 112"):
        pretrain_options.check(make(pretrain_vit_aspp, image_size=100))
    with pytest.raises(ConfigError, match="model.vit.heads=7: must divide model.vit.width=384; use 6 or 8"):
        pretrain_options.check(make(pretrain_vit_aspp, model__vit__heads=7))


def test_lengths():
    config = make(batch_size=256, epochs=200)
    assert settings.steps_per_epoch(1_281_167, 256) == 5004
    assert settings.total_steps(config, 1_281_167) == 200 * 5004
    assert settings.total_steps(make(pretrain_demo, steps=12), 4000) == 12
    assert settings.steps_per_epoch(3, 8) == 1
    assert settings.total_steps(make(epochs=1, batch_size=256), 3) == 1
    with pytest.raises(ConfigError, match=r"steps=2147483648: is 2\*\*31 steps or more"):
        settings.total_steps(make(steps=2**31), 3)


def test_a_value_of_another_type_in_a_config_file():
    config = make()
    with config.ignore_type():
        config.batch_size = "256"
    with pytest.raises(ConfigError, match="batch_size=256: must be a whole number"):
        pretrain_options.check(config)


@given(batch=st.integers(1, 600), groups=st.integers(1, 40), devices=st.integers(1, 16))
def test_what_is_suggested_works(batch, groups, devices):
    """Whichever of the suggested values is taken, that error is gone."""
    config = make(batch_size=batch, bn_groups=groups, model__head="fcn")
    config.loss.queue_size = batch * 4

    def error():
        try:
            pretrain_options.check(config, devices)
        except ConfigError as error:
            return str(error)

    first = error()
    possible = batch % groups == 0 and batch % devices == 0
    assert (first is None) == possible
    if possible:
        return
    for value in re.search(r"; use (\d+)(?: or (\d+))?", first).groups():
        if value is not None:
            config.batch_size, config.loss.queue_size = int(value), 4 * int(value)
            assert error() is None
    if groups_for := re.search(r"or bn_groups=(\d+)(?: or (\d+))?", first):
        config.batch_size, config.loss.queue_size = batch, 4 * batch
        for value in filter(None, groups_for.groups()):
            config.bn_groups = int(value)
            assert "bn_groups" not in (error() or "")


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(init__head="projection"), "init.head=projection: must be one of checkpoint, random"),
        (dict(loss__average="labeled"), r"\(did you mean labelled\?\)"),
        (dict(data__num_classes=1), "data.num_classes=1: must be 2 or more"),
        (dict(model__num_classes=20), "model.num_classes=20: must equal data.num_classes=21"),
        (dict(data__class_names=("a", "b")), "give data.num_classes=21 names, not 2"),
        (dict(data__scale_range=(2.0, 0.5)), r"data.scale_range=\(2.0, 0.5\): must be two factors, 0 < low <= high$"),
        (dict(data__crop_size=(512,)), "give height and width"),
        (dict(data__crop_size=(500, 512), model__backbone="vit"), "data.crop_size=500: .*patch, 16; use 496 or 512"),
        (dict(model__dropout=1.5), "model.dropout=1.5: must lie between 0 and 1"),
        (dict(data__path=""), "data.path"),
        (dict(eval_every=-1), "eval_every=-1: must be 0 or more"),
    ],
)
def test_impossible_finetuning_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        finetune_options.check(make(finetune_voc, **changes))


def test_a_random_head_without_weight_decay_is_warned_of(caplog):
    """`--config.init.head=random` alone; the variant `baseline` sets both."""
    changes = dict(init__checkpoint="runs/cp2", init__head="random")
    finetune_options.check(make(finetune_voc, **changes, optimizer__weight_decay=5e-4))
    finetune_options.check(make(finetune_voc, init__checkpoint="runs/cp2"))
    assert caplog.text == ""
    finetune_options.check(make(finetune_voc, **changes))
    assert "optimizer.weight_decay=0 with a head that starts at random: the paper has 0.0005 there" in caplog.text


def with_checkpoint(workdir):
    (workdir / "checkpoints" / "3").mkdir(parents=True)
    return workdir


def test_a_work_directory_keeps_its_config(tmp_path, caplog):
    _save(tmp_path, make())
    with_checkpoint(tmp_path)
    _save(tmp_path, make(log_every=7, data__workers=1, epochs=300))
    assert "resuming with another log_every: was 50, now 7" in caplog.text
    _save(tmp_path, make(log_every=7, data__path="elsewhere"))
    _save(tmp_path, make(log_every=7, data__path=""))
    assert "resuming with another data.path: was elsewhere, now ''" in caplog.text
    assert "resuming with another epochs: was 200, now 300" in caplog.text
    with pytest.raises(ConfigError) as error:
        _save(tmp_path, make(optimizer__learning_rate=0.1, loss__alpha=0.5, keep=1))
    assert "  loss.alpha: was 0.2, now 0.5\n  optimizer.learning_rate: was 0.03, now 0.1\n" in str(error.value)
    assert "keep: was" not in str(error.value) and "later version" not in str(error.value)
    newer = json.loads((tmp_path / "config.json").read_text()) | {"brand": {"new": 1}}
    (tmp_path / "config.json").write_text(json.dumps(newer))
    with pytest.raises(ConfigError, match=r"brand.new: was 1, now absent\n.*or a later version of cp2_jax made it"):
        _save(tmp_path, make())
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["log_every"] == 7 and saved["optimizer"]["learning_rate"] == 0.03
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "config.json"]


def test_without_a_checkpoint_there_is_nothing_to_protect(tmp_path):
    _save(tmp_path, make())
    _save(tmp_path, make(optimizer__learning_rate=0.01))
    assert json.loads((tmp_path / "config.json").read_text())["optimizer"]["learning_rate"] == 0.01


def test_a_broken_config_in_the_work_directory(tmp_path):
    (with_checkpoint(tmp_path) / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=f"{tmp_path}/config.json is no config of a training"):
        _save(tmp_path, make())


def test_the_saved_config_is_the_whole_config():
    resolved = settings.as_plain(make())
    assert flatten(resolved)["data.crop_scale"] == [0.2, 1.0]
    assert flatten(resolved).keys() == flatten(make()).keys()
