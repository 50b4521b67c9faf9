"""CamVid (SegNet's 11 classes, 367 / 101 images of 360x480) from a CP2 model; otherwise as finetune_voc.py.

    cp2 finetune --config finetune_camvid --workdir runs/camvid \
        --config.data.path=/data/camvid --config.init.checkpoint=runs/cp2_r50_aspp

Reads images/{train,val} and labels/{train,val}, where value 11 is void (SegNet's own folders, train and trainannot, by
--config.data.images='{split}' --config.data.labels='{split}annot'). Not in the paper; from an ImageNet model about
70 mIoU is usual. From scratch leave out init.checkpoint and use --config.optimizer.learning_rate=0.01.
"""

from cp2_jax.configs import finetune_voc

# name → RGB
PALETTE = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CLASSES = tuple(PALETTE)
COLORS = tuple(PALETTE.values())


def get_config(variants: str = ""):
    """Return the config; see `finetune_voc.with_variants`."""
    config = finetune_voc.get_config()
    config.batch_size = 8
    config.steps = 4000
    config.data.images = "images"
    config.data.labels = "labels"
    config.data.split = "train"
    config.data.eval_split = "val"
    config.data.num_classes = len(CLASSES)
    config.data.class_names = CLASSES
    config.data.class_colors = COLORS
    config.data.label_map = ((11, 255),)
    config.data.resize = ()
    config.data.crop_size = (360, 480)
    config.model.num_classes = len(CLASSES)
    config.evaluation.batch_size = 1
    config.evaluation.resize = ()
    config.save_every = 500
    config.eval_every = 1000
    config = finetune_voc.with_variants(config, variants)
    if config.model.backbone == "vit":
        config.data.crop_size = (352, 480)  # multiples of its patch
    return config
