"""What tests of pictures look at."""

import numpy as np


def random_images(count=2, height=32, width=48, seed=0):
    """Return uint8 images of noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def shows(picture, rgb, least=20):
    """Say whether a picture has at least so many pixels of exactly this colour."""
    return (picture == np.array(rgb, np.uint8)).all(-1).sum() >= least


def is_picture(picture):
    """Say whether an array is an RGB picture with something in it."""
    return picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3 and picture.std() > 0
