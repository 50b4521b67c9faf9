"""CP2 Quick Tuning: 20 epochs on ImageNet from a published backbone (paper, section 3.3); configs/pretrain.py:quick_tune.

    cp2 convert moco_v2_800ep_pretrain.pth.tar converted/moco_v2_800ep
    cp2 pretrain --config quick_tune --workdir runs/quick_tune_r50_aspp \
        --config.data.path=/data/imagenet/train

The backbone is the checkpoint's; head and projection start at random. Variants as in configs/pretrain.py, in any order:

| config | starts from (`init.checkpoint`) | expected after finetuning on PASCAL VOC |
|---|---|---|
| `configs/quick_tune.py` | MoCo v2, 800 epochs | 78.6 mIoU (Table 1, row CP2 QT r.800) |
| `configs/quick_tune.py`, with converted/moco_v2_200ep | MoCo v2, 200 epochs | 76.5 mIoU (Table 1, row CP2 QT r.200) |
| `configs/quick_tune.py:fcn` | MoCo v2, 800 epochs | 75.7 mIoU (Table 2, row CP2 QT r.800) |
| `configs/quick_tune.py:fcn`, with converted/moco_v2_200ep | MoCo v2, 200 epochs | 75.2 mIoU (Table 2, row CP2 QT r.200) |
| `configs/quick_tune.py:vit` | MoCo v2's ViT-S/16, 300 epochs | 79.5 mIoU (Table 1, row CP2 QT v.300) |
| `configs/quick_tune.py:vit,fcn` | MoCo v2's ViT-S/16, 300 epochs | 78.6 mIoU (Table 2, row CP2 QT v.300) |

For a ViT, convert with
`cp2 convert moco_v2_vit_s_300ep.pth.tar converted/moco_v2_vit_300ep --heads 6`: the paper borrows that
model from DINO, whose ViT-S/16 has 6 heads. Weights do not tell the number; for a network of 12 (MoCo v3's) convert with
--heads 12 and add --config.model.vit.heads=12.
Any other ResNet-50 or ViT-S/16 of docs/checkpoints.md goes the same way, with --config.init.checkpoint=DIRECTORY.
"""

from ml_collections import ConfigDict

from cp2_jax.configs import pretrain


def get_config(variants: str = "") -> ConfigDict:
    """Return `configs/pretrain.py:quick_tune` with more variants; see `pretrain.get_config`."""
    return pretrain.get_config(f"quick_tune,{variants}")
