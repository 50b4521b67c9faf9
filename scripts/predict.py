"""Predict class maps of a folder of images: python scripts/predict.py --help; the same as `cp2 predict`."""

import _cp2

if __name__ == "__main__":
    _cp2.run("predict")
