"""What several tests make small."""

import jax
import jax.numpy as jnp

from configs import finetune_voc


def finetune_config():
    """A finetuning config: ResNet-18 four channels wide, 3 classes, 32x32 images."""
    config = finetune_voc.get_config()
    config.model.resnet.update(depth=18, width=4, output_stride=8, stem_width=4)
    config.model.aspp.update(channels=8, dilations=(1, 2))
    config.model.dtype = "float32"
    config.model.num_classes = config.data.num_classes = 3
    config.image_size = 32
    return config


def tiny_config(**changes):
    """A ResNet-18 four channels wide, 3 classes, 32x32 images."""
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
