"""The demo scenes (48x48, 6 classes) from a small CP2 model and few labels; see scripts/quickstart.sh.

    cp2 finetune --config finetune_demo --workdir runs/demo/finetune \
        --config.data.path=data/demo --config.init.checkpoint=runs/demo/pretrain

Expected: docs/results.md. Without init.checkpoint the same model starts from scratch, at the same settings.
"""

from cp2_jax.configs import finetune_voc, pretrain
from cp2_jax.data.demo import CLASSES


def get_config(variants: str = ""):
    """Return the config; see `finetune_voc.with_variants`."""
    config = finetune_voc.get_config()
    config.image_size = 32
    config.batch_size = 16
    config.steps = 600
    config.data.source = "tfds"
    config.data.path = "data/demo"
    config.data.split = "train_labelled"
    config.data.eval_split = "validation"
    config.data.num_classes = len(CLASSES)
    config.data.class_names = CLASSES
    config.data.resize = ()
    config.data.scale_range = (0.75, 1.5)
    config.data.crop_size = (48, 48)
    config.data.workers = 0
    config.model = pretrain.get_config("demo").model
    config.model.num_classes = len(CLASSES)
    config.model.dropout = 0.1
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.min_learning_rate = 0.0
    config.evaluation.batch_size = 40
    config.evaluation.resize = ()
    config.log_every = 20
    config.save_every = 100
    config.eval_every = 0
    config = finetune_voc.with_variants(config, variants)
    config.optimizer.weight_decay = 0.01  # whatever the head: of 40 labelled scenes
    return config
