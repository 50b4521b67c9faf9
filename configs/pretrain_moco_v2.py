"""MoCo v2, the paper's direct baseline: ResNet-50, global average pooling, 2-layer MLP, ImageNet, 200 epochs, batch 256.

    python scripts/pretrain.py --config configs/pretrain_moco_v2.py --workdir runs/moco_v2 \
        --config.data.path=/data/imagenet/train

Same step, losses, queue and augmentation as CP2, without copy-paste and dense loss. As in the official code
(main_moco.py --mlp --moco-t 0.2 --aug-plus --cos): hidden layer as wide as the backbone's output, 128 outputs, temperature
0.2, 65,536 keys, momentum 0.999, statistics of 8 GPUs x 32 images. The network is a classifier's: output stride 32.
Expected: 67.5 % top-1 of a linear classifier on ImageNet (MoCo v2, Table 1); after finetuning on PASCAL VOC with
--config.init.head=random 74.9 mIoU (Table 1, row MoCo v2, 200). --config.epochs=800 is the 77.2 row.
"""

from cp2_jax.configs import pretrain_r50_aspp


def get_config():
    config = pretrain_r50_aspp.get_config()
    config.bn_groups = 8
    config.data.backgrounds = "in_batch"  # none is seen: nothing more has to be decoded
    config.augment.mask = "full"
    config.model.head = "pool"
    config.model.resnet.output_stride = 32
    config.loss.alpha = 0.0
    config.optimizer.schedule = "cosine_by_epoch"  # as the official code steps it
    return config
