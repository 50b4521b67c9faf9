"""Initial values as PyTorch's layers have them."""

import numpy as np
from flax import linen as nn


def torch_linear_init(key, shape, dtype=np.float32):
    """PyTorch's default for weights of linear layers and convolutions: uniform within 1/sqrt(fan_in)."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Return PyTorch's default for their biases: uniform within 1/sqrt(fan_in)."""
    bound = 1 / np.sqrt(fan_in)

    def draw(key, shape, dtype=np.float32):
        return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound

    return draw
