"""CP2 pretraining: ResNet-50 + DeepLab v3 ASPP head, ImageNet, 200 epochs, batch 256 (paper, section 4.1).

    cp2 pretrain --config pretrain --workdir runs/cp2_r50_aspp \
        --config.data.path=/data/imagenet/train

`data.path` is any folder of images (nested or flat, no labels), or, with --config.data.source=tfds, an ImageNet that TFDS
prepared as array_record. Variants follow a colon, in any order: `--config pretrain:vit,fcn`.

| variant | what it is | expected after finetuning on PASCAL VOC |
|---|---|---|
| `r50`, `aspp` (or nothing) | ResNet-50 + ASPP head, from scratch | 77.6 mIoU (Table 1, row CP2, 200 epochs) |
| `fcn` | FCN head: two 256-channel 3x3 convolutions, rate 6 | 75.4 mIoU (Table 2, row CP2, 200 epochs) |
| `vit` | ViT-S/16 by AdamW | no figure: the paper trains its ViT by Quick Tuning alone |
| `quick_tune` | 20 epochs from a published backbone (section 3.3) | see configs/quick_tune.py |
| `moco_v2` | MoCo v2, the paper's baseline: global average pooling, no copy-paste | 74.9 mIoU (Table 1, row MoCo v2, 200) |
| `original` | the released code's choices where they differ from the paper (docs/paper_vs_code.md) | none |
| `paper` | the paper's choices: the default | |
| `small` | sizes that fit the number of images and the machine, chosen at the start (docs/small_data.md) | |
| `demo` | a small network on the demo scenes, minutes on a laptop (scripts/quickstart.sh) | docs/results.md |

Where paper and released code disagree, the paper's choice is taken; `original` takes all of the code's choices, and
--config.key=value changes a single one, with or without it.
"""

from ml_collections import ConfigDict

from cp2_jax.configs import _variants

# The released code's choices where they are not the defaults below.
ORIGINAL = {
    "key_shuffle": "permutation",
    "loss.dense_axis": "query",
    "loss.queue_start": "random",
    "loss.skip_full_masks": False,
    "model.fcn.concat_input": True,
    "model.fcn.dilation": 1,
    "model.resnet.contract_dilation": True,
    "model.resnet.zero_init_residual": True,
    "optimizer.learning_rate": 0.015,
    "optimizer.schedule": "cosine_by_epoch",
}


def demo(config: ConfigDict) -> None:
    """CP2 in small: a narrow residual network on scenes of 48x48 pixels, minutes on a laptop.

    Crops of 32 pixels want output stride 8 and small atrous rates, and a run of minutes wants a short queue, a somewhat
    faster key encoder and AdamW. Backgrounds come from the batch, which decodes a third of the images. The little colour
    that the scenes have says nothing about their classes, so it is varied more.
    """
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
    config.model.resnet.update(depth=18, stage_sizes=(1, 1, 1, 1), width=16, stem_width=16, output_stride=8)
    config.model.aspp.update(channels=64, dilations=(1, 2, 3))
    config.loss.queue_size = 1024
    # The key encoder has to move little over the queue's 16 batches. At 0.99 and higher rates fresh keys are told from old
    # ones by their age alone: the loss falls while the learning rate is high, and little is learned (docs/results.md).
    config.loss.momentum = 0.995
    config.optimizer.update(name="adamw", learning_rate=2e-3, weight_decay=0.01, warmup_steps=100)
    config.picture_every = 2000
    config.probe_every = 500
    config.probe_images = 128


def quick_tune(config: ConfigDict) -> None:
    """20 epochs from a backbone that image-level contrast has trained (section 3.3); see configs/quick_tune.py."""
    config.epochs = 20
    config.init.checkpoint = "converted/moco_v2_800ep"
    # Random vectors in the queue would for the first 256 steps reward a fresh projection for making all images alike.
    config.loss.queue_start = "keys"


def moco_v2(config: ConfigDict) -> None:
    """MoCo v2, the paper's direct baseline: the same step, losses, queue and augmentation without copy-paste or dense loss.

    As in the official code (main_moco.py --mlp --moco-t 0.2 --aug-plus --cos): a hidden layer as wide as the backbone's
    output, 128 outputs, temperature 0.2, 65,536 keys, momentum 0.999, statistics of 8 GPUs x 32 images. The network is a
    classifier's, at output stride 32. Expected: 67.5 % top-1 of a linear classifier on ImageNet (MoCo v2, Table 1); with
    --config.epochs=800 the backbone of the row MoCo v2, 800 of the paper's Table 1 (77.2 mIoU).
    """
    config.bn_groups = 8
    config.data.backgrounds = "in_batch"  # none is seen: nothing more has to be decoded
    config.augment.mask = "full"
    config.model.head = "pool"
    config.model.resnet.output_stride = 32
    config.loss.alpha = 0.0
    config.optimizer.schedule = "cosine_by_epoch"  # as the official code steps it


def small(config: ConfigDict) -> None:
    """Sizes that fit your images: -1 leaves a key open, for cp2_jax/pretraining/sizes.py to choose (docs/small_data.md)."""
    config.update(batch_size=-1, bn_groups=-1, epochs=-1, log_every=-1, save_every=-1)
    config.update(picture_every=-1, probe_every=-1, probe_images=-1)
    config.loss.update(queue_size=-1, momentum=-1.0)
    config.optimizer.update(learning_rate=-1.0, warmup_steps=-1)
    config.data.workers = -1


def paper(config: ConfigDict) -> None:
    """The paper's choices, which are the default."""


def original(config: ConfigDict) -> None:
    """The released code's choices (docs/paper_vs_code.md). Its learning rate is that of SGD; a ViT keeps AdamW's."""
    config.update_from_flattened_dict(ORIGINAL)


def r50(config: ConfigDict) -> None:
    """ResNet-50 by SGD, which is the default."""


def vit(config: ConfigDict) -> None:
    """ViT-S/16 by AdamW; the backbone itself says with which settings (section 4.1)."""
    from cp2_jax.models.backbones import BACKBONES  # here, because it takes a second

    config.model.backbone = "vit"
    config.optimizer.update(BACKBONES["vit"].pretrain_optimizer)
    if config.init.checkpoint == "converted/moco_v2_800ep":  # a ResNet's
        config.init.checkpoint = "converted/moco_v2_vit_300ep"


def aspp(config: ConfigDict) -> None:
    """DeepLab v3's head, which is the default."""


def fcn(config: ConfigDict) -> None:
    """The FCN head (Table 2)."""
    config.model.head = "fcn"


VARIANTS = {
    "demo": (("size", "backbone", "start", "values"), demo),
    "quick_tune": (("method", "start"), quick_tune),
    "moco_v2": (("method", "head", "values"), moco_v2),
    "paper": (("values",), paper),
    "original": (("values", "learning rate"), original),
    "r50": (("backbone",), r50),
    "vit": (("backbone",), vit),
    "aspp": (("head",), aspp),
    "fcn": (("head",), fcn),
    "small": (("size", "learning rate"), small),
}


def get_config(variants: str = "") -> ConfigDict:
    """Return the config of a pretraining.

    Args:
      variants: names of `VARIANTS` with commas between them, in any order.

    Raises:
      ConfigError: for an unknown variant, or for two that choose the same thing.
    """
    config = ConfigDict()

    config.kind = "pretrain"  # which job the config is for
    config.seed = 0  # of the initial weights, the order of the images and every random choice
    config.image_size = 224  # side of the crops in pixels
    # -1 leaves a key open for `small` to choose: batch_size, bn_groups, epochs, loss.queue_size, loss.momentum, the
    # optimiser's learning_rate and warmup_steps, data.workers, and how often to look.
    config.batch_size = 256  # global, over all devices and processes
    config.epochs = 200  # passes over the images
    config.steps = 0  # length in steps instead of epochs, if not 0
    # The paper trains on 4 GPUs x 64 images, each GPU with its own batch-norm statistics. Groups reproduce that on any
    # number of devices; 1 is synchronised batch norm.
    config.bn_groups = 4
    # Keys must not share batch-norm statistics with their queries: "strided" groups, MoCo's "permutation", or "none".
    config.key_shuffle = "strided"
    # Memory: none of the three changes the result, see docs/scaling.md.
    config.accumulate = 1  # microbatches of a step, one after the other; divides bn_groups
    config.remat = False  # True: blocks are computed again in the backward pass instead of kept
    config.shard_state = False  # True: parameters and optimiser state split over the devices instead of copied

    config.init = ConfigDict()
    config.init.checkpoint = ""  # converted checkpoint (Quick Tuning) or work directory to start from; empty: from scratch
    config.init.head = "random"  # or "checkpoint", if it has one
    config.init.projection = "random"  # likewise

    config.data = _data()
    config.augment = _augment()
    config.model = _model()
    config.loss = _loss()

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"  # or "adamw"
    config.optimizer.learning_rate = 0.03  # its highest value
    config.optimizer.momentum = 0.9  # of SGD
    config.optimizer.weight_decay = 1e-4  # on every parameter
    config.optimizer.schedule = "cosine"  # or "cosine_by_epoch", "poly", "constant"
    config.optimizer.warmup_steps = 0  # steps in which the rate rises from 0
    config.optimizer.power = 0.9  # of the "poly" schedule
    config.optimizer.min_learning_rate = 0.0  # lowest rate of the "poly" schedule

    config.log_every = 50  # steps between lines of metrics
    config.save_every = 1000  # steps between checkpoints
    config.keep = 3  # newest checkpoints kept
    config.picture_every = 5000  # steps between pictures of composed pairs and similarity, also after the last; 0: never
    config.probe_every = 1000  # steps between probes of representation quality and after the last; 0: never
    config.probe_images = 256  # held-out images of a probe
    config.trackers = ""  # who else gets metrics and pictures: "mlflow", "wandb", or both with a comma (docs/tracking.md)

    _variants.apply(config, variants, VARIANTS)
    return config


def _data() -> ConfigDict:
    data = ConfigDict()
    data.source = "folder"  # or "tar" (shards), "parquet", "tfds" (array_record)
    data.path = ""  # folder of images (nested or flat), or the directory of a TFDS data set
    data.split = "train"  # of a "tfds" source
    data.list = ""  # a text file with the images to take, a path a line, relative to `path`; empty: all
    data.image_column = "image"  # of a "parquet" source
    data.value_range = ()  # values that become 0 and 255 in images of more than 8 bits, e.g. (0, 3000)
    data.probe_path = ""  # held-out images for the probes (e.g. ImageNet's val); empty: fresh crops of `path`'s
    data.probe_split = "train"  # of a "tfds" source
    data.attention = ""  # maps made by cp2 attention-maps, for augment.mask=attention
    data.crop_scale = (0.2, 1.0)  # share of the image's area
    # Images that foregrounds are pasted onto: "independent", the paper's two more images per sample; "in_batch", other
    # samples' foregrounds of the same batch: a third of the decoding (docs/performance.md says what differs).
    data.backgrounds = "independent"
    data.workers = 8  # decoding processes; 0 decodes in threads of the training process
    data.prefetch = 2  # batches kept ready on the device
    return data


def _augment() -> ConfigDict:
    augment = ConfigDict()  # MoCo v2's (section 3.1), on the device
    augment.brightness = 0.4  # x: a factor from 1 - x to 1 + x
    augment.contrast = 0.4  # likewise
    augment.saturation = 0.4  # likewise
    augment.hue = 0.1  # x: a shift from -x to x, in turns
    augment.jitter_probability = 0.8  # of the four changes above
    augment.grayscale = 0.2  # probability
    augment.blur = 0.5  # probability of a Gaussian blur
    augment.blur_sigma = (0.1, 2.0)  # pixels
    augment.flip = 0.5  # probability of a mirrored image
    augment.mask = "rectangle"  # see cp2_jax/augment/masks.py
    augment.mask_area = (0.5, 0.8)  # share of the image that is foreground
    augment.mask_aspect = (0.8, 1.25)  # height / width of a rectangle
    augment.mask_aspect_law = "uniform"  # torchvision 0.8.1, the original's release; later ones: "log_uniform"
    augment.mask_patch = 16  # side in pixels of the cells of the mask "patches"
    return augment


def _model() -> ConfigDict:
    model = ConfigDict()
    model.backbone = "resnet"  # or "vit"
    model.head = "aspp"  # or "fcn"; "pool" is MoCo v2's global average pooling
    model.dtype = "bfloat16"  # of the computation; parameters, losses and statistics are float32
    model.projection_dim = 128  # length of the features that the losses compare
    model.mean = (0.485, 0.456, 0.406)  # of the inputs, RGB on [0, 1]: ImageNet's
    model.std = (0.229, 0.224, 0.225)  # likewise
    model.resnet = ConfigDict()
    model.resnet.depth = 50  # 18, 34, 50, 101 or 152
    model.resnet.width = 64  # channels of the first stage; the others follow
    model.resnet.stem_width = 64  # channels of the first convolution
    model.resnet.stage_sizes = ()  # blocks of each stage, if not those of `depth`
    model.resnet.output_stride = 16  # pixels per feature: 4, 8, 16 or 32
    model.resnet.contract_dilation = False  # True: the original's dilations 1, 2, 2 in the last stage
    model.resnet.basic_dilation = "both"  # or "first": depths 18 and 34 dilated as MMSegmentation's (docs/paper_vs_code.md)
    model.resnet.zero_init_residual = False  # True: the last batch-norm scale of each block starts at 0, as in the original
    model.resnet.padding = "torch"  # or "same", "same_pool", which BYOL's, DetCon's and SimCLR's weights need
    model.vit = ConfigDict()
    model.vit.patch = 16  # side of a patch in pixels
    model.vit.width = 384  # channels
    model.vit.depth = 12  # blocks
    model.vit.heads = 6  # of the attention: 6 in every published ViT-S; weights do not tell (docs/checkpoints.md)
    model.vit.mlp_ratio = 4  # width of the hidden layer / width
    model.vit.remainder = "pad"  # or "drop", "stretch": sides that are no multiples of the patch (docs/paper_vs_code.md)
    model.vit.final_norm = False  # True: a layer norm behind the last block
    model.vit.attention = "auto"  # cuDNN's fused kernels where they serve, see docs/performance.md; or "xla", "cudnn"
    model.aspp = ConfigDict()
    model.aspp.channels = 512  # of each branch and of the output
    model.aspp.dilations = (1, 6, 12, 18)  # of the branches; image pooling comes on top
    model.fcn = ConfigDict()
    model.fcn.channels = 256  # of each convolution
    model.fcn.num_convs = 2  # 3x3 convolutions
    model.fcn.dilation = 6  # of the convolutions
    model.fcn.concat_input = False  # True: the backbone's map is joined to the last convolution, as in the original
    return model


def _loss() -> ConfigDict:
    loss = ConfigDict()
    loss.queue_size = 65536  # keys in the memory bank; a multiple of batch_size
    # The queue starts as random unit vectors. "random": they are negatives until keys replace them, as in the original;
    # "keys": only real keys are.
    loss.queue_start = "random"
    loss.momentum = 0.999  # of the key encoder
    loss.temperature_instance = 0.2  # of equation 3
    loss.temperature_dense = 1.0  # of equation 2
    loss.alpha = 0.2  # weight of the dense loss (equation 5)
    loss.alpha_instance = 1.0  # weight of the instance loss
    loss.dense_axis = "key"  # equation 2; "query" is the released code's softmax
    loss.skip_full_masks = True  # a mask that is full at feature resolution adds no dense loss
    return loss
