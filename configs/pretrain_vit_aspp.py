"""CP2 from scratch: ViT-S/16 + DeepLab v3 ASPP head, AdamW (section 4.1: learning rate 5e-5, weight decay 0.01).

    python scripts/pretrain.py --config configs/pretrain_vit_aspp.py --workdir runs/cp2_vit_aspp \
        --config.data.path=/data/imagenet/train

The paper trains its ViT by Quick Tuning alone (Table 1, row CP2 QT v.300: 79.5 mIoU on PASCAL VOC); it gives no figure
for a ViT from scratch.
"""

from cp2_jax.configs import pretrain_r50_aspp


def get_config(preset: str = "paper"):
    config = pretrain_r50_aspp.get_config(preset)
    config.model.backbone = "vit"
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 5e-5
    config.optimizer.weight_decay = 0.01
    return config
