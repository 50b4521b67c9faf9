"""PASCAL VOC 2012 from a CP2 model: ResNet-50 + ASPP, crops of 512, batch 16, 40,000 steps (paper, section 4.1).

    python scripts/finetune.py --config configs/finetune_voc.py --workdir runs/voc \
        --config.data.path=/data/VOCdevkit/VOC2012 --config.init.checkpoint=runs/cp2_r50_aspp

Expected: 77.6 mIoU on the validation set after 200 epochs of pretraining (Table 1, row CP2, ResNet-50). Needs SBD's
masks in SegmentationClassAug and the list train_aug.txt (10,582 images): scripts/prepare_data.py voc makes both.

Variants follow a colon, several after commas, e.g. --config configs/finetune_voc.py:vit,fcn; every finetuning config has
them, for each starts from this one and changes what its first line says. See VARIANTS.
"""

from ml_collections import ConfigDict

from cp2_jax.configs import pretrain_r50_aspp

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def baseline(config):
    """Another method's backbone: the head starts at random, and weight decay is on (section 4.1)."""
    config.init.head = "random"
    config.optimizer.weight_decay = 5e-4


def fcn(config):
    """The FCN head (Table 2)."""
    config.model.head = "fcn"


def vit(config):
    """ViT-S/16, by AdamW (section 4.1)."""
    config.model.backbone = "vit"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.weight_decay = 0.01


def original(config):
    """The network of pretraining with `:original` (docs/paper_vs_code.md)."""
    config.model.update_from_flattened_dict(pretrain_r50_aspp.ORIGINAL, strip_prefix="model.")


# The later ones of a list have the last word; "baseline,vit" has the ViT's weight decay.
VARIANTS = {"baseline": baseline, "fcn": fcn, "vit": vit, "original": original}


def with_variants(config: ConfigDict, variants: str) -> ConfigDict:
    """Apply the variants that are named, separated by commas."""
    for name in filter(None, variants.split(",")):
        if name not in VARIANTS:
            raise ValueError(f"no variant {name!r}; there are {', '.join(VARIANTS)}")
        VARIANTS[name](config)
    return config


def get_config(variants: str = "") -> ConfigDict:
    config = ConfigDict()

    config.kind = "finetune"
    config.seed = 0
    config.image_size = 224  # of pretraining, for which a ViT's position table was made
    config.batch_size = 16  # global, over all devices and processes
    config.epochs = 0
    config.steps = 40_000
    config.bn_groups = 1  # synchronised batch norm
    config.remat = False  # True: blocks are computed again in the backward pass instead of kept (less memory)
    config.shard_state = False  # True: parameters and optimiser state split over the devices instead of copied

    config.init = ConfigDict()
    config.init.checkpoint = ""  # work directory or checkpoint of a pretraining, or a converted model; empty: from scratch
    config.init.head = "checkpoint"  # or "random": the backbone alone is loaded

    config.data = ConfigDict()
    config.data.source = "folder"  # or "tfds": features image and segmentation_mask
    config.data.path = ""
    config.data.images = "JPEGImages"
    config.data.labels = "SegmentationClassAug"
    config.data.image_suffix = ""  # end of the file names that images and masks do not share
    config.data.label_suffix = ""
    config.data.split = "ImageSets/Segmentation/train_aug.txt"  # a list of names, or a folder in both
    config.data.eval_split = "ImageSets/Segmentation/val.txt"
    config.data.classes = ""  # a file with a class a line, `name` or `name r g b`, instead of the next three keys
    config.data.num_classes = len(CLASSES)
    config.data.class_names = CLASSES
    config.data.class_colors = ()  # RGB of each class; empty: VOC's palette
    config.data.ignore_label = 255
    config.data.label_map = ()  # pairs (value in the mask, label), e.g. ((11, 255),) to ignore value 11
    config.data.limit = 0.0  # of training images: 0 all, below 1 a share, else a number
    config.data.limit_seed = 0  # which ones
    config.data.resize = (2048, 512)  # long and short edge that scale_range multiplies; empty: the image's own size
    config.data.scale_range = (0.5, 2.0)
    config.data.crop_size = (512, 512)  # height, width
    config.data.crop_max_ratio = 0.75  # a crop with more of one class is drawn again
    config.data.flip = 0.5
    config.data.photometric = True
    config.data.workers = 4  # processes; 0: threads of the training process
    config.data.prefetch = 2  # batches kept ready on the device

    # The model of pretraining, whose projection makes way for a classifier.
    config.model = pretrain_r50_aspp.get_config().model
    config.model.num_classes = len(CLASSES)
    config.model.dropout = 0.1

    # MMSegmentation's auxiliary head on the backbone's third stage, for training alone. The paper has none.
    config.auxiliary = ConfigDict()
    config.auxiliary.weight = 0.0  # of its loss; MMSegmentation: 0.4. 0: no such head
    config.auxiliary.stage = 2  # of the backbone, from 0
    config.auxiliary.channels = 256
    config.auxiliary.num_convs = 1

    config.loss = ConfigDict()
    # "all" pixels, ignored ones with loss 0, as the original and MMSegmentation: the default, for the paper's learning
    # rates go with it. "labelled": the usual mean, larger where much is ignored.
    config.loss.average = "all"

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.003
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 0.0  # for CP2 models; 5e-4 for baselines with a random head
    config.optimizer.schedule = "poly"
    config.optimizer.warmup_steps = 0
    config.optimizer.power = 0.9
    config.optimizer.min_learning_rate = 1e-4

    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 0  # global; 0: one image a device
    config.evaluation.resize = (2048, 512)  # long and short edge the image is fitted into; empty: its own size
    config.evaluation.ratios = (1.0,)  # several: multi-scale, e.g. (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    config.evaluation.flip = False
    config.evaluation.window = ()  # sliding windows, e.g. (512, 512); empty: whole image
    config.evaluation.stride = ()  # of the windows, e.g. (341, 341)
    config.evaluation.programs = 8  # compiled at most where sizes differ, by exact masked padding; 0: one for each size
    config.evaluation.limit = 0.0  # of validation images, as data.limit; the final figure takes all

    config.log_every = 50  # steps
    config.save_every = 1000
    config.keep = 1
    config.eval_every = 4000  # the best model is kept in WORKDIR/best; 0: only at the end
    return with_variants(config, variants)
