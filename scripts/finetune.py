"""Finetune a model on images with masks: python scripts/finetune.py --help; the same as `cp2 finetune`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("finetune")
