"""CamVid (SegNet's 11 classes, 367 / 101 images of 360x480) from a CP2 model; otherwise as finetune_voc.py.

    python scripts/finetune.py --config configs/finetune_camvid.py --workdir runs/camvid \
        --config.data.path=/data/camvid --config.init.checkpoint=runs/cp2_r50_aspp

Reads images/{train,val} and labels/{train,val}, where value 11 is void (SegNet's own folders, train and trainannot, by
--config.data.images='{split}' --config.data.labels='{split}annot'). Not in the paper; from an ImageNet model about
70 mIoU is usual. From scratch leave out init.checkpoint and use --config.optimizer.learning_rate=0.01.
"""

from cp2_jax.configs import finetune_voc

CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
COLORS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


def get_config(variants=""):
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
    config.data.crop_size = (352 if "vit" in variants else 360, 480)  # a ViT needs multiples of its patch
    config.model.num_classes = len(CLASSES)
    config.evaluation.batch_size = 1
    config.evaluation.resize = ()
    config.save_every = 500
    config.eval_every = 1000
    return finetune_voc.with_variants(config, variants)
