"""Options of backbones and heads: their defaults are the configs', and what each changes in the network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.tiny import choose_vit, tiny_config

from configs import pretrain
from cp2_jax.models import inputs, resize, segmenter
from cp2_jax.models.aspp import ASPPHead
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.heads import HEADS
from cp2_jax.models.network import Network
from cp2_jax.models.resnet import ResNet, ResNetOptions
from cp2_jax.models.vit import ViT, ViTOptions
from cp2_jax.options import ConfigError
from cp2_jax.runs import settings
from cp2_jax.segmentation import padded
from cp2_jax.segmentation import step as finetune_step
from cp2_jax.segmentation.predictor import make_predictor


@pytest.mark.parametrize("name", [*BACKBONES, *HEADS])
def test_configs_have_every_option_with_its_default(name):
    """A config without a key, as converted checkpoints have them, is one with the default."""
    model, options = pretrain.get_config().model, {**BACKBONES, **HEADS}[name].options
    assert dict(model.get(name, {})) == dataclasses.asdict(options())
    changed = Network.from_config({"backbone": name if name in BACKBONES else "resnet"})
    assert name not in BACKBONES or changed.backbone_options == options()


def stage_of(options, image):
    model = ResNet(options)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), image, False)
    return variables, jax.jit(lambda v: model.apply(v, image, False))(variables)


def test_basic_blocks_dilate_both_convolutions_or_the_first():
    """By hand: with the second kernel cut to its centre a rate makes no difference; otherwise it does."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 64, 3)), jnp.float32)
    both = ResNetOptions(depth=18, width=2, stem_width=2, stage_sizes=(1, 1, 1, 1), output_stride=8)
    first = dataclasses.replace(both, basic_dilation="first")
    variables, maps = stage_of(both, image)
    other = jax.jit(lambda v: ResNet(first).apply(v, image, False))
    for stage, (a, b) in enumerate(zip(maps, other(variables), strict=True)):
        assert bool(jnp.array_equal(a, b)) == (stage < 2), stage  # the third and fourth stages are dilated
    params = jax.tree.map(jnp.asarray, variables["params"])
    for stage in ("layer3_0", "layer4_0"):
        kernel = params[stage]["conv2"]["kernel"]
        params[stage]["conv2"]["kernel"] = jnp.zeros_like(kernel).at[1, 1].set(kernel[1, 1])
    variables = {**variables, "params": params}
    maps = jax.jit(lambda v: ResNet(both).apply(v, image, False))(variables)
    np.testing.assert_allclose(maps[3], other(variables)[3], rtol=1e-5, atol=1e-5)
    assert BACKBONES["resnet"].options().basic_dilation == "both"  # what this project's runs always had
    with pytest.raises(ConfigError, match="basic_dilation=second: must be one of both, first"):
        ResNetOptions.from_config({"basic_dilation": "second"})


def test_output_stride_4_is_the_same_network_with_more_features():
    """Every stage keeps the stem's resolution, and the same weights serve."""
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 48, 3)), jnp.float32)
    coarse = ResNetOptions(depth=18, width=2, stem_width=2, stage_sizes=(1, 1, 1, 1), output_stride=8)
    variables, maps = stage_of(coarse, image)
    fine = dataclasses.replace(coarse, output_stride=4)
    other = jax.jit(lambda v: ResNet(fine).apply(v, image, False))(variables)
    assert [x.shape for x in other] == [(1, 8, 12, 2 * 2**stage) for stage in range(4)]
    np.testing.assert_array_equal(other[0], maps[0])
    assert maps[1].shape[1:3] == (4, 6)
    assert Network.from_config({"backbone": "resnet", "resnet": dataclasses.asdict(fine)}).stride == 4


@pytest.mark.parametrize("remainder", ["drop", "stretch"])
def test_a_vit_drops_or_pads_what_is_no_whole_patch(remainder):
    options = ViTOptions(patch=8, width=12, depth=1, heads=3, mlp_ratio=2)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 21, 30, 3)), jnp.float32)
    plain = ViT(options, image_size=16)
    variables = jax.jit(plain.init, static_argnums=2)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), False)
    other = ViT(dataclasses.replace(options, remainder=remainder), image_size=16)
    (found,) = jax.jit(other.apply, static_argnums=2)(variables, image, False)
    whole = image[:, :16, :24] if remainder == "drop" else jnp.zeros((1, 24, 32, 3)).at[:, :21, :30].set(image)
    np.testing.assert_array_equal(found, jax.jit(plain.apply, static_argnums=2)(variables, whole, False)[0])
    with pytest.raises(ValueError, match="21 x 30 pixels: a ViT needs multiples of its patch, 8"):
        plain.apply(variables, image, False)
    network = Network.from_config({"backbone": "vit", "vit": dataclasses.asdict(options) | {"remainder": remainder}})
    assert network.multiple == 1 and network.stride == 8
    if remainder == "drop":
        with pytest.raises(ValueError, match="smaller than a ViT's patch, 8"):
            ViT(network.backbone_options, image_size=16).apply(variables, image[:, :7], False)


def test_the_originals_way_with_any_size_in_training_and_prediction():
    """The map of the whole patches is taken for one of the whole image: labels are upsampled from it, without a cut."""
    config = tiny_config()
    choose_vit(config.model)
    config.model.vit.remainder = "drop"
    config.evaluation.resize = ()
    Network.from_config(config.model).check_sides("data.crop_size", (21, 30))
    model, variables = finetune_step.build_model(config), finetune_step.init_variables(config)
    image = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    found = make_predictor(config).predict_image(variables, image)
    normalized = inputs.normalize(jnp.asarray(image[None, :16, :24]), config.model.mean, config.model.std)
    config.model.vit.remainder = "pad"
    logits = segmenter.build(config.model, top="classifier", image_size=32).apply(variables, normalized, train=False)
    assert logits.shape[1:3] == (2, 3)
    np.testing.assert_array_equal(found, jnp.argmax(resize.bilinear(logits, (21, 30)), axis=-1)[0])
    shapes = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((1, 21, 30, 3)), train=False), variables)
    assert shapes.shape == (1, 2, 3, 3)


def test_padded_pooling_in_bfloat16_counts_beyond_256():
    """1,036 pixels are 1,040 in bfloat16, 0.4% off: sums and counts are float32."""

    def pooled(x):
        with nn.intercept_methods(padded.masking(jnp.array([[28, 37]]), (40, 40), HEADS["aspp"].masking(None))):
            return ASPPHead().apply({}, x, method="pool")

    ones = pooled(jnp.ones((1, 40, 40, 2), jnp.bfloat16))
    assert ones.dtype == jnp.bfloat16 and bool((ones == 1).all())
    many = jnp.asarray(np.random.default_rng(0).uniform(0, 2, (1, 40, 40, 2)), jnp.bfloat16)
    expected = np.asarray(many, np.float64)[:, :28, :37].mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(np.asarray(pooled(many), np.float64), expected, rtol=2**-8)


def test_runs_of_older_versions_keep_their_network():
    """Their configs lack the keys that were added since."""
    upgraded = settings.upgrade({"kind": "finetune", "model": {"resnet": {"depth": 18}, "vit": {"patch": 8}}, "data": {}})
    assert upgraded["model"]["resnet"] == {"depth": 18, "basic_dilation": ResNetOptions().basic_dilation}
    assert upgraded["model"]["vit"] == {"patch": 8, "remainder": ViTOptions().remainder}
