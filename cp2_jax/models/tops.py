"""What stands on a head: the projection of pretraining, the classifier of finetuning."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.initial import torch_bias_init, torch_linear_init

Features = Float[Array, "batch height width channels"]


class Projection(nn.Module):
    """Two 1x1 convolutions with a ReLU between them (section 3.2): head features to the contrastive space."""

    dim: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        del train
        for number, features in ((1, x.shape[-1]), (2, self.dim)):
            x = nn.Conv(
                features,
                (1, 1),
                dtype=self.dtype,
                kernel_init=torch_linear_init,
                bias_init=torch_bias_init(x.shape[-1]),
                name=f"conv{number}",
            )(x)
            x = nn.relu(x) if number == 1 else x
        return x


class Classifier(nn.Module):
    """Dropout and a 1x1 convolution to the classes, which starts as N(0, 0.01) with zero bias (decode_head.py:142)."""

    num_classes: int
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        # Whole channels are dropped, as by PyTorch's Dropout2d.
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        return nn.Conv(
            self.num_classes, (1, 1), dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name="conv_seg"
        )(x)
