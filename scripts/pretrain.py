"""Pretrain a segmentation model on images without labels: python scripts/pretrain.py --help; the same as `cp2 pretrain`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("pretrain")
