"""Initial values as PyTorch's layers have them."""

import numpy as np
from flax import linen as nn

# PyTorch's default for weights of linear layers and convolutions: uniform within 1/sqrt(fan_in).
torch_linear_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", dtype=np.float32)


def torch_bias_init(fan_in: int) -> nn.initializers.Initializer:
    """Return PyTorch's default for their biases: uniform within 1/sqrt(fan_in)."""
    bound = 1 / np.sqrt(fan_in)

    def draw(key, shape, dtype=np.float32):
        return nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound

    return draw
