"""CP2 Quick Tuning: ViT-S/16 + ASPP head from a MoCo v2 backbone, AdamW, ImageNet, 20 epochs (paper, section 3.3).

    python scripts/convert_checkpoint.py moco_v2_vit_s_300ep.pth.tar converted/moco_v2_vit_300ep --heads 12
    python scripts/pretrain.py --config configs/quick_tune_vit_aspp.py --workdir runs/quick_tune_vit_aspp \
        --config.data.path=/data/imagenet/train

The backbone is the checkpoint's, head and projection start at random. After finetuning on PASCAL VOC the paper reports
79.5 mIoU from MoCo v2's 300 epochs (Table 1, row CP2 QT v.300). Weights do not tell the number of attention heads: 12
is the original's default; for a network of 6, as DINO's and timm's, convert with --heads 6 and add
--config.model.vit.heads=6.
Any other ViT-S/16 of docs/checkpoints.md goes the same way. Only real keys are negatives (`loss.queue_start`): random
vectors would for the first 256 steps reward a fresh projection for making all images alike.
"""

from cp2_jax.configs import pretrain_vit_aspp


def get_config(preset: str = "paper"):
    config = pretrain_vit_aspp.get_config(preset)
    config.epochs = 20
    config.init.checkpoint = "converted/moco_v2_vit_300ep"
    if preset == "paper":
        config.loss.queue_start = "keys"
    return config
