"""CP2 from scratch: ViT-S/16 + FCN head, AdamW (section 4.1: learning rate 5e-5, weight decay 0.01).

    python scripts/pretrain.py --config configs/pretrain_vit_fcn.py --workdir runs/cp2_vit_fcn \
        --config.data.path=/data/imagenet/train

The paper trains its ViT by Quick Tuning alone (Table 2, row CP2 QT v.300: 78.6 mIoU on PASCAL VOC); it gives no figure
for a ViT from scratch.
"""

from cp2_jax.configs import pretrain_r50_aspp


def get_config(preset: str = "paper"):
    config = pretrain_r50_aspp.get_config(preset)
    config.model.backbone = "vit"
    config.model.head = "fcn"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.weight_decay = 0.01
    return config
