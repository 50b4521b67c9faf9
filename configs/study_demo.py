"""The small study (docs/results.md): the paper's ablations on the demo scenes, made for two CPU cores.

    python scripts/prepare_data.py demo --output data/study --size 48 --labelled 400
    python scripts/study.py --config configs/study_demo.py --workdir runs/study --config.data=data/study
    python scripts/reproduce.py collect runs/study --output docs/study

48-pixel scenes (6x6 features at output stride 8), a ResNet of four residual blocks, 40 labels drawn anew for each seed.
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
    config.pretrain.image_size = 48
    config.pretrain.batch_size = 32
    config.pretrain.steps = 500
    config.pretrain.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.pretrain.model.aspp.channels = 32
    config.pretrain.loss.queue_size = 2048
    config.pretrain.probe_images = 128

    config.finetune = finetune_demo.get_config()
    config.finetune.image_size = 48
    config.finetune.steps = 200
    config.finetune.data.crop_size = (48, 48)
    config.finetune.data.limit = 40
    config.finetune.model = config.pretrain.model.copy_and_resolve_references()
    config.finetune.model.num_classes = config.finetune.data.num_classes
    config.finetune.model.dropout = 0.1
    return config
