"""Vision transformer backbone (ViT-S/16 by default) as the original's: no final norm, class token left out at the end."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.heads import torch_bias_init, torch_linear_init

# The original truncates at an absolute 2, a hundred deviations away.
_NORMAL = nn.initializers.normal(0.02)


def resize_positions(
    table: Float[Array, "1 positions width"], grid: tuple[int, int]
) -> Float[Array, "1 new_positions width"]:
    """Resize a square position table to `grid` (rows, columns); the class token's entry stays.

    PyTorch's bicubic interpolation (a = -0.75, align_corners=False, no antialiasing), which CP2 and DINO use.
    `jax.image.resize` has a = -0.5 and antialiases.
    """
    side = int(round((table.shape[1] - 1) ** 0.5))
    if (side, side) == tuple(grid):
        return table
    square = table[:, 1:].reshape(side, side, -1)
    rows, columns = (jnp.asarray(_bicubic_matrix(side, n), table.dtype) for n in grid)
    exact = jax.lax.Precision.HIGHEST
    resized = jnp.einsum("ij,jkc,lk->ilc", rows, square, columns, precision=exact)
    return jnp.concatenate([table[:, :1], resized.reshape(1, -1, table.shape[2])], axis=1)


def _bicubic_matrix(old: int, new: int) -> np.ndarray:
    """Weights [new, old] of one axis; samples beyond the border repeat the border's."""
    a = -0.75
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(centre - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * a * distance - 4 * a
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return matrix


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value, in PyTorch's order (3, heads, head size)."""

    heads: int
    dtype: Any
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        batch, tokens, width = x.shape
        # PyTorch's default law: the original's initialiser misses this layer (paper_vs_code item 20).
        qkv = nn.Dense(
            3 * width, dtype=self.dtype, kernel_init=torch_linear_init, bias_init=torch_bias_init(width), name="qkv"
        )(x)
        query, key, value = jnp.moveaxis(qkv.reshape(batch, tokens, 3, self.heads, width // self.heads), 2, 0)
        # The library's attention has a float32 softmax, too coarse for float64 (the parity tests).
        attend = _attend_plainly if self.dtype == jnp.float64 else ATTENTIONS[self.attention]
        mixed = attend(query, key, value).reshape(batch, tokens, width)
        return _dense(width, width, self.dtype, "proj")(mixed)


def _attend_plainly(query, key, value):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def attend_padded(query, key, value, implementation: str | None = "cudnn"):
    """Attention over a sequence padded to a multiple of 8, for kernels that want even lengths; the result is not padded.

    cuDNN's fused kernels, forward and backward, take 16-bit floats and even lengths; ViT's is odd (the class token).
    """
    batch, tokens = query.shape[:2]
    pad = lambda x: jnp.pad(x, ((0, 0), (0, -tokens % 8), (0, 0), (0, 0)))  # noqa: E731
    lengths = jnp.full((batch,), tokens, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        pad(query), pad(key), pad(value), key_value_seq_lengths=lengths, implementation=implementation
    )
    return mixed[:, :tokens]


# "cudnn" keeps the tokens-by-tokens array out of memory on NVIDIA GPUs; not yet measured, hence not the default.
ATTENTIONS = {"xla": jax.nn.dot_product_attention, "cudnn": attend_padded}


def _dense(inputs, features, dtype, name):
    # Weights by the original's initialiser; its biases keep PyTorch's default.
    return nn.Dense(features, dtype=dtype, kernel_init=_NORMAL, bias_init=torch_bias_init(inputs), name=name)


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        width = x.shape[-1]
        x = nn.gelu(_dense(width, self.hidden, self.dtype, "fc1")(x), approximate=False)
        return _dense(self.hidden, width, self.dtype, "fc2")(x)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    hidden: int
    dtype: Any
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        norm = lambda name: nn.LayerNorm(1e-6, dtype=self.dtype, use_fast_variance=False, name=name)  # noqa: E731
        x = x + Attention(self.heads, self.dtype, self.attention, name="attn")(norm("norm1")(x))
        return x + Mlp(self.hidden, self.dtype, name="mlp")(norm("norm2")(x))


class ViT(nn.Module):
    """Vision transformer.

    Attributes:
      image_size: side in pixels that the position table is made for; other sizes resize it.
      patch: side of a patch in pixels, which is the output stride.
      heads: cannot be read from weights: DINO and timm have 6 for ViT-S, the original and MoCo v3 12.
      final_norm: LayerNorm after the last block; the original has none.
      attention: a name in `ATTENTIONS`.
      remat: compute each block again in the backward pass instead of keeping what is inside it.
    """

    image_size: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    final_norm: bool = False
    attention: str = "xla"
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"], train: bool) -> tuple[Float[Array, "batch _ _ _"]]:
        """Return the last block's patch tokens as one map, at stride `patch`.

        Raises:
          ValueError: if the image's sides are not multiples of the patch.
        """
        del train
        batch, height, width, channels = x.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"image of {height} x {width} pixels: a ViT needs multiples of its patch, {self.patch}")
        grid = (height // self.patch, width // self.patch)
        fan_in = self.patch * self.patch * channels
        x = nn.Conv(
            self.width,
            (self.patch, self.patch),
            (self.patch, self.patch),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=torch_linear_init,
            bias_init=torch_bias_init(fan_in),
            name="patch_embed",
        )(x.astype(self.dtype)).reshape(batch, -1, self.width)
        positions = (self.image_size // self.patch) ** 2 + 1
        class_token = self.param("cls_token", _NORMAL, (1, 1, self.width))
        table = self.param("pos_embed", _NORMAL, (1, positions, self.width))
        class_token = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, self.width))
        x = jnp.concatenate([class_token, x], axis=1) + resize_positions(table, grid).astype(self.dtype)
        block = nn.remat(EncoderBlock) if self.remat else EncoderBlock
        for index in range(self.depth):
            x = block(self.heads, self.width * self.mlp_ratio, self.dtype, self.attention, name=f"blocks_{index}")(x)
        if self.final_norm:
            x = nn.LayerNorm(1e-6, dtype=self.dtype, use_fast_variance=False, name="norm")(x)
        return (x[:, 1:].reshape(batch, *grid, self.width),)
