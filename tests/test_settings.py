"""Every impossible config is refused with the key, the value and what would work; every shipped config is possible."""

import importlib
import pathlib

import pytest

from configs import pretrain_demo, pretrain_r50_aspp, pretrain_vit_aspp
from cp2_jax import settings
from cp2_jax.settings import ConfigError

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


def pretraining(module=pretrain_r50_aspp, **changes):
    config = module.get_config()
    config.data.path = "images"
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return config


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("pretrain_*.py")), ids=lambda p: p.stem)
def test_shipped_pretraining_configs_are_possible_and_documented(path):
    module = importlib.import_module(f"configs.{path.stem}")
    settings.validate_pretrain(pretraining(module))
    assert f"--config configs/{path.name}" in module.__doc__


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("finetune_*.py")), ids=lambda p: p.stem)
def test_shipped_finetuning_configs_are_possible_and_documented(path):
    module = importlib.import_module(f"configs.{path.stem}")
    settings.validate_finetune(module.get_config())
    assert f"--config configs/{path.name}" in module.__doc__


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
        (dict(model__resnet__output_stride=4), 1, "must be 8, 16 or 32"),
        (dict(loss__momentum=1.5), 1, "loss.momentum=1.5: must lie between 0 and 1"),
    ],
)
def test_impossible_values_are_refused_with_the_fix(changes, devices, message):
    with pytest.raises(ConfigError, match=message):
        settings.validate_pretrain(pretraining(**changes), devices)


def test_a_vit_needs_multiples_of_its_patch_and_heads_that_divide():
    with pytest.raises(ConfigError, match="image_size=100: must be a multiple of the ViT's patch, 16; use 96 or 112"):
        settings.validate_pretrain(pretraining(pretrain_vit_aspp, image_size=100))
    with pytest.raises(ConfigError, match="model.vit.heads=7: must divide model.vit.width=384; use 6 or 8"):
        settings.validate_pretrain(pretraining(pretrain_vit_aspp, model__vit__heads=7))


def test_lengths():
    config = pretraining(batch_size=256, epochs=200)
    assert settings.steps_per_epoch(1_281_167, 256) == 5004
    assert settings.total_steps(config, 1_281_167) == 200 * 5004
    assert settings.total_steps(pretraining(pretrain_demo, steps=12), 4000) == 12
    assert settings.steps_per_epoch(3, 8) == 1


def test_a_misspelt_key_is_told_the_nearest():
    config = pretraining()
    with pytest.raises(ConfigError, match=r"optimizer.learning_rat: there is no such key \(did you mean optimizer.learning_rate"):
        settings.check_override(config, "optimizer.learning_rat")
    settings.check_override(config, "optimizer.learning_rate")


def test_a_work_directory_keeps_its_config(tmp_path):
    settings.save_config(tmp_path, pretraining())
    settings.save_config(tmp_path, pretraining(log_every=7, data__workers=1))
    with pytest.raises(ConfigError, match="optimizer.learning_rate: was 0.03, now 0.1"):
        settings.save_config(tmp_path, pretraining(optimizer__learning_rate=0.1))
