"""Cityscapes fine (2,975 / 500 images) from a CP2 model: crops of 512x1024, batch 8, 60,000 steps (paper, section 4.1).

    python scripts/finetune.py --config configs/finetune_cityscapes.py --workdir runs/cityscapes \
        --config.data.path=/data/cityscapes --config.init.checkpoint=runs/cp2_r50_aspp

Expected: 77.3 mIoU on the validation set after 200 epochs of pretraining (Table 1). Reads leftImg8bit/{train,val} and
gtFine/{train,val} as downloaded: the 34 label ids become 19 training labels here, no file has to be converted.
"""

from cp2_jax.configs import finetune_voc

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
COLORS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
# The label id of each class in gtFine_labelIds.png.
IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def get_config(variants=""):
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
