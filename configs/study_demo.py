"""The small study (docs/results.md): the paper's ablations on the demo scenes, made for two CPU cores.

    python scripts/prepare_data.py demo --output data/study --size 32 --labelled 400
    python scripts/study.py --config configs/study_demo.py --workdir runs/study --config.data=data/study
    python scripts/reproduce.py collect runs/study --output docs/study

32-pixel scenes (4x4 features at output stride 8) and a ResNet of four residual blocks, so that 1,500 steps take a minute;
40 labels, drawn anew for each seed. Classes are textures and colours are drawn at random, so colour is what an instance is
told by and a class is not: views lose most of it, or pretraining learns what no label asks for.
"""

from ml_collections import ConfigDict

from configs import finetune_demo, pretrain_demo
from cp2_jax.reproduce.study import METHODS


def get_config():
    config = ConfigDict()
    config.data = ""  # where the scenes are
    config.seeds = (0, 1, 2)
    config.methods = tuple(METHODS)

    config.pretrain = pretrain_demo.get_config()
    config.pretrain.image_size = 32
    config.pretrain.batch_size = 32
    config.pretrain.steps = 1500
    config.pretrain.augment.hue = 0.5
    config.pretrain.augment.saturation = 0.8
    config.pretrain.augment.grayscale = 0.8
    config.pretrain.augment.blur = 0.0
    config.pretrain.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.pretrain.model.aspp.channels = 32
    config.pretrain.model.aspp.dilations = (1, 2, 3)
    config.pretrain.loss.queue_size = 1024
    config.pretrain.optimizer.learning_rate = 3e-3
    config.pretrain.optimizer.warmup_steps = 100
    config.pretrain.probe_images = 128

    config.finetune = finetune_demo.get_config()
    config.finetune.image_size = 32
    config.finetune.steps = 400
    config.finetune.optimizer.learning_rate = 3e-3
    config.finetune.data.crop_size = (32, 32)
    config.finetune.data.limit = 40
    config.finetune.model = config.pretrain.model.copy_and_resolve_references()
    config.finetune.model.num_classes = config.finetune.data.num_classes
    config.finetune.model.dropout = 0.1
    return config
