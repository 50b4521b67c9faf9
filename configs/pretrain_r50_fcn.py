"""CP2 from scratch: ResNet-50 + FCN head (two 256-channel 3x3 convolutions, rate 6), ImageNet, 200 epochs.

    python scripts/pretrain.py --config configs/pretrain_r50_fcn.py --workdir runs/cp2_r50_fcn \
        --config.data.path=/data/imagenet/train

After finetuning on PASCAL VOC the paper reports 75.4 mIoU (Table 2, row CP2, 200).
"""

from cp2_jax.configs import pretrain_r50_aspp


def get_config(preset: str = "paper"):
    config = pretrain_r50_aspp.get_config(preset)
    config.model.head = "fcn"
    return config
