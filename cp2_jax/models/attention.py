"""Multi-head self-attention, by whichever kernels."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.initial import torch_bias_init, torch_linear_init

# The original truncates at an absolute 2, a hundred deviations away.
NORMAL = nn.initializers.normal(0.02)


def split_heads(qkv: Float[Array, "batch tokens fused"], heads: int) -> tuple[Float[Array, "batch tokens heads size"], ...]:
    """Return query, key and value of a fused layer's output: channels in PyTorch's order, (3, heads, head size)."""
    batch, tokens, fused = qkv.shape
    return tuple(jnp.moveaxis(qkv.reshape(batch, tokens, 3, heads, fused // 3 // heads), 2, 0))


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value, see `split_heads`."""

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
        query, key, value = split_heads(qkv, self.heads)
        # The library's attention has a float32 softmax, too coarse for float64 (the parity tests).
        attend = _attend_plainly if self.dtype == jnp.float64 else ATTENTIONS[self.attention]
        mixed = attend(query, key, value).reshape(batch, tokens, width)
        return dense(width, width, self.dtype, "proj")(mixed)


def _attend_plainly(query, key, value):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value)


def attend_padded(query, key, value, implementation: str | None = "cudnn"):
    """Attention over a sequence padded to a multiple of 8, for kernels that want even lengths; the result is not padded.

    cuDNN's fused kernels, forward and backward, take 16-bit floats and even lengths; ViT's is odd (the class token).
    """
    batch, tokens = query.shape[:2]

    def pad(x):
        return jnp.pad(x, ((0, 0), (0, -tokens % 8), (0, 0), (0, 0)))

    lengths = jnp.full((batch,), tokens, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        pad(query), pad(key), pad(value), key_value_seq_lengths=lengths, implementation=implementation
    )
    return mixed[:, :tokens]


# "cudnn" keeps the tokens-by-tokens array out of memory on NVIDIA GPUs; not yet measured, hence not the default.
ATTENTIONS = {"xla": jax.nn.dot_product_attention, "cudnn": attend_padded}


def dense(inputs: int, features: int, dtype: Any, name: str) -> nn.Dense:
    """Return a dense layer of the original's initialisation."""
    # Weights by the original's initialiser; its biases keep PyTorch's default.
    return nn.Dense(features, dtype=dtype, kernel_init=NORMAL, bias_init=torch_bias_init(inputs), name=name)
