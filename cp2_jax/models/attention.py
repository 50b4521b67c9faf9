"""Multi-head self-attention, by whichever kernels."""

import functools
import logging
from collections.abc import Sequence
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
    attention: str = "auto"

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


def attend(
    query: Float[Array, "batch tokens heads size"],
    key: Float[Array, "batch tokens heads size"],
    value: Float[Array, "batch tokens heads size"],
) -> Float[Array, "batch tokens heads size"]:
    """Attention by cuDNN's fused kernels where they are right, by XLA's elsewhere: the same but for rounding.

    The platform that the program is compiled for decides; on a machine with NVIDIA cards a line is logged if they, or the
    dtype, rule the kernels out (`obstacle`). They keep the tokens-by-tokens array out of memory: a step of ViT-S + ASPP
    took 68.1 ms instead of 92.3 and 12.9 GB of temporaries instead of 21.0 (H200, batch 256, 26 November 2026).
    """
    cards = _cards()
    if reason := obstacle(query, cards):
        if cards:
            _say_once(f"attention is computed by XLA, not by cuDNN's fused kernels: {reason}")
        return jax.nn.dot_product_attention(query, key, value)
    branches = {"cuda": attend_padded, "default": jax.nn.dot_product_attention}
    return jax.lax.platform_dependent(query, key, value, **branches)


def obstacle(query: Float[Array, "batch tokens heads size"], cards: Sequence[jax.Device]) -> str:
    """Return why cuDNN's fused attention cannot serve on these cards, in a few words; "" where it can.

    Args:
      query: only shape and dtype are read.
      cards: NVIDIA devices, each with a `compute_capability`, such as "8.0". Without any, the program may still be compiled
        for cards elsewhere (`planning.cards`), and those are new enough.
    """
    if query.dtype != jnp.bfloat16:
        return f"they take model.dtype=bfloat16, not {query.dtype}"
    oldest = min(cards, key=lambda card: _version(card.compute_capability), default=None)
    if oldest and _version(oldest.compute_capability) < _AMPERE:
        return f"they need compute capability 8.0 (Ampere) or newer, {oldest.device_kind} has {oldest.compute_capability}"
    try:  # JAX has the rest of the rules: cuDNN's version, the heads' sizes
        jax.eval_shape(attend_padded, query, query, query)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return ""


_AMPERE = (8, 0)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def _cards() -> list[jax.Device]:
    """Return this process's NVIDIA devices; none where there is no such platform."""
    try:
        return jax.local_devices(backend="cuda")
    except RuntimeError:
        return []


@functools.cache
def _say_once(line: str) -> None:
    logging.warning(line)


# "auto" chooses for each device; "xla" and "cudnn" are for comparisons.
ATTENTIONS = {"auto": attend, "xla": jax.nn.dot_product_attention, "cudnn": attend_padded}


def dense(inputs: int, features: int, dtype: Any, name: str) -> nn.Dense:
    """Return a dense layer of the original's initialisation."""
    # Weights by the original's initialiser; its biases keep PyTorch's default.
    return nn.Dense(features, dtype=dtype, kernel_init=NORMAL, bias_init=torch_bias_init(inputs), name=name)
