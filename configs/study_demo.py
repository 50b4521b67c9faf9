"""The small study (docs/results.md): the paper's ablations on the demo scenes, made for two CPU cores.

    cp2 prepare demo --output data/study --size 48 --labelled 400
    cp2 study --config study_demo --workdir runs/study --config.data=data/study
    cp2 reproduce collect runs/study --output docs/study

Data and model are the demo's (configs/pretrain.py:demo, configs/finetune_demo.py), with a narrower head and fewer steps, so
that 30 pretrainings fit; 40 labels, drawn anew for each seed.
"""

from ml_collections import ConfigDict

from cp2_jax.configs import finetune_demo, pretrain
from cp2_jax.reproduce.study import METHODS


def get_config():
    config = ConfigDict()
    config.data = ""  # where the scenes are
    config.seeds = (0, 1, 2)
    config.methods = tuple(METHODS)

    config.pretrain = pretrain.get_config("demo")
    config.pretrain.steps = 1200
    config.pretrain.augment.blur = 0.0
    config.pretrain.model.aspp.channels = 32

    config.finetune = finetune_demo.get_config()
    config.finetune.steps = 400
    config.finetune.data.limit = 40
    config.finetune.model = config.pretrain.model.copy_and_resolve_references()
    config.finetune.model.num_classes = config.finetune.data.num_classes
    config.finetune.model.dropout = 0.1
    return config
