"""CP2 in small: a narrow residual network + ASPP on the demo scenes, minutes on a laptop; see scripts/quickstart.sh.

    python scripts/prepare_data.py demo --output data/demo --size 48
    python scripts/pretrain.py --config configs/pretrain_demo.py --workdir runs/demo/pretrain

What changes against the paper is the size: crops of 32 pixels want output stride 8 and small atrous rates, and a run of
minutes wants a short queue, a somewhat faster key encoder and AdamW. Backgrounds come from the batch, which decodes a
third of the images; what little colour the scenes have says nothing about their classes and is varied more.
"""

from cp2_jax.configs import pretrain_r50_aspp


def get_config():
    config = pretrain_r50_aspp.get_config()
    config.image_size = 32
    config.batch_size = 64
    config.epochs = 0
    config.steps = 4000
    config.bn_groups = 2
    config.data.source = "tfds"
    config.data.path = "data/demo"
    config.data.probe_split = "validation"
    config.data.workers = 0
    config.data.crop_scale = (0.4, 1.0)
    config.data.backgrounds = "in_batch"
    config.augment.saturation = 0.8
    config.augment.hue = 0.25
    config.augment.grayscale = 0.5
    config.augment.blur_sigma = (0.1, 0.3)  # MoCo v2's, scaled to 32 pixels
    config.augment.mask_patch = 8  # one feature, as in the paper
    config.model.dtype = "float32"
    config.model.resnet.depth = 18
    config.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.model.resnet.width = 16
    config.model.resnet.stem_width = 16
    config.model.resnet.output_stride = 8
    config.model.aspp.channels = 64
    config.model.aspp.dilations = (1, 2, 3)
    config.loss.queue_size = 1024
    # The key encoder has to move little over the queue's 16 batches. At 0.99 and higher rates fresh keys are told from old
    # ones by their age alone: the loss falls while the learning rate is high, and little is learned (docs/results.md).
    config.loss.momentum = 0.995
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.01
    config.optimizer.warmup_steps = 100
    config.log_every = 50
    config.save_every = 1000
    config.picture_every = 2000
    config.probe_every = 500
    config.probe_images = 128
    return config
