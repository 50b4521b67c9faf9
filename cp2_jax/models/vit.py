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

from cp2_jax.models.activations import gelu
from cp2_jax.models.attention import ATTENTIONS, NORMAL, Attention, dense, split_heads
from cp2_jax.models.initial import torch_bias_init, torch_linear_init
from cp2_jax.models.interface import Backbone, Described, Shapes, axis, count, limit, read
from cp2_jax.models.positions import resize_positions
from cp2_jax.options import nearest_divisors, one_of, positive, require, true_or_false


def _norm(dtype, name):
    return nn.LayerNorm(1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Mlp(nn.Module):
    """Two dense layers with the exact GELU between them."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        width = x.shape[-1]
        x = gelu(dense(width, self.hidden, self.dtype, "fc1")(x))
        return dense(self.hidden, width, self.dtype, "fc2")(x)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    heads: int
    hidden: int
    dtype: Any
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        x = x + Attention(self.heads, self.dtype, self.attention, name="attn")(_norm(self.dtype, "norm1")(x))
        return x + Mlp(self.hidden, self.dtype, name="mlp")(_norm(self.dtype, "norm2")(x))


REMAINDERS = ("pad", "drop", "stretch")


@dataclasses.dataclass(frozen=True)
class ViTOptions:
    """`config.model.vit`.

    Attributes:
      patch: side of a patch in pixels, which is the output stride.
      width: channels of each token. depth: number of blocks. mlp_ratio: hidden channels of a block's MLP over `width`.
      heads: cannot be read from weights: DINO and timm have 6 for ViT-S, the original's default and MoCo v3 12.
      remainder: what becomes of rows and columns beyond the last whole patch. "pad": images must be whole patches;
        prediction pads them with the mean, below and right, and cuts that off the result. "drop": they are left out, and
        the map is taken for one of the whole image, as in the original and MMSegmentation 0.14: each of its pixels stands
        for slightly more than a patch. "stretch": images are padded with the mean, and the map is taken for one of the
        image without padding, as in MMSegmentation 1.x.
      final_norm: LayerNorm after the last block; the original has none.
      attention: a name in `ATTENTIONS`.
    """

    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
    remainder: str = "pad"
    final_norm: bool = False
    attention: str = "auto"

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
        one_of("model.vit.remainder", options.remainder, REMAINDERS)
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
          ValueError: if the image's sides are not multiples of the patch, or it is smaller than one (see `remainder`).
        """
        del train
        options, patch = self.options, self.options.patch
        x = _whole_patches(x, patch, options.remainder)
        batch, height, width, inputs = x.shape
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
        class_token = self.param("cls_token", NORMAL, (1, 1, options.width))
        table = self.param("pos_embed", NORMAL, (1, positions, options.width))
        class_token = jnp.broadcast_to(class_token.astype(self.dtype), (batch, 1, options.width))
        x = jnp.concatenate([class_token, x], axis=1) + resize_positions(table, grid).astype(self.dtype)
        block, hidden = nn.remat(EncoderBlock) if self.remat else EncoderBlock, options.width * options.mlp_ratio
        for index in range(options.depth):
            x = block(options.heads, hidden, self.dtype, options.attention, name=f"blocks_{index}")(x)
        if options.final_norm:
            x = _norm(self.dtype, "norm")(x)
        return (x[:, 1:].reshape(batch, *grid, options.width),)


def _whole_patches(x, patch, remainder):
    """Return images whose sides are multiples of the patch, see `ViTOptions.remainder`."""
    height, width = x.shape[1:3]
    if remainder == "stretch":
        return jnp.pad(x, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)))
    if remainder == "drop":
        x = x[:, : height // patch * patch, : width // patch * patch]
    elif height % patch or width % patch:
        raise ValueError(f"image of {height} x {width} pixels: a ViT needs multiples of its patch, {patch}")
    if 0 in x.shape[1:3]:  # a batch may be empty
        raise ValueError(f"image of {height} x {width} pixels: smaller than a ViT's patch, {patch}")
    return x


def class_attention(
    model: ViT, variables: Mapping, images: Float[Array, "batch height width 3"]
) -> Float[Array, "batch rows columns"]:
    """Return the last block's attention of the class token to the patches, averaged over the heads.

    Args:
      model: of depth >= 1. variables: {'params': …} of the backbone only. images: normalised.

    The token's attention to itself is left out: rows do not sum to 1.
    """

    def is_qkv(module, method):
        return module.name == "qkv"

    _, state = model.apply(variables, images, False, capture_intermediates=is_qkv, mutable=["intermediates"])
    last = f"blocks_{model.options.depth - 1}"
    query, key, _ = split_heads(state["intermediates"][last]["attn"]["qkv"]["__call__"][0], model.options.heads)
    logits = jnp.einsum("bhd,bkhd->bhk", query[:, 0], key) / query.shape[-1] ** 0.5
    weights = jnp.mean(jax.nn.softmax(logits.astype(jnp.float32)), axis=1)
    whole = _whole_patches(images, model.options.patch, model.options.remainder)
    grid = (side // model.options.patch for side in whole.shape[1:3])
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


def in_mmsegmentation(options: ViTOptions, image_size: int) -> dict[str, Any]:
    """Return the arguments of MMSegmentation 0.14's ViT, which the original copied. Images must be whole patches."""
    return {
        "type": "VisionTransformer",
        "img_size": (image_size, image_size),
        "patch_size": options.patch,
        "embed_dim": options.width,
        "depth": options.depth,
        "num_heads": options.heads,
        "mlp_ratio": options.mlp_ratio,
        "final_norm": options.final_norm,
        "out_indices": (options.depth - 1,),
    }


def _build(options: ViTOptions, *, image_size: int, norm: Callable[..., nn.Module], dtype: Any, remat: bool) -> ViT:
    return ViT(options, image_size=image_size, dtype=dtype, remat=remat)


def _patch(options: ViTOptions) -> int:
    return options.patch


def _multiple(options: ViTOptions) -> int:
    return options.patch if options.remainder == "pad" else 1


# Of pretraining and finetuning alike (section 4.1).
_ADAMW = {"name": "adamw", "learning_rate": 5e-5}


def layers(options: ViTOptions) -> tuple[int, Callable[[str], int]]:
    """Return the number of layers and the layer of each parameter, as BEiT counts them: embeddings, blocks, last norm (with
    which it counts the head)."""

    def layer(path: str) -> int:
        name = path.partition("/")[0]
        if name.startswith("blocks_"):
            return int(name.removeprefix("blocks_")) + 1
        return options.depth + 1 if name == "norm" else 0

    return options.depth + 2, layer


BACKBONE = Backbone(
    options=ViTOptions,
    build=_build,
    stages=1,
    stride=_patch,
    multiple=_multiple,
    stride_is="the ViT's patch",
    must_agree=("patch", "width", "depth", "heads", "mlp_ratio"),
    may_differ=("remainder",),
    computed_by=("attention",),
    layers=layers,
    fit=fit,
    describe=describe,
    reads_image="patch_embed/kernel",
    in_mmsegmentation=in_mmsegmentation,
    absent_is_zero=("patch_embed/bias",),
    class_attention=class_attention,
    pretrain_optimizer=_ADAMW | {"weight_decay": 0.01},
    finetune_optimizer=_ADAMW | {"min_learning_rate": 0.0},
    random_head_decay=0.01,
)
