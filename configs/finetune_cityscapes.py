"""Cityscapes fine (2,975 / 500 images) from a CP2 model: crops of 512x1024, batch 8, 60,000 steps (paper, section 4.1).

    cp2 finetune --config finetune_cityscapes --workdir runs/cityscapes \
        --config.data.path=/data/cityscapes --config.init.checkpoint=runs/cp2_r50_aspp

Expected: 77.3 mIoU on the validation set after 200 epochs of pretraining (Table 1). Reads leftImg8bit/{train,val} and
gtFine/{train,val} as downloaded: the 34 label ids become 19 training labels here, no file has to be converted.
"""

from cp2_jax.configs import finetune_voc

# name → (label id in gtFine_labelIds.png, RGB)
CLASS_TABLE = {
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}
CLASSES = tuple(CLASS_TABLE)
IDS = tuple(value for value, _ in CLASS_TABLE.values())
COLORS = tuple(color for _, color in CLASS_TABLE.values())


def get_config(variants: str = ""):
    """Return the config; see `finetune_voc.with_variants`."""
    config = finetune_voc.get_config()
    config.batch_size = 8
    config.steps = 60_000
    config.data.images = "leftImg8bit"
    config.data.labels = "gtFine"
    config.data.image_suffix = "_leftImg8bit"
    config.data.label_suffix = "_gtFine_labelIds"
    config.data.split = "train"
    config.data.eval_split = "val"
    config.data.num_classes = len(CLASSES)
    config.data.class_names = CLASSES
    config.data.class_colors = COLORS
    unused = set(range(34)) - set(IDS)
    config.data.label_map = tuple((i, 255) for i in sorted(unused)) + tuple((i, c) for c, i in enumerate(IDS))
    config.data.resize = (2048, 1024)
    config.data.crop_size = (512, 1024)
    config.model.num_classes = len(CLASSES)
    config.optimizer.learning_rate = 0.01
    config.evaluation.resize = (2048, 1024)
    return finetune_voc.with_variants(config, variants)
