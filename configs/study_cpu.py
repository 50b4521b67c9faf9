"""Does CP² pay as Quick Tuning? The study in small, for two CPU cores (docs/results.md says what was fixed in advance).

    cp2 prepare study --output data/study --photographs tiny_imagenet32.npz --camvid camvid
    cp2 study --config study_cpu --workdir runs/study_cpu --config.data=data/study
    cp2 reproduce collect runs/study_cpu

Expected: docs/when_it_pays.md. Variants say which images: `scenes` (the default: demo scenes, with and without labels),
`photographs` (pretraining on photographs, judging on CamVid) and `camvid` (pretraining on CamVid's frames without labels,
judging on CamVid).
"""

from ml_collections import ConfigDict

from cp2_jax.configs import _variants, finetune_camvid, finetune_demo, pretrain
from cp2_jax.reproduce.quick_tuning import ARMS


def scenes(config: ConfigDict) -> None:
    """Demo scenes of 48 pixels."""
    config.folders = ("scenes", "scenes")


def _real(config: ConfigDict) -> None:
    config.seeds = tuple(range(100, 116))
    config.pretrain.augment.update(saturation=0.4, hue=0.1, grayscale=0.2)  # MoCo v2's: colours mean something here
    data = config.finetune.data
    data.num_classes, data.class_names = len(finetune_camvid.CLASSES), finetune_camvid.CLASSES
    data.label_map = ((11, 255),)
    data.split = "train"
    config.finetune.model.num_classes = data.num_classes


def photographs(config: ConfigDict) -> None:
    """Photographs without labels (32 pixels, enlarged), then CamVid in 48 x 64 pixels."""
    config.folders = ("photographs", "camvid")
    _real(config)


def camvid(config: ConfigDict) -> None:
    """CamVid's frames without labels, then CamVid."""
    config.folders = ("camvid", "camvid")
    config.pretrain.data.crop_scale = (0.2, 1.0)
    _real(config)


VARIANTS = {"scenes": (("images",), scenes), "photographs": (("images",), photographs), "camvid": (("images",), camvid)}


def get_config(variants: str = "") -> ConfigDict:
    """Return the config; `variants` names the images."""
    config = ConfigDict()
    config.protocol = "quick_tuning"
    config.data = ""  # the folder that `prepare_data.py study` wrote
    config.folders = ("scenes", "scenes")  # in it: of pretraining, of finetuning
    config.seeds = tuple(range(100, 136))  # pilots have lower numbers
    config.seeds_at_once = 0  # seeds in one program; 0: one on a CPU, all on an accelerator
    config.methods = tuple(name for name, arm in ARMS.items() if not arm.later)  # those that were fixed in advance
    config.base_steps = 1500  # of the MoCo v2 checkpoint that all arms start from
    config.labels = (20, 80)  # labelled images of the two finetunings

    config.pretrain = pretrain.get_config("demo")
    config.pretrain.batch_size = 16
    config.pretrain.steps = 200  # of each arm
    config.pretrain.augment.blur = 0.0
    config.pretrain.loss.queue_size = 512
    config.pretrain.model.resnet.update(width=8, stem_width=8, output_stride=4)  # maps of 8 x 8
    config.pretrain.model.aspp.update(channels=32, dilations=(1, 2))
    config.pretrain.optimizer.warmup_steps = 20

    config.finetune = finetune_demo.get_config()
    config.finetune.steps = 300
    config.finetune.batch_size = 8
    config.finetune.data.crop_size = (32, 32)
    config.finetune.model = config.pretrain.model.copy_and_resolve_references()
    config.finetune.model.num_classes = config.finetune.data.num_classes
    config.finetune.model.dropout = 0.1
    _variants.apply(config, variants, VARIANTS)
    return config
