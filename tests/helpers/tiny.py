"""What several tests make small."""

import jax
import jax.numpy as jnp

from configs import finetune_voc, pretrain_r50_aspp
from cp2_jax.models.backbones import BACKBONES
from helpers import toy_backbone


def finetune_config():
    """A finetuning config: a residual network four channels wide, 3 classes, 32x32 images."""
    config = finetune_voc.get_config()
    config.model.resnet.update(depth=18, stage_sizes=(1, 1, 1, 1), width=4, output_stride=8, stem_width=4)
    config.model.aspp.update(channels=8, dilations=(1, 2))
    config.model.dtype = "float32"
    config.model.num_classes = config.data.num_classes = 3
    config.image_size = 32
    return config


def choose_vit(model, depth=1):
    """Make a config's section `model` that of a small ViT with an FCN head: quick, too, and known to every process."""
    model.update(backbone="vit", head="fcn")
    model.vit.update(width=12, depth=depth, heads=3, patch=8)
    model.fcn.update(channels=4, num_convs=1, dilation=1)


def toy_pretrain_config(monkeypatch):
    """A pretraining config for what does not depend on the network: two convolutions and a small FCN head, 32x32 images.

    The step with a ResNet takes ten times as long to compile.
    """
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    config = pretrain_r50_aspp.get_config()
    config.update(image_size=32, batch_size=8, bn_groups=1)
    toy_backbone.choose(config.model)
    config.model.dtype = "float32"
    config.loss.queue_size = 16
    return config


def toy_study(config, data, monkeypatch):
    """Make a study's config that of the toy network on 32x32 images of `data`, two steps of each training."""
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    for part in (config.pretrain, config.finetune):
        part.image_size, part.batch_size, part.steps = 32, 4, 2
        part.data.path = str(data)
        toy_backbone.choose(part.model)
    config.pretrain.loss.queue_size, config.pretrain.probe_images = 8, 4
    config.pretrain.augment.update(jitter_probability=0.0, grayscale=0.0)  # shown elsewhere; each arm would compile them
    config.finetune.data.crop_size = (32, 32)
    config.finetune.evaluation.batch_size = 4
    return config


def tiny_config(**changes):
    """A residual network four channels wide, 3 classes, 32x32 images."""
    config = finetune_config()
    config.data.class_names = ("left", "right", "other")
    config.data.crop_size = (32, 32)
    config.batch_size, config.steps = 8, 40
    config.optimizer.learning_rate = 0.1
    config.update(changes)
    return config


def differs(a, b):
    """Say whether two pytrees of one structure differ in any value."""
    return not all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.array_equal(x, y)), a, b)))
