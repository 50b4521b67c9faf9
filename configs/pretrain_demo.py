"""CP2 in small: a narrow ResNet-18 + ASPP on the demo scenes (64x64), minutes on a laptop; see scripts/quickstart.sh.

    python scripts/prepare_data.py demo --output data/demo
    python scripts/pretrain.py --config configs/pretrain_demo.py --workdir runs/demo/pretrain

What changes against the paper is the size: 64-pixel images want output stride 8 and small atrous rates, and a run of
minutes wants a short queue, a faster key encoder and AdamW.
"""

from configs import pretrain_r50_aspp


def get_config():
    config = pretrain_r50_aspp.get_config()
    config.image_size = 64
    config.batch_size = 64
    config.epochs = 0
    config.steps = 1000
    config.bn_groups = 2
    config.data.source = "tfds"
    config.data.path = "data/demo"
    config.data.probe_split = "validation"
    config.data.workers = 0
    config.augment.blur_sigma = (0.1, 0.6)  # MoCo v2's, scaled to 64 pixels
    config.augment.mask_patch = 8  # one feature, as in the paper
    config.model.dtype = "float32"
    config.model.resnet.depth = 18
    config.model.resnet.width = 16
    config.model.resnet.stem_width = 16
    config.model.resnet.output_stride = 8
    config.model.aspp.channels = 64
    config.model.aspp.dilations = (1, 2, 3, 4)
    config.loss.queue_size = 4096
    config.loss.momentum = 0.99
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 50
    config.log_every = 20
    config.save_every = 250
    config.picture_every = 500
    config.probe_every = 100
    config.probe_images = 64
    return config
