"""Config values by name: the right key for what people type, and values of the right type."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from cp2_jax import config_files
from cp2_jax.interface import overrides
from cp2_jax.options import ConfigError


@pytest.fixture
def config():
    return config_files.load("pretrain:demo")


def test_values_that_are_typed(config):
    overrides.parse(
        config,
        [
            ("seed", "5"),
            ("optimizer.learning_rate", "1"),
            ("data.crop_scale", "(0.2, 1.0)"),
            ("model.aspp.dilations", "1,2"),
            ("remat", "true"),
        ],
    )
    assert (config.seed, config.optimizer.learning_rate, config.data.crop_scale) == (5, 1.0, (0.2, 1.0))
    assert (config.model.aspp.dilations, config.remat) == ((1, 2), True)


def test_values_from_python(config):
    changes = {"epochs": 3, "loss": {"alpha": 1}, "optimizer.learning_rate": 0.5, "data": {"path": pathlib.Path("a/b")}}
    overrides.update(config, changes | {"data.crop_scale": [0.5, 1.0], "seed": np.int64(7), "epochs": np.float32(3)})
    assert (config.epochs, config.loss.alpha, config.optimizer.learning_rate, config.seed) == (3, 1.0, 0.5, 7)
    assert (config.data.path, config.data.crop_scale) == ("a/b", (0.5, 1.0))


def test_no_epochs_are_no_length(config):
    """The config's own 4,000 steps counted in their place, in silence."""
    with pytest.raises(ConfigError, match="epochs=0: give a length above 0, or steps"):
        overrides.update(config, {"epochs": 0})
    with pytest.raises(ConfigError, match="epochs=0: give a length"):
        overrides.parse(config, [("epochs", "0")])
    overrides.update(config, {"epochs": 0, "steps": 1e4})
    assert (config.steps, config.epochs) == (10_000, 0)
    with pytest.raises(ConfigError, match="steps=2.5: steps takes a whole number"):
        overrides.update(config, {"steps": 2.5})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lr": 1}, r"^lr: there is no such key \(did you mean optimizer.learning_rate\?\)$"),
        ({"loss": {"queue": 1}}, r"loss.queue: there is no such key \(did you mean loss.queue_s"),
        ({"zebra": 1}, "zebra: there is no such key; `cp2 pretrain --help` lists all keys"),
        ({"seed": "x"}, "seed='x': seed takes a whole number"),
        ({"seed": 1.5}, "seed=1.5: seed takes a whole number"),
        ({"loss": 3}, "loss=3: loss takes no value itself, but its keys do"),
    ],
)
def test_what_cannot_be_taken(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        overrides.update(config, changes)


@pytest.mark.parametrize("text", ["", "{}", "x"])
def test_a_section_is_not_replaced(config, text):
    with pytest.raises(ConfigError, match=f"--config.data={text}: data takes no value itself, but its keys do"):
        overrides.parse(config, [("data", text)])


@pytest.mark.parametrize(
    "typed, key",
    [
        ("lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("momentum", "loss.momentum"),
        ("optimizers.momentum", "optimizer.momentum"),
        ("num-workers", "data.workers"),
        ("max_epochs", "epochs"),
        ("nothing_like_it", None),
    ],
)
def test_the_key_that_is_meant(config, typed, key):
    assert overrides.likely(typed, list(overrides.flatten(config))) == key


def test_values_as_numpy_and_jax_have_them():
    finetuning = config_files.load("finetune_folder")
    overrides.update(finetuning, {"tuning.class_weights": np.array([0.5, 2.0]), "data.crop_size": np.array([64, 32])})
    overrides.update(finetuning, {"model": {"dtype": jnp.bfloat16}, "data.flip": np.float32(0.5), "seed": np.uint8(3)})
    found = finetuning.tuning.class_weights, finetuning.data.crop_size, finetuning.model.dtype
    assert found == ((0.5, 2.0), (64, 32), "bfloat16") and type(found[1][0]) is int
    overrides.update(finetuning, {"model.dtype": np.float32})
    assert finetuning.model.dtype == "float32"


@pytest.mark.parametrize("name", ["augment", "seed", "data.crop_scale"])
def test_none_is_no_value(config, name):
    """A ConfigDict would take it, in place of a whole section, too."""
    with pytest.raises(ConfigError, match=f"{name}=None: {name} takes .*; leave it out for what the config has"):
        overrides.update(config, {name: None})


def test_hints_name_the_section_that_is_meant():
    finetuning = config_files.load("finetune_folder")
    for typed, hint in (
        ({"evaluatoin": {"flip": True}}, r"evaluatoin.flip: .*did you mean evaluation.flip\?"),
        ({"flip": True}, r"flip: .*did you mean data.flip or evaluation.flip\?"),
        ({"optimizer": "adamw"}, "takes no value itself, but its keys do, such as optimizer.name"),
        ({"data": {"crop_size": 32}}, r"data.crop_size takes a tuple, such as \(512, 512\)"),
        ({"tuning": {"class_weights": 2.0}}, r"takes a tuple, such as \(0.2, 1.0\)"),
    ):
        with pytest.raises(ConfigError, match=hint):
            overrides.update(finetuning, typed)


def test_every_alias_leads_to_a_key():
    known = {key.name for name in ("pretrain", "finetune_voc") for key in config_files.keys_with_comments(name)}
    assert set(overrides.ALIASES.values()) <= known


def test_home_directories_are_put_in(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    overrides.parse(config, [("data.path", "~/pics"), ("init.checkpoint", "~/a~b")])
    assert (config.data.path, config.init.checkpoint) == ("/home/me/pics", "/home/me/a~b")
