"""`cp2_jax.load`: features equal to those recorded from the original, from raw images, for every kind of checkpoint."""

import functools
import operator
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import checkpoints as make

import cp2_jax
from configs import finetune_voc, pretrain_r50_aspp
from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.models import segmenter
from cp2_jax.options import ConfigError
from cp2_jax.runs import checkpoints
from cp2_jax.runs.checkpoints import CheckpointError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def original(tmp_path_factory, reference):
    """The recorded models as the original's training file, converted."""
    folder = tmp_path_factory.mktemp("original")
    for name, heads in (("A_resnet_aspp", None), ("A_resnet_fcn", None), ("A_vit_aspp", 3)):
        recorded = reference(name)
        state = {key.removeprefix("state/"): recorded[key] for key in recorded.files if key.startswith("state/")}
        make.save_torch(folder / "x.pth.tar", {"epoch": 1, "state_dict": make.under("module.encoder_q.", state)})
        imported = import_checkpoint(folder / "x.pth.tar", heads=heads)
        checkpoints.write_variables(folder / name, imported.variables, imported.meta)
    return folder


def raw(images):
    """Recorded network inputs as images on [0, 1], before normalisation."""
    return jnp.asarray(images.transpose(0, 2, 3, 1) * np.array(STD, np.float32) + np.array(MEAN, np.float32))


@pytest.mark.parametrize("name", ["A_resnet_aspp", "A_resnet_fcn", "A_vit_aspp"])
def test_features_equal_the_recorded_ones(original, reference, name):
    """Dilations, heads and normalisation come with the checkpoint: nothing is said here."""
    recorded = reference(name)
    model, variables = cp2_jax.load(original / name, features="projection")
    found = jax.jit(model)(variables, raw(recorded["images"]))
    expected = recorded["out_eval"].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-5)
    assert found.dtype == jnp.float32 and model.stride == 16
    if name == "A_vit_aspp":  # another size resizes the position table
        found = model(variables, raw(recorded["images_96x80"]))
        expected = recorded["out_eval_96x80"].transpose(0, 2, 3, 1)
        np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-5)
        with pytest.raises(ValueError, match="multiples of its patch, 16"):
            model(variables, jnp.zeros((1, 50, 64, 3), jnp.uint8))


def test_kinds_of_features(original):
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
    model, variables = cp2_jax.load(original / "A_vit_aspp")
    assert model.features == "head" and set(variables["params"]) == {"backbone", "head"}
    apply = jax.jit(model)
    head = apply(variables, images)
    assert head.shape == (2, 2, 3, 16)
    # uint8 and float images are the same images.
    np.testing.assert_allclose(apply(variables, images.astype(np.float32) / 255), head, atol=1e-5)
    images = images[:, :, :40]
    stages, variables = cp2_jax.load(original / "A_resnet_aspp", features="stages")
    found = jax.eval_shape(stages, variables, images)
    assert [x.shape for x in found] == [(2, 8, 10, 32), (2, 4, 5, 64), (2, 2, 3, 128), (2, 2, 3, 256)]
    backbone, variables = cp2_jax.load(original / "A_resnet_aspp", features="backbone", output_stride=8)
    assert backbone.stride == 8 and jax.eval_shape(backbone, variables, images).shape == (2, 4, 5, 256)


def test_a_runs_own_settings_are_used(tmp_path):
    """Work directories of pretraining and finetuning: model, normalisation and position table are those of the run."""
    config = pretrain_r50_aspp.get_config()
    config.image_size, config.model.mean, config.model.std = 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    config.model.update(backbone="vit", head="fcn", projection_dim=8)
    config.model.vit.update(patch=8, width=24, depth=1, heads=3, final_norm=True)
    config.model.fcn.channels = 6
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 32, 3), dtype=np.uint8)
    for kind, top in (("pretrain", "projection"), ("finetune", "classifier")):
        if kind == "finetune":
            normalization = dict(mean=config.model.mean, std=config.model.std)
            model = config.model
            config = finetune_voc.get_config()
            config.model.update(model)
            config.image_size = 32
            config.data.update(normalization)
            config.model.num_classes = 4
        config.model.dtype = "float32"
        network = segmenter.build(config.model, top=top, image_size=32)
        variables = jax.jit(lambda net=network: net.init(jax.random.key(1), jnp.zeros((1, 32, 32, 3)), train=False))()
        config.model.dtype = "bfloat16"  # the run's; features are computed in float32 all the same
        meta = {"kind": kind, "config": config.to_dict()}
        checkpoints.write_variables(tmp_path / kind, jax.tree.map(np.asarray, dict(variables)), meta)
        normalized = (images / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
        wanted = jax.jit(functools.partial(network.apply, method="features"))
        expected = wanted(variables, jnp.asarray(normalized, jnp.float32))
        model, loaded = cp2_jax.load(tmp_path / kind)
        np.testing.assert_allclose(jax.jit(model)(loaded, images), expected, rtol=1e-4, atol=1e-5)
    logits, loaded = cp2_jax.load(tmp_path / "finetune", features="logits")
    found = jax.jit(logits)(loaded, images)
    assert found.shape == (2, 5, 4, 4)
    expected = jax.jit(functools.partial(network.apply, train=False))(variables, jnp.asarray(normalized, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_loaded(tmp_path):
    make.save_torch(tmp_path / "moco.pth.tar", make.TORCH["moco_v2"][1])
    imported = import_checkpoint(tmp_path / "moco.pth.tar")
    checkpoints.write_variables(tmp_path / "moco", imported.variables, imported.meta)
    assert cp2_jax.load(tmp_path / "moco")[0].features == "backbone"  # all that there is
    with pytest.raises(CheckpointError, match="moco has no head, only backbone"):
        cp2_jax.load(tmp_path / "moco", features="head")
    with pytest.raises(ConfigError, match=r"features=heads: must be one of stages, .*did you mean head\?"):
        cp2_jax.load(tmp_path / "moco", features="heads")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        cp2_jax.load(tmp_path / "nowhere")
    checkpoints.write_variables(tmp_path / "bare", {"params": {"backbone": np.zeros(1)}}, {})
    with pytest.raises(CheckpointError, match="bare does not say what model it is"):
        cp2_jax.load(tmp_path / "bare")
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        operator.attrgetter("lode")(cp2_jax)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 32, 48), np.uint8), r"\(2, 3, 32, 48\): channels come last here: images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((32, 48, 3), np.uint8), r"\(32, 48, 3\): that is one image, a batch is needed: images\[None\]"),
        (np.zeros((3, 32, 48), np.uint8), "that is one image"),
        (np.zeros((2, 32, 48, 4), np.uint8), r"RGB images of shape \[batch, height, width, 3\] are needed"),
        (np.zeros((32, 48), np.uint8), r"RGB images of shape \[batch, height, width, 3\] are needed"),
        (np.zeros((2, 32, 48, 3), np.int32), "dtype int32: uint8 in 0 to 255, or floats in 0 to 1"),
        (
            np.full((2, 32, 48, 3), 250.0, np.float32),
            "from 250 to 250: floats are taken to be in 0 to 1; divide them by 255",
        ),
        (np.full((2, 32, 48, 3), -2.0, np.float32), "they are normalised by the function itself"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(original, images, message):
    model, variables = cp2_jax.load(original / "A_resnet_aspp", features="backbone")
    with pytest.raises(ValueError, match=message):
        model(variables, images)
    with pytest.raises(ValueError, match=r"images are a list: give one array, .*; numpy.stack makes it of several"):
        model(variables, list(images))
    if images.dtype != np.float32:  # shapes and dtypes are known to the compiler, values are not
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model, variables, images)


def test_importing_the_package_imports_no_jax():
    """Entry points set JAX's flags first."""
    code = "import sys, cp2_jax; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=checkpoints.__file__.rpartition("/cp2_jax/")[0])
