"""CP2 Quick Tuning: ResNet-50 + FCN head from a MoCo v2 backbone, ImageNet, 20 epochs (paper, section 3.3).

    python scripts/convert_checkpoint.py moco_v2_800ep_pretrain.pth.tar converted/moco_v2_800ep
    python scripts/pretrain.py --config configs/quick_tune_r50_fcn.py --workdir runs/quick_tune_r50_fcn \
        --config.data.path=/data/imagenet/train

The backbone is the checkpoint's, head and projection start at random. After finetuning on PASCAL VOC the paper reports
75.7 mIoU from MoCo v2's 800 epochs (Table 2, row CP2 QT r.800) and 75.2 from its 200 (row CP2 QT r.200): for that, convert
moco_v2_200ep_pretrain.pth.tar to converted/moco_v2_200ep and add --config.init.checkpoint=converted/moco_v2_200ep.
Any other ResNet-50 of docs/checkpoints.md goes the same way. Only real keys are negatives (`loss.queue_start`): random
vectors would for the first 256 steps reward a fresh projection for making all images alike.
"""

from cp2_jax.configs import pretrain_r50_fcn


def get_config(preset: str = "paper"):
    config = pretrain_r50_fcn.get_config(preset)
    config.epochs = 20
    config.init.checkpoint = "converted/moco_v2_800ep"
    if preset == "paper":
        config.loss.queue_start = "keys"
    return config
