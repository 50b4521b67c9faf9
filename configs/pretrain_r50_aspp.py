"""CP2 from scratch: ResNet-50 + DeepLab v3 ASPP head, ImageNet, 200 epochs, batch 256 (paper, section 4.1).

    python scripts/pretrain.py --config configs/pretrain_r50_aspp.py --workdir runs/cp2_r50_aspp \
        --config.data.path=/data/imagenet/train

`data.path` is any folder of images (nested or flat, no labels), or, with --config.data.source=tfds, an ImageNet
that TFDS prepared as array_record. After finetuning on PASCAL VOC the paper reports 77.6 mIoU (Table 1, row CP2, 200).
The other pretraining configs start from this one and change what their first line says.

Where paper and released code disagree, the paper's choice is taken. `--config configs/pretrain_r50_aspp.py:original` takes
the code's instead, all of them (docs/paper_vs_code.md); single ones by --config.key=value, with either.
"""

from ml_collections import ConfigDict

# The released code's choices where they are not the defaults below.
ORIGINAL = {
    "key_shuffle": "permutation",
    "loss.dense_axis": "query",
    "loss.skip_full_masks": False,
    "model.fcn.concat_input": True,
    "model.fcn.dilation": 1,
    "model.resnet.contract_dilation": True,
    "model.resnet.zero_init_residual": True,
    "optimizer.learning_rate": 0.015,
    "optimizer.schedule": "cosine_by_epoch",
}
PRESETS = {"paper": {}, "original": ORIGINAL}


def get_config(preset: str = "paper") -> ConfigDict:
    if preset not in PRESETS:
        raise ValueError(f"there is no preset {preset!r}, only {' and '.join(PRESETS)}")
    config = ConfigDict()

    config.kind = "pretrain"
    config.seed = 0
    config.image_size = 224
    config.batch_size = 256  # global, over all devices and processes
    config.epochs = 200
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

    config.data = ConfigDict()
    config.data.source = "folder"  # or "tfds"
    config.data.path = ""
    config.data.split = "train"
    config.data.probe_path = ""  # held-out images for the probes (e.g. ImageNet's val); empty: fresh crops of `path`'s
    config.data.probe_split = "train"  # of a "tfds" source
    config.data.attention = ""  # maps made by scripts/attention_maps.py, for augment.mask=attention
    config.data.crop_scale = (0.2, 1.0)  # share of the image's area
    # Images that foregrounds are pasted onto: "independent", the paper's two more images per sample; "in_batch", other
    # samples' foregrounds of the same batch: a third of the decoding (docs/performance.md says what differs).
    config.data.backgrounds = "independent"
    config.data.workers = 8  # decoding processes; 0 decodes in threads of the training process
    config.data.prefetch = 2  # batches kept ready on the device

    config.augment = ConfigDict()  # MoCo v2's (section 3.1), on the device
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.4
    config.augment.hue = 0.1
    config.augment.jitter_probability = 0.8
    config.augment.grayscale = 0.2
    config.augment.blur = 0.5
    config.augment.blur_sigma = (0.1, 2.0)  # pixels
    config.augment.flip = 0.5
    config.augment.mask = "rectangle"  # see cp2_jax/augment/masks.py
    config.augment.mask_area = (0.5, 0.8)
    config.augment.mask_aspect = (0.8, 1.25)
    config.augment.mask_aspect_law = "uniform"  # torchvision 0.8.1, the original's release; later ones: "log_uniform"
    config.augment.mask_patch = 16  # side in pixels of the cells of the mask "patches"

    config.model = ConfigDict()
    config.model.backbone = "resnet"
    config.model.head = "aspp"
    config.model.dtype = "bfloat16"  # of the computation; parameters, losses and statistics are float32
    config.model.projection_dim = 128
    config.model.mean = (0.485, 0.456, 0.406)  # of the inputs, RGB on [0, 1]: ImageNet's
    config.model.std = (0.229, 0.224, 0.225)
    config.model.resnet = ConfigDict()
    config.model.resnet.depth = 50
    config.model.resnet.width = 64
    config.model.resnet.stem_width = 64
    config.model.resnet.stage_sizes = ()  # blocks of each stage, if not those of `depth`
    config.model.resnet.output_stride = 16
    config.model.resnet.contract_dilation = False  # True: the original's dilations 1, 2, 2 in the last stage
    config.model.resnet.zero_init_residual = False
    config.model.resnet.padding = "torch"  # or "same", "same_pool", which BYOL's, DetCon's and SimCLR's weights need
    config.model.vit = ConfigDict()
    config.model.vit.patch = 16
    config.model.vit.width = 384
    config.model.vit.depth = 12
    config.model.vit.heads = 12
    config.model.vit.mlp_ratio = 4
    config.model.vit.final_norm = False
    config.model.vit.attention = "xla"  # or "cudnn", its fused kernels: NVIDIA GPUs (Ampere or newer) in bfloat16
    config.model.aspp = ConfigDict()
    config.model.aspp.channels = 512
    config.model.aspp.dilations = (1, 6, 12, 18)
    config.model.fcn = ConfigDict()
    config.model.fcn.channels = 256
    config.model.fcn.num_convs = 2
    config.model.fcn.dilation = 6
    config.model.fcn.concat_input = False

    config.loss = ConfigDict()
    config.loss.queue_size = 65536
    # The queue starts as random unit vectors. "random": they are negatives until keys replace them, as in the original;
    # "keys": only real keys are.
    config.loss.queue_start = "random"
    config.loss.momentum = 0.999  # of the key encoder
    config.loss.temperature_instance = 0.2
    config.loss.temperature_dense = 1.0
    config.loss.alpha = 0.2  # weight of the dense loss (equation 5)
    config.loss.alpha_instance = 1.0
    config.loss.dense_axis = "key"  # equation 2; "query" is the released code's softmax
    config.loss.skip_full_masks = True  # a mask that is full at feature resolution adds no dense loss

    config.optimizer = ConfigDict()
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.03
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 0
    config.optimizer.power = 0.9  # of the "poly" schedule
    config.optimizer.min_learning_rate = 0.0  # likewise

    config.log_every = 50  # steps
    config.save_every = 1000
    config.keep = 3  # newest checkpoints kept
    config.picture_every = 5000  # steps between pictures of composed pairs and similarity; 0: never
    config.probe_every = 1000  # steps between probes of representation quality (cp2_jax/pretraining/probes.py); 0: never
    config.probe_images = 256

    config.update_from_flattened_dict(PRESETS[preset])
    return config
