"""Segmentation heads (DeepLab v3's ASPP, FCN), MoCo's pooling, and what stands on them: projection, then classifier."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.conv import Conv
from cp2_jax.models.norm import BatchNorm

Features = Float[Array, "batch height width channels"]


class ConvBnRelu(nn.Module):
    """Convolution without bias, batch norm, ReLU: MMSegmentation's ConvModule."""

    features: int
    size: int = 3
    dilation: int = 1
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        x = Conv(self.features, self.size, dilation=self.dilation, dtype=self.dtype, name="conv")(x)
        return nn.relu(self.norm(dtype=self.dtype, name="bn")(x, train))


class ASPPHead(nn.Module):
    """DeepLab v3 head with image pooling, as in MMSegmentation: 512 channels, rates 1 (a 1x1), 6, 12, 18 in the paper."""

    channels: int = 512
    dilations: tuple[int, ...] = (1, 6, 12, 18)
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        layer = lambda *args, **options: ConvBnRelu(  # noqa: E731
            self.channels, *args, norm=self.norm, dtype=self.dtype, **options
        )
        pooled = layer(1, name="image_pool")(self.pool(x), train)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], self.channels))]
        for index, dilation in enumerate(self.dilations):
            branches.append(layer(1 if dilation == 1 else 3, dilation, name=f"aspp_{index}")(x, train))
        return layer(name="bottleneck")(jnp.concatenate(branches, axis=-1), train)

    def pool(self, x: Features) -> Features:
        """Return the mean over each image; a method of its own for `padded.masking`, which leaves padding out of it."""
        return jnp.mean(x, axis=(1, 2), keepdims=True)


class FCNHead(nn.Module):
    """Dilated 3x3 convolutions; the paper's has two of 256 channels at rate 6.

    `concat_input` adds MMSegmentation's last convolution over input and output joined (`conv_cat`).
    """

    channels: int = 256
    num_convs: int = 2
    dilation: int = 6
    concat_input: bool = False
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        options = dict(norm=self.norm, dtype=self.dtype)
        y = x
        for index in range(self.num_convs):
            y = ConvBnRelu(self.channels, dilation=self.dilation, name=f"convs_{index}", **options)(y, train)
        if self.concat_input:
            y = ConvBnRelu(self.channels, name="conv_cat", **options)(jnp.concatenate([x, y], axis=-1), train)
        return y


class PoolHead(nn.Module):
    """Global average pooling to one pixel, no parameters: with `Projection` on it, MoCo v2's network (its "MLP head").

    The masks of a pooled map are one pixel, too, so that losses and step are those of CP2.
    """

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Float[Array, "batch 1 1 channels"]:
        del train
        return jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(x.dtype)


def torch_linear_init(key, shape, dtype=jnp.float32):
    """PyTorch's default for weights of linear layers and convolutions: uniform within 1/sqrt(fan_in)."""
    return nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)


def torch_bias_init(fan_in: int):
    """PyTorch's default for their biases: uniform within 1/sqrt(fan_in)."""
    bound = 1 / np.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: nn.initializers.uniform(2 * bound)(key, shape, dtype) - bound


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
