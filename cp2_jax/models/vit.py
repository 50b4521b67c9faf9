"""Vision transformer backbone (ViT-S/16 by default) as the original's: no final norm, class token left out at the end."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.initial import torch_bias_init, torch_linear_init
from cp2_jax.models.interface import Backbone, Described, Shapes, axis, count, limit, read
from cp2_jax.options import nearest_divisors, one_of, positive, require, true_or_false

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
        return _dense(width, width, self.dtype, "proj")(mixed)


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


def _dense(inputs, features, dtype, name):
    # Weights by the original's initialiser; its biases keep PyTorch's default.
    return nn.Dense(features, dtype=dtype, kernel_init=_NORMAL, bias_init=torch_bias_init(inputs), name=name)


def _norm(dtype, name):
    return nn.LayerNorm(1e-6, dtype=dtype, use_fast_variance=False, name=name)


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
        x = x + Attention(self.heads, self.dtype, self.attention, name="attn")(_norm(self.dtype, "norm1")(x))
        return x + Mlp(self.hidden, self.dtype, name="mlp")(_norm(self.dtype, "norm2")(x))


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """`config.model.vit`.

    Attributes:
      patch: side of a patch in pixels, which is the output stride.
      width: channels of each token. depth: number of blocks. mlp_ratio: hidden channels of a block's MLP over `width`.
      heads: cannot be read from weights: DINO and timm have 6 for ViT-S, the original and MoCo v3 12.
      final_norm: LayerNorm after the last block; the original has none.
      attention: a name in `ATTENTIONS`.
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 12
    mlp_ratio: int = 4
    final_norm: bool = False
    attention: str = "xla"

    @classmethod
    def from_config(cls, section: Mapping, dtype: str = "float32") -> "ViTOptions":
        """Read and check the section, for a computation in `dtype`; raises `ConfigError`."""
        options = read(cls, "vit", section)
        for key in ("patch", "width", "depth", "heads", "mlp_ratio"):
            positive(f"model.vit.{key}", getattr(options, key))
        fix = f"must divide model.vit.width={options.width}; use {nearest_divisors(options.heads, options.width)}"
        require(options.width % options.heads == 0, "model.vit.heads", options.heads, fix)
        true_or_false("model.vit.final_norm", options.final_norm)
        one_of("model.vit.attention", options.attention, ATTENTIONS)
        fused, fix = options.attention == "cudnn", "needs model.dtype=bfloat16; use it, or 'xla'"
        require(not fused or dtype == "bfloat16", "model.vit.attention", "cudnn", fix)
        return options


class ViT(nn.Module):
    """Vision transformer.

    Attributes:
      image_size: side in pixels that the position table is made for; other sizes resize it.
      remat: compute each block again in the backward pass instead of keeping what is inside it.
    """

    options: ViTOptions = ViTOptions()
    image_size: int = 224
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"], train: bool) -> tuple[Float[Array, "batch _ _ _"]]:
        """Return the last block's patch tokens as one map, at stride `patch`.

        Raises:
          ValueError: if the image's sides are not multiples of the patch.
        """
        del train
        options, patch = self.options, self.options.patch
        batch, height, width, inputs = x.shape
        if height % patch or width % patch:
            raise ValueError(f"image of {height} x {width} pixels: a ViT needs multiples of its patch, {patch}")
        grid = (height // patch, width // patch)
        x = nn.Conv(
            options.width,
            (patch, patch),
            (patch, patch),
            padding="VALID",
            dtype=self.dtype,
            kernel_init=torch_linear_init,
            bias_init=torch_bias_init(patch * patch * inputs),
            name="patch_embed",
        )(x.astype(self.dtype)).reshape(batch, -1, options.width)
        positions = (self.image_size // patch) ** 2 + 1
        class_token = self.param("cls_token", _NORMAL, (1, 1, options.width))
        table = self.param("pos_embed", _NORMAL, (1, positions, options.width))
        class_token = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, options.width))
        x = jnp.concatenate([class_token, x], axis=1) + resize_positions(table, grid).astype(self.dtype)
        block, hidden = nn.remat(EncoderBlock) if self.remat else EncoderBlock, options.width * options.mlp_ratio
        for index in range(options.depth):
            x = block(options.heads, hidden, self.dtype, options.attention, name=f"blocks_{index}")(x)
        if options.final_norm:
            x = _norm(self.dtype, "norm")(x)
        return (x[:, 1:].reshape(batch, *grid, options.width),)


def class_attention(
    model: ViT, variables: Mapping, images: Float[Array, "batch height width 3"]
) -> Float[Array, "batch rows columns"]:
    """Return the last block's attention of the class token to the patches, averaged over the heads.

    Args:
      model: of depth >= 1. variables: {'params': …} of the backbone alone. images: normalised.

    The token's attention to itself is left out: rows do not sum to 1.
    """

    def is_qkv(module, method):
        return module.name == "qkv"

    _, state = model.apply(variables, images, False, capture_intermediates=is_qkv, mutable=["intermediates"])
    last = f"blocks_{model.options.depth - 1}"
    query, key, _ = split_heads(state["intermediates"][last]["attn"]["qkv"]["__call__"][0], model.options.heads)
    logits = jnp.einsum("bhd,bkhd->bhk", query[:, 0], key) / query.shape[-1] ** 0.5
    weights = jnp.mean(jax.nn.softmax(logits.astype(jnp.float32)), axis=1)
    grid = (side // model.options.patch for side in images.shape[1:3])
    return weights[:, 1:].reshape(images.shape[0], *grid)


def fit(params: Mapping, options: ViTOptions, image_size: int) -> tuple[dict, list[str]]:
    """Return (a checkpoint's parameters as a ViT of these options takes them, what was changed, a line each).

    The position table is resized to `image_size` (PyTorch's bicubic; the class token's entry stays), and the final norm
    left out where `final_norm` is False, as in the original.

    Raises:
      ValueError: a final norm is wanted and is not there.
    """
    params, changes = dict(params), []
    if not options.final_norm and params.pop("norm", None):
        changes.append("backbone/norm left out: config.model.vit.final_norm is False")
    if options.final_norm and "norm" not in params:
        raise ValueError("the checkpoint has no final norm: set config.model.vit.final_norm=False")
    side, table = image_size // options.patch, params["pos_embed"]
    if table.shape[1] != side * side + 1:
        old = round((table.shape[1] - 1) ** 0.5)
        params["pos_embed"] = np.asarray(resize_positions(jnp.asarray(table), (side, side)))
        changes.append(f"backbone/pos_embed resized from {old} x {old} to {side} x {side} patches")
    return params, changes


def describe(shapes: Shapes) -> Described | None:
    """Return the network that these weights are of; the number of heads is not among what they tell.

    Raises:
      ValueError: if it is not such a ViT, with the reason.
    """
    depth = count(shapes, r"blocks_(\d{1,6})/")
    if not depth:
        return None
    patch, width = axis(shapes, "patch_embed/kernel", 0, 16), axis(shapes, "patch_embed/kernel", -1, 384)
    limit("a ViT of depth", depth, 100)
    limit("a ViT of width", width, 2**15)
    limit("a patch of side", patch, 512)
    positions = axis(shapes, "pos_embed", 1, 197)
    limit("a position table of length", positions, 2**20)
    grid = math.isqrt(max(positions - 1, 0))
    if grid * grid != positions - 1:
        kind = "a table without an entry for the class token" if math.isqrt(positions) ** 2 == positions else "no square"
        raise ValueError(f"pos_embed has {positions} entries ({kind}); a square and one for the class token are needed")
    hidden = axis(shapes, "blocks_0/mlp/fc1/kernel", -1, 4 * width)
    if hidden % width or not hidden:
        raise ValueError(f"an MLP of {hidden} channels in a ViT of {width}: no whole ratio")
    limit("an MLP of ratio", hidden // width, 64)
    section = {"patch": patch, "width": width, "depth": depth, "heads": 1, "mlp_ratio": hidden // width}
    section["final_norm"] = any(path.startswith("norm/") for path in shapes)
    return Described(section, unknown=("heads",), image_size=grid * patch)


def _build(options: ViTOptions, *, image_size: int, norm: Callable[..., nn.Module], dtype: Any, remat: bool) -> ViT:
    return ViT(options, image_size=image_size, dtype=dtype, remat=remat)


def _patch(options: ViTOptions) -> int:
    return options.patch


# Of pretraining and finetuning alike (section 4.1).
_ADAMW = {"name": "adamw", "learning_rate": 5e-5}

BACKBONE = Backbone(
    options=ViTOptions,
    build=_build,
    stages=1,
    stride=_patch,
    multiple=_patch,
    stride_is="the ViT's patch",
    must_agree=("patch", "width", "depth", "heads", "mlp_ratio"),
    fit=fit,
    describe=describe,
    reads_image="patch_embed/kernel",
    class_attention=class_attention,
    pretrain_optimizer=_ADAMW | {"weight_decay": 0.01},
    finetune_optimizer=_ADAMW | {"min_learning_rate": 0.0},
    random_head_decay=0.01,
)
