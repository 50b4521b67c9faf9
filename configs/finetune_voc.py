"""PASCAL VOC 2012: ResNet-50 + ASPP, crops of 512, batch 16, 40,000 steps (paper, section 4.1).

    cp2 finetune --config finetune_voc --workdir runs/voc \
        --config.data.path=/data/VOCdevkit/VOC2012 --config.init.checkpoint=runs/cp2_r50_aspp

Expected on the validation set: 77.6 mIoU after 200 epochs of CP2 (Table 1, row CP2), 78.6 after Quick Tuning from MoCo
v2's 800 epochs (row CP2 QT r.800). Needs SBD's masks in SegmentationClassAug and the list train_aug.txt (10,582 images):
`cp2 prepare voc` makes both.

Variants follow a colon, in any order: `--config finetune_voc:vit,fcn`. Every finetuning config has them, for
each starts from this one and changes what its first line says.

| variant | what it is | expected on PASCAL VOC |
|---|---|---|
| `r50`, `aspp` (or nothing) | ResNet-50 + ASPP head, from a CP2 model | 77.6 mIoU (Table 1, row CP2) |
| `fcn` | the FCN head | 75.4 mIoU (Table 2, row CP2) |
| `vit` | ViT-S/16 by AdamW | 79.5 mIoU (Table 1, row CP2 QT v.300) |
| `baseline` | another method's backbone: the head starts at random | 74.9 mIoU (Table 1, row MoCo v2, 200) |
| `small` | sizes that fit the number of images and the machine, chosen at the start (docs/small_data.md) | |
| `original` | the network of a pretraining with `:original` (docs/paper_vs_code.md) | none |

Weight decay follows the head (section 4.1): none for a head that CP2 has pretrained; for a head that starts at random
(`baseline`) 5e-4, or 0.01 with AdamW.
"""

from ml_collections import ConfigDict

from cp2_jax.configs import _variants, pretrain

CLASSES = tuple(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse, "
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor".split(", ")
)


def original(config: ConfigDict) -> None:
    """The network of pretraining with `:original` (docs/paper_vs_code.md)."""
    config.model.update_from_flattened_dict(pretrain.ORIGINAL, strip_prefix="model.")


def vit(config: ConfigDict) -> None:
    """ViT-S/16 by AdamW; the backbone itself says with which settings (section 4.1)."""
    config.model.backbone = "vit"
    config.optimizer.update(_backbones().BACKBONES["vit"].finetune_optimizer)


def baseline(config: ConfigDict) -> None:
    """Another method's backbone: the head starts at random."""
    config.init.head = "random"


def small(config: ConfigDict) -> None:
    """Sizes that fit your images: -1 leaves a key open, for cp2_jax/segmentation/sizes.py to choose."""
    config.update(batch_size=-1, epochs=0, steps=-1, log_every=-1, save_every=-1, eval_every=-1)
    config.data.workers = -1


VARIANTS = {
    "paper": (("values",), pretrain.paper),
    "original": (("values",), original),
    "r50": (("backbone",), pretrain.r50),
    "vit": (("backbone",), vit),
    "aspp": (("head",), pretrain.aspp),
    "fcn": (("head",), pretrain.fcn),
    "baseline": (("start of the head",), baseline),
    "small": (("size",), small),
}


def with_variants(config: ConfigDict, variants: str) -> ConfigDict:
    """Return a finetuning config with its variants applied; the last thing that every finetuning config does.

    Weight decay follows the head, see `models.backbones.finetuning_decay`.

    Args:
      config: is changed in place.
      variants: names of `VARIANTS` with commas between them, in any order.

    Raises:
      ConfigError: for an unknown variant, or for two that choose the same thing.
    """
    _variants.apply(config, variants, VARIANTS)
    config.optimizer.weight_decay = _backbones().finetuning_decay(config.model.backbone, config.init.head)
    return config


def _backbones():
    from cp2_jax.models import backbones  # here, because it takes a second

    return backbones


def get_config(variants: str = "") -> ConfigDict:
    """Return the config of a finetuning on PASCAL VOC; see `with_variants`."""
    config = ConfigDict()

    config.kind = "finetune"  # which job the config is for
    config.seed = 0  # of the initial weights, the order of the images and every random choice
    config.image_size = 224  # of pretraining, for which a ViT's position table was made
    # -1 leaves a key open for `small` to choose: batch_size, steps, data.workers, and how often to look.
    config.batch_size = 16  # global, over all devices and processes
    config.epochs = 0  # length in epochs, where steps is 0
    config.steps = 40_000  # length of the run
    config.bn_groups = 1  # synchronised batch norm
    config.remat = False  # True: blocks are computed again in the backward pass instead of kept (less memory)
    config.shard_state = False  # True: parameters and optimiser state split over the devices instead of copied

    config.init = ConfigDict()
    config.init.checkpoint = ""  # work directory or checkpoint of a pretraining, or a converted model; empty: from scratch
    config.init.head = "checkpoint"  # or "random": the backbone alone is loaded

    config.data = _data()

    # The model of pretraining, whose projection makes way for a classifier.
    config.model = pretrain.get_config().model
    config.model.num_classes = len(CLASSES)  # as data.num_classes
    config.model.dropout = 0.1  # in front of the classifier, in training

    config.auxiliary = _auxiliary()

    config.loss = ConfigDict()
    # "all" pixels, ignored ones with loss 0, as the original and MMSegmentation: the default, for the paper's learning
    # rates go with it. "labelled": the usual mean, larger where much is ignored.
    config.loss.average = "all"

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "adamw"
    config.optimizer.learning_rate = 0.003  # its highest value
    config.optimizer.momentum = 0.9  # of SGD
    config.optimizer.weight_decay = 0.0  # for a head of CP2's; the variant "baseline" sets that of a random head
    config.optimizer.schedule = "poly"  # or "cosine", "cosine_by_epoch", "constant"
    config.optimizer.warmup_steps = 0  # steps in which the rate rises from 0
    config.optimizer.power = 0.9  # of the "poly" schedule
    config.optimizer.min_learning_rate = 1e-4  # lowest rate of the "poly" schedule

    config.tuning = _tuning()
    config.evaluation = _evaluation()

    config.log_every = 50  # steps between lines of metrics
    config.save_every = 1000  # steps between checkpoints
    config.keep = 1  # newest checkpoints kept
    config.eval_every = 4000  # the best model is kept in WORKDIR/best; 0: only at the end
    config.compare_with = ()  # lines in the chart of scores: pairs of words and mean IoU in %, e.g. (("paper", 77.6),)
    config.trackers = ""  # who else gets metrics and pictures: "mlflow", "wandb", or both with a comma (docs/tracking.md)
    return with_variants(config, variants)


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "folder"  # or "tar" (shards), "parquet", "tfds" (features image and segmentation_mask)
    data.path = ""  # folder of the data set
    data.images = "JPEGImages"  # folder of the images, below `path`
    data.labels = "SegmentationClassAug"  # folder of the masks, below `path`
    data.image_suffix = ""  # end of the file names that images and masks do not share
    data.label_suffix = ""  # likewise
    data.split = "ImageSets/Segmentation/train_aug.txt"  # a list of names, or a folder in both
    data.eval_split = "ImageSets/Segmentation/val.txt"  # likewise, for evaluation
    data.image_column = "image"  # of a "parquet" source
    data.mask_column = "mask"  # likewise
    data.value_range = ()  # values that become 0 and 255 in images of more than 8 bits, e.g. (0, 3000)
    data.exif = True  # turn photos as EXIF asks; False: masks were drawn on the photos as they are stored
    data.classes = ""  # a file with a class a line, `name` or `name r g b`, instead of the next three keys
    data.num_classes = len(CLASSES)  # background included
    data.class_names = CLASSES  # in the order of the labels
    data.class_colors = ()  # RGB of each class; empty: VOC's palette
    data.ignore_label = 255  # pixels with this label count nowhere
    data.label_map = ()  # pairs (value in the mask, label), e.g. ((11, 255),) to ignore value 11
    data.limit = 0.0  # of training images: 0 all, up to 1 a share, else a number
    data.limit_seed = 0  # which ones
    data.resize = (2048, 512)  # long and short edge that scale_range multiplies; empty: the image's own size
    data.scale_range = (0.5, 2.0)  # an image is resized by a factor drawn from this range
    data.crop_size = (512, 512)  # height, width
    data.crop_max_ratio = 0.75  # a crop with more of one class is drawn again
    data.flip = 0.5  # probability of a mirrored image
    data.photometric = True  # change brightness, contrast, saturation and hue at random
    data.workers = 4  # processes; 0: threads of the training process
    data.prefetch = 2  # batches kept ready on the device
    return data


def _auxiliary() -> ConfigDict:
    """MMSegmentation's auxiliary head on the backbone's third stage, for training alone. The paper has none."""
    auxiliary = ConfigDict()
    auxiliary.weight = 0.0  # of its loss; MMSegmentation: 0.4. 0: no such head
    auxiliary.stage = 2  # of the backbone, from 0
    auxiliary.channels = 256  # of its convolutions
    auxiliary.num_convs = 1  # 3x3 convolutions
    return auxiliary


def _tuning() -> ConfigDict:
    """What the paper's finetuning does not have, all off (docs/finetuning.md)."""
    tuning = ConfigDict()
    tuning.freeze_backbone = False  # True: the backbone keeps its weights and running averages
    tuning.head_rate = 1.0  # learning rate of head and classifier, times optimizer.learning_rate
    tuning.layer_decay = 1.0  # a ViT: the rate of each layer is that of the layer above times this, e.g. 0.65
    tuning.class_weights = ()  # of each class in the cross entropy; empty: all the same
    tuning.dice = 0.0  # weight of the Dice loss beside the cross entropy
    tuning.patience = 0  # evaluations without a better mean IoU until the run ends; 0: it does not
    return tuning


def _evaluation() -> ConfigDict:
    evaluation = ConfigDict()
    evaluation.batch_size = 0  # global, rounded up to a multiple of the devices; 0: one image a device
    evaluation.resize = (2048, 512)  # long and short edge the image is fitted into; empty: its own size
    evaluation.ratios = (1.0,)  # several: multi-scale, e.g. (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
    evaluation.flip = False  # True: average with the mirrored image
    evaluation.window = ()  # sliding windows, e.g. (512, 512); empty: whole image
    evaluation.stride = ()  # of the windows, e.g. (341, 341)
    evaluation.programs = 8  # compiled at most where sizes differ, by exact masked padding; 0: one for each size
    evaluation.limit = 0.0  # of validation images, as data.limit; the final figure takes all
    return evaluation
