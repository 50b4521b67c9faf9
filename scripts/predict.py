"""Predict class maps of a folder of images: python scripts/predict.py --help; the same as `cp2 predict`."""

import _cli

if __name__ == "__main__":
    _cli.run("predict")
