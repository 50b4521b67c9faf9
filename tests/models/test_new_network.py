"""A new backbone and a new head, one file each (helpers/toy_*.py) and a line in a table: every job takes them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import toy_backbone, toy_head
from helpers.images import Memory
from ml_collections import ConfigDict

import cp2_jax
from configs import finetune_voc, pretrain_r50_aspp
from cp2_jax.convert.fitting import fit
from cp2_jax.interface import training
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.heads import HEADS
from cp2_jax.models.interface import Head, Masking
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import checkpoints, mesh, settings
from cp2_jax.segmentation import evaluation, predictor
from cp2_jax.segmentation import options as finetune_options
from cp2_jax.segmentation import step as finetune_step


@pytest.fixture(autouse=True)
def tables(monkeypatch):
    """The line that a new backbone or head needs."""
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    monkeypatch.setitem(HEADS, "context", toy_head.HEAD)


def config_of(module):
    config = module.get_config()
    config.model.update(backbone="toy", head="context", dtype="float32")
    config.model.toy = ConfigDict({"channels": 6})  # the head's section is left out: its defaults
    config.update(image_size=16, batch_size=4, bn_groups=1, steps=2)
    config.data.path = "images"
    return config


def finetune_config():
    config = config_of(finetune_voc)
    config.data.update(num_classes=3, class_names=("left", "right", "other"), crop_size=(16, 16))
    config.model.num_classes = 3
    return config


@pytest.fixture(scope="module")
def one_device():
    return mesh.make_mesh(jax.devices()[:1])


@pytest.fixture
def pretrained(tmp_path, one_device):
    """A checkpoint of one step of pretraining."""
    config = config_of(pretrain_r50_aspp)
    config.loss.queue_size = 8
    pretrain_options.check(config)
    start, step = pretrain_step.make_step(config, 2, 1, one_device)
    rng = np.random.default_rng(0)
    batch = {
        name: rng.integers(0, 256, shape.shape, dtype=np.uint8)
        for name, shape in pretrain_step.abstract_batch(config).items()
    }
    before = pretrain_step.init_variables(config)["params"]
    state, metrics = step(start(), batch)
    assert np.isfinite(metrics.compute()["loss"])
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, state.params)
    assert all(changed["backbone"]["first"].values()) and all(jax.tree.leaves(changed["head"]))
    meta = {"kind": "pretrain", "config": config.to_dict()}
    variables = {"params": jax.tree.map(np.asarray, state.params), "batch_stats": {}}
    checkpoints.write_variables(tmp_path / "pretrained", variables, meta)
    return tmp_path / "pretrained", variables, meta


def test_pretraining_and_its_features(pretrained):
    path, variables, _ = pretrained
    images = np.random.default_rng(1).integers(0, 256, (2, 20, 24, 3), dtype=np.uint8)
    shapes = {"backbone": (2, 5, 6, 6), "head": (2, 5, 6, 5), "projection": (2, 5, 6, 128)}
    for features, shape in shapes.items():
        model, loaded = cp2_jax.load(path, features=features)
        assert model.stride == 4 and model(loaded, images).shape == shape
    stages, loaded = cp2_jax.load(path, features="stages")
    assert [map_.shape for map_ in stages(loaded, images)] == [(2, 10, 12, 6), (2, 5, 6, 6)]
    with pytest.raises(ConfigError, match="output_stride=8: a toy has but one, the output stride: 4"):
        cp2_jax.load(path, output_stride=8)


def test_finetuning_starts_from_it_and_takes_a_step(pretrained, one_device):
    _, variables, meta = pretrained
    config = finetune_config()
    finetune_options.check(config)
    fitted, notes = fit(variables, meta, config.model, image_size=16)
    assert notes == []
    initial = finetune_step.init_variables(config)
    params = {name: fitted["params"].get(name, part) for name, part in initial["params"].items()}
    start, step = finetune_step.make_step(config, 2, 1, one_device)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
        "label": rng.integers(0, 3, (4, 16, 16), dtype=np.uint8),
        "size": np.full((4, 2), 16, np.int32),
    }
    state, metrics = step(start(initial | {"params": params}), batch)
    assert np.isfinite(metrics.compute()["loss"]) and int(state.step) == 1
    config.model.toy.channels = 8
    with pytest.raises(checkpoints.CheckpointError, match=r"config.model.toy.channels=6 \(is 8\)"):
        fit(variables, meta, config.model, image_size=16)


def test_a_config_follows_it_though_it_has_no_such_section(pretrained, tmp_path):
    path, _, _ = pretrained
    config = training.finetuning_config("labelled", tmp_path / "run", checkpoint=path)
    assert (config.model.backbone, config.model.head) == ("toy", "context") and config.model.toy.channels == 6
    asked = toy_backbone.BACKBONE.finetune_optimizer["learning_rate"]
    assert (config.optimizer.name, config.optimizer.learning_rate) == ("sgd", asked)
    assert settings.describe_model(config) == "toy, context"


def test_images_of_several_sizes_share_a_program(one_device):
    config = finetune_config()
    config.evaluation.resize = ()
    variables = finetune_step.init_variables(config)
    examples, found = Memory([(20, 24), (17, 9), (24, 13)]), {}
    for programs in (0, 1):
        found[programs] = evaluation.evaluate(
            examples,
            predictor.make_predictor(config),
            variables,
            num_classes=3,
            batch_size=1,
            device_mesh=one_device,
            programs=programs,
        )
    assert found[0].compilations == 3 and found[1].compilations == 1
    np.testing.assert_array_equal(found[0].matrix, found[1].matrix)
    assert found[1].matrix.sum() == sum((label < 3).sum() for label in examples.labels)


class Hidden(nn.Module):
    """A head that pools inside, where nobody is told."""

    options: object

    @nn.compact
    def __call__(self, x, train):
        return x + jnp.mean(x, axis=(1, 2), keepdims=True)


class Neighbours(Hidden):
    """Pools over windows."""

    @nn.compact
    def __call__(self, x, train):
        return nn.avg_pool(x, (3, 3), padding="SAME")


class Flax(Hidden):
    """A convolution of Flax's, which nothing masks."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Conv(4, (3, 3))(x)


class Tokens(Hidden):
    """Attention over all pixels."""

    @nn.compact
    def __call__(self, x, train):
        return nn.SelfAttention(num_heads=1)(x.reshape(x.shape[0], -1, x.shape[-1])).reshape(x.shape)


@pytest.mark.parametrize("module", [Hidden, Neighbours, Flax, Tokens])
def test_padded_evaluation_refuses_what_pools_in_a_way_it_does_not_know(monkeypatch, module):
    def build(options, *, norm, dtype):
        return module(options)

    def claimed(options):
        return Masking()

    config = finetune_config()
    monkeypatch.setitem(HEADS, "context", Head(toy_head.ContextOptions, build, masking=claimed))
    with pytest.raises(ConfigError, match=r"padded evaluation cannot mask \S*head"):
        predictor.make_predictor(config)
    # A head that claims nothing has a program for each size.
    monkeypatch.setitem(HEADS, "context", Head(toy_head.ContextOptions, build))
    assert Network.from_config(config.model).masking is None
    assert len(predictor.make_predictor(config).plan([(20, 24), (17, 9)], 1, 1)) == 2


def test_its_section_is_checked():
    config = config_of(pretrain_r50_aspp)
    config.model.toy.channels = 0
    with pytest.raises(ConfigError, match="model.toy.channels=0: must be greater than 0"):
        Network.from_config(config.model)
    config.model.toy = ConfigDict({"chanels": 4})
    with pytest.raises(ConfigError, match=r"model.toy.chanels: there is no such key \(did you mean channels\?\)"):
        Network.from_config(config.model)
