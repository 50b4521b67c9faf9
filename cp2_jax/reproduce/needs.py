"""What the paper's experiments need that cannot be made here: checkpoints and data sets, and where they come from."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Somebody else's pretrained backbone.

    Attributes:
      file: the name it is looked for under (`--checkpoints DIR`).
      origin: where it is published.
      arguments: of `cp2 convert`.
      finetune: key → value: what a finetuning config must say where the network differs from ours.
    """

    file: str
    origin: str
    arguments: tuple[str, ...] = ()
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_SAME = {"model.resnet.padding": "same"}
_UNIT = {"model.mean": (0.0, 0.0, 0.0), "model.std": (1.0, 1.0, 1.0)}

CHECKPOINTS = {
    "supervised": Checkpoint(
        "resnet50-19c8e357.pth", "torchvision's first ResNet-50 (76.13 % top-1), download.pytorch.org/models/"
    ),
    "moco_200": Checkpoint("moco_v1_200ep_pretrain.pth.tar", "github.com/facebookresearch/moco, MoCo v1, 200 epochs"),
    "moco_v2_200": Checkpoint("moco_v2_200ep_pretrain.pth.tar", "github.com/facebookresearch/moco, MoCo v2, 200 epochs"),
    "moco_v2_800": Checkpoint("moco_v2_800ep_pretrain.pth.tar", "github.com/facebookresearch/moco, MoCo v2, 800 epochs"),
    "moco_v2_vit_300": Checkpoint(
        "moco_v2_vit_s_300ep.pth.tar",
        "MoCo v2's ViT-S/16, 300 epochs: the paper borrows it from DINO (github.com/facebookresearch/dino); unpublished "
        "as far as we know, ask its authors",
        # DINO's ViT-S/16 has 6 heads of 64 channels, as every published ViT-S (DeiT, timm). The 12 of the original code are
        # the default of its ViT class; it released no config for a ViT. Weights do not tell: 12 would load, and compute
        # another function.
        ("--heads", "6"),
    ),
    "simclr_1000": Checkpoint(
        "ResNet50_1x/model.ckpt-225206",
        "github.com/google-research/simclr, SimCLR v1, ResNet-50 1x, 1000 epochs",
        finetune={"model.resnet.padding": "same_pool"} | _UNIT,
    ),
    "byol_300": Checkpoint(
        "byol_res50x1_300.pkl",
        "github.com/google-deepmind/deepmind-research/tree/master/byol, ResNet-50 1x "
        "(published: 1000 epochs; the paper's is of 300)",
        finetune=_SAME,
    ),
    "infomin_800": Checkpoint("InfoMin_800.pth", "github.com/HobbitLong/PyContrast, InfoMin, 800 epochs"),
    "insloc_400": Checkpoint("insloc_fpn_400.pth", "github.com/limbo0000/InstanceLoc, ResNet50-FPN, 400 epochs"),
    "detcon_1000": Checkpoint(
        "detconb_imagenet_1000.npy", "github.com/google-deepmind/detcon, DetCon-B, 1000 epochs", finetune=_SAME
    ),
    "pixpro_400": Checkpoint("pixpro_base_r50_400ep.pth", "github.com/zdaxie/PixPro, 400 epochs"),
}


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
      name: in `--data NAME=PATH`.
      origin: where it comes from.
      finetune: the config that finetunes on it; "" for images without labels.
    """

    name: str
    origin: str
    finetune: str = ""


DATA_SETS = {
    "ImageNet": DataSet("ImageNet", "image-net.org, ILSVRC 2012, training images (1.28 million)"),
    "attention": DataSet(
        "attention",
        "attention maps of ImageNet's images, made by cp2 attention-maps from DINO's ViT-B/16 "
        "(github.com/facebookresearch/dino, dino_vitbase16_pretrain.pth)",
    ),
    "PASCAL": DataSet(
        "PASCAL",
        "host.robots.ox.ac.uk/pascal/VOC/voc2012, with SBD's masks in SegmentationClassAug and train_aug.txt",
        "finetune_voc",
    ),
    "Cityscapes": DataSet("Cityscapes", "cityscapes-dataset.com, leftImg8bit and gtFine", "finetune_cityscapes"),
    "ADE20k": DataSet("ADE20k", "sceneparsing.csail.mit.edu, ADEChallengeData2016", "finetune_ade20k"),
}
