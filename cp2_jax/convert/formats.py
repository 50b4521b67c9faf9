"""The checkpoints we know: where each keeps its backbone, what is left out, and what the weights do not tell.

A plain list: the first whose names are found in a file is taken, so the particular come before the general.
Facts about each source: docs/checkpoints.md.
"""

from collections.abc import Callable, Mapping

from cp2_jax.convert import layouts, trees
from cp2_jax.convert.format import UNIT, Format, Names

_RESNET = (layouts.TORCHVISION, layouts.CHILDREN)
_VIT = (layouts.TIMM,)
_EITHER = (layouts.TORCHVISION, layouts.TIMM, layouts.MMSEG_VIT, layouts.CHILDREN)


def _any(*starts: str) -> Callable[[Names, Mapping], bool]:
    """Evidence: some tensor's name starts with one of these."""
    return lambda names, tree: any(name.startswith(starts) for name in names)


def _entry(key: str) -> Callable[[Names, Mapping], bool]:
    """Evidence: the file has this entry beside its tensors."""
    return lambda names, tree: isinstance(tree, Mapping) and key in tree


def _sixty_four(width: int) -> int | None:
    """Heads of 64 channels: DINO, timm and Hugging Face at every size."""
    return width // 64 if width % 64 == 0 else None


def _twelve(width: int) -> int | None:
    return 12 if width % 12 == 0 else None


_CP2 = {"resnet": {"output_stride": 16, "contract_dilation": True, "basic_dilation": "first"}}
_MMSEG = _CP2 | {"fcn": {"dilation": 1}}
_KEY_ENCODER = "the key encoder: it starts as the query's copy"
_QUEUE = "the queue: a new run fills its own"
_OLD_HEAD = "the source's own projection or classifier"
_MOCO = (
    ("module.encoder_k.", _KEY_ENCODER),
    ("encoder_k.", _KEY_ENCODER),
    ("module.queue", _QUEUE),
    ("queue", _QUEUE),
    ("module.encoder_q.fc.", _OLD_HEAD),
    ("encoder_q.fc.", _OLD_HEAD),
    ("module.encoder_q.head.", _OLD_HEAD),
    ("encoder_q.head.", _OLD_HEAD),
)
_QUERY = ("module.encoder_q.", "encoder_q.")


def _has(suffix: str) -> Callable[[Names, Mapping], bool]:
    return lambda names, tree: any(f"{prefix}{suffix}" in names for prefix in _QUERY)


FORMATS = [
    Format(
        "cp2",
        "CP² pretraining",
        ("module.encoder_q.backbone.", "encoder_q.backbone.", "module.backbone.", "backbone."),
        _EITHER,
        evidence=lambda names, tree: any("decode_head.contrast_conv." in name for name in names),
        rates=_CP2,
        head="decode_head.",
        left_out=_MOCO,
        heads=_twelve,
        notes=("heads = 12, the original's default: pass --heads if the run changed it",),
    ),
    Format(
        "moco_v1",
        "MoCo v1 (ResNet)",
        _QUERY,
        _RESNET,
        evidence=_has("fc.weight"),
        left_out=_MOCO,
    ),
    Format("moco_v2", "MoCo v2 (ResNet)", _QUERY, _RESNET, left_out=_MOCO),
    Format(
        "moco_v2_vit",
        "MoCo v2 (ViT)",
        _QUERY,
        _VIT,
        left_out=_MOCO,
        notes=("its source is unverified: 6 heads of 64 if it is built as DINO's ViT-S, 12 if as the original's default",),
    ),
    Format(
        "moco_v3",
        "MoCo v3",
        ("module.base_encoder.", "base_encoder."),
        (*_VIT, *_RESNET),
        left_out=(
            ("module.base_encoder.head.", _OLD_HEAD),
            ("module.base_encoder.fc.", _OLD_HEAD),
            ("module.momentum_encoder.", "the momentum encoder"),
            ("module.predictor.", _OLD_HEAD),
        ),
        heads=_twelve,
        notes=("pos_embed is its fixed sine-cosine table, loaded as it is",),
    ),
    Format(
        "dino",
        "DINO (full checkpoint, the teacher)",
        ("backbone.", "module.backbone."),
        (*_VIT, *_RESNET),
        (("teacher",),),
        left_out=(("head.", _OLD_HEAD), ("module.head.", _OLD_HEAD)),
        heads=_sixty_four,
    ),
    Format(
        "infomin",
        "InfoMin (PyContrast)",
        ("module.encoder.", "encoder."),
        _RESNET,
        (("model",), ("model_ema",), ()),
        evidence=lambda names, tree: "contrast" in tree or _any("module.head", "head")(names, tree),
        left_out=(("module.head", _OLD_HEAD), ("head", _OLD_HEAD), ("module.encoder.fc.", _OLD_HEAD)),
    ),
    Format(
        "pixpro",
        "PixPro",
        ("module.encoder.", "module.base.", "encoder.", "base."),
        _RESNET,
        (("model",), ()),
        left_out=(
            ("module.encoder_k.", _KEY_ENCODER),
            ("module.projector", _OLD_HEAD),
            ("module.value_transform.", _OLD_HEAD),
            ("module.encoder.fc.", _OLD_HEAD),
        ),
    ),
    Format(
        "insloc",
        "InsLoc",
        ("backbone.", "module.backbone."),
        _RESNET,
        evidence=_any("backbone_k.", "neck_k.", "module.backbone_k."),
        left_out=(
            ("backbone_k.", _KEY_ENCODER),
            ("neck", "the feature pyramid, which a DeepLab model lacks"),
            ("roi_head.", "the detection head"),
            ("queue", _QUEUE),
        ),
        notes=("trained on inputs in [0, 255] with ImageNet's mean and std in that scale, which is the same network",),
    ),
    Format(
        "densecl",
        "DenseCL",
        ("backbone.", ""),
        _RESNET,
        evidence=lambda names, tree: "author" in tree or _any("encoder_q.0.")(names, tree),
        left_out=(
            ("encoder_q.0.", "the backbone once more"),
            ("encoder_q.", _OLD_HEAD),
            ("encoder_k.", _KEY_ENCODER),
            ("neck.", _OLD_HEAD),
            ("head.", _OLD_HEAD),
            ("queue", _QUEUE),
        ),
    ),
    Format(
        "mmseg",
        "MMSegmentation",
        ("backbone.", "module.backbone."),
        _EITHER,
        evidence=lambda names, tree: _any("decode_head.", "module.decode_head.")(names, tree),
        rates=_MMSEG,
        rates_of="CP²'s code and MMSegmentation's FCNHead",
        head="decode_head.",
        left_out=(("auxiliary_head.", "an auxiliary head, which this project's models lack"),),
    ),
    Format(
        "merged",
        "CP² merged for finetuning (backbone and head without prefixes)",
        ("", "module."),
        _EITHER,
        evidence=_any("image_pool.1.", "convs.0.conv.", "aspp_modules.0."),
        rates=_CP2,
        head="",
        left_out=(("auxiliary_head.", "an auxiliary head, which this project's models lack"),),
        heads=_twelve,
    ),
    Format(
        "openmmlab",
        "an OpenMMLab-style model's backbone",
        ("backbone.", "module.backbone."),
        _EITHER,
        left_out=(("neck.", _OLD_HEAD), ("head.", _OLD_HEAD)),
    ),
    Format(
        "simclr_separius",
        "SimCLR through SimCLRv2-Pytorch",
        ("",),
        (layouts.SEPARIUS,),
        (("resnet",), ()),
        left_out=(("fc.", _OLD_HEAD),),
        input=UNIT,
    ),
    Format(
        "simclr",
        "SimCLR through simclr-converter (torchvision's names)",
        ("", "module."),
        _RESNET,
        left_out=(("fc.", _OLD_HEAD),),
        input=UNIT,
        automatic=False,
    ),
    Format(
        "byol",
        "BYOL",
        ("",),
        (trees.HAIKU,),
        (("experiment_state",),),
        left_out=(("projector", _OLD_HEAD), ("predictor", _OLD_HEAD), ("classifier", _OLD_HEAD)),
        padding="same",
    ),
    Format(
        "detcon",
        "DetCon",
        ("",),
        (trees.HAIKU,),
        ((),),
        left_out=(
            ("projector", _OLD_HEAD),
            ("predictor", _OLD_HEAD),
            ("classifier", _OLD_HEAD),
            ("logits", _OLD_HEAD),
        ),
        padding="same",
    ),
    Format(
        "hugging_face",
        "Hugging Face ViT",
        ("vit.", "", "model.vit."),
        (layouts.HUGGING_FACE,),
        left_out=(
            ("classifier.", _OLD_HEAD),
            ("pooler.", _OLD_HEAD),
            ("vit.pooler.", _OLD_HEAD),
            ("embeddings.mask_token", "used by masked pretraining alone"),
            ("vit.embeddings.mask_token", "used by masked pretraining alone"),
        ),
        heads=_sixty_four,
        notes=("layer norms were made with epsilon 1e-12 (Hugging Face's default), here it is 1e-6",),
    ),
    Format(
        "timm",
        "timm or DINO ViT (backbone file)",
        ("", "module.", "backbone."),
        _VIT,
        left_out=(("head.", _OLD_HEAD), ("fc_norm.", _OLD_HEAD), ("head_dist.", _OLD_HEAD)),
        heads=_sixty_four,
    ),
    Format(
        "torchvision",
        "torchvision ResNet",
        ("", "module."),
        _RESNET,
        left_out=(("fc.", _OLD_HEAD), ("module.fc.", _OLD_HEAD)),
        notes=("if it is SimCLR's by way of simclr-converter, pass --format simclr: inputs stay in [0, 1]",),
    ),
]
SIMCLR_TENSORFLOW = Format(
    "simclr_tensorflow",
    "SimCLR (TensorFlow)",
    ("",),
    (),
    ((),),
    left_out=(
        ("head_contrastive", _OLD_HEAD),
        ("head_supervised", _OLD_HEAD),
        ("projection_head", _OLD_HEAD),
        ("ema_model/", "the averaged copy"),
        ("global_step", "the optimiser's"),
    ),
    input=UNIT,
    padding="same_pool",
)
