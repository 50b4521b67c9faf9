"""Definitions written out one value after the other, to compare with."""

import numpy as np


def upsampled_by_hand(x, height, width):
    """PyTorch's definition for align_corners=False, one output pixel after the other."""
    rows, columns = x.shape[:2]
    out = np.zeros((height, width, x.shape[2]))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            z = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, rows - 1), min(z0 + 1, columns - 1)
            top = x[y0, z0] * (1 - z + z0) + x[y0, z1] * (z - z0)
            bottom = x[y1, z0] * (1 - z + z0) + x[y1, z1] * (z - z0)
            out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out
