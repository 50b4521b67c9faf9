"""Normalised inputs and back."""

import numpy as np
from helpers.looks import random_images

from cp2_jax.models import inputs

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def test_denormalize_undoes_normalize():
    batch = random_images()
    np.testing.assert_array_equal(inputs.denormalize(inputs.normalize(batch, MEAN, STD), MEAN, STD), batch)
    assert inputs.denormalize(np.full((1, 1, 3), 99.0), MEAN, STD).max() == 255
    assert inputs.denormalize(np.full((1, 1, 3), -99.0), MEAN, STD).max() == 0
