"""CP2 Quick Tuning: ResNet-50 + ASPP head from a MoCo v2 backbone, ImageNet, 20 epochs (paper, section 3.3).

    python scripts/convert_checkpoint.py moco_v2_800ep_pretrain.pth.tar converted/moco_v2_800ep
    python scripts/pretrain.py --config configs/quick_tune_r50_aspp.py --workdir runs/quick_tune_r50_aspp \
        --config.data.path=/data/imagenet/train

The backbone is the checkpoint's, head and projection start at random. After finetuning on PASCAL VOC the paper reports
78.6 mIoU from MoCo v2's 800 epochs (Table 1, row CP2 QT r.800) and 76.5 from its 200 (row CP2 QT r.200): for that, convert
moco_v2_200ep_pretrain.pth.tar to converted/moco_v2_200ep and add --config.init.checkpoint=converted/moco_v2_200ep.
Any other ResNet-50 of docs/checkpoints.md goes the same way. Only real keys are negatives (`loss.queue_start`): random
vectors would for the first 256 steps reward a fresh projection for making all images alike.
"""

from cp2_jax.configs import pretrain_r50_aspp


def get_config(preset: str = "paper"):
    config = pretrain_r50_aspp.get_config(preset)
    config.epochs = 20
    config.init.checkpoint = "converted/moco_v2_800ep"
    if preset == "paper":
        config.loss.queue_start = "keys"
    return config
