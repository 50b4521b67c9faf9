"""What network a set of canonical names is: depth and width from names and shapes, and every tensor that it must have."""

import math
import re
from collections.abc import Mapping
from typing import Any

from cp2_jax.convert.containers.pickles import Refused
from cp2_jax.models.resnet import STAGE_SIZES

Shapes = dict[str, tuple[int, ...]]
_BASIC = (18, 34)


def _norm(name: str, channels: int, running: bool) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var") if running else ("weight", "bias")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves}


def describe_backbone(shapes: Mapping[str, tuple], stage_sizes: tuple[int, ...] | None) -> tuple[dict[str, Any], Shapes]:
    """Return (description in the words of `config.model`, every tensor's shape) of the backbone among these names.

    Raises:
      Refused: the network is not one of ours, with the reason.
    """
    if any(name.startswith("backbone.blocks.") for name in shapes):
        return _vit(shapes)
    return _resnet(shapes, stage_sizes)


def _resnet(shapes, stage_sizes):
    blocks: dict[int, int] = {}
    for name in shapes:
        match = re.match(r"backbone\.layer(\d)\.(\d+)\.", name)
        if match:
            blocks[int(match[1])] = max(blocks.get(int(match[1]), 0), int(match[2]) + 1)
    stages = tuple(blocks.get(i, 0) for i in range(1, 5))
    bottleneck = any(re.fullmatch(r"backbone\.layer\d\.\d+\.conv3\.weight", name) for name in shapes)
    depths = [d for d, sizes in STAGE_SIZES.items() if sizes == stages and (d not in _BASIC) == bottleneck]
    if not depths and stages != stage_sizes:
        known = ", ".join(f"{d}: {'-'.join(map(str, s))}" for d, s in STAGE_SIZES.items())
        raise Refused(
            f"its stages have {'-'.join(map(str, stages))} {'bottleneck' if bottleneck else 'basic'} blocks, as no known "
            f"ResNet ({known}): tensors are missing. If it is meant so, pass --stage_sizes {','.join(map(str, stages))}"
        )
    stem = _size(shapes, "backbone.conv1.weight", 0, 64)
    width = _size(shapes, "backbone.layer1.0.conv1.weight", 0, stem)
    expected = {"backbone.conv1.weight": (stem, 3, 7, 7), **_norm("backbone.bn1", stem, True)}
    inputs = stem
    for stage, count in enumerate(stages, 1):
        inner = width * 2 ** (stage - 1)
        outputs = inner * 4 if bottleneck else inner
        for block in range(count):
            name = f"backbone.layer{stage}.{block}"
            sizes = [(inputs, inner, 1), (inner, inner, 3), (inner, outputs, 1)]
            sizes = sizes if bottleneck else [(inputs, inner, 3), (inner, inner, 3)]
            for number, (before, after, side) in enumerate(sizes, 1):
                expected[f"{name}.conv{number}.weight"] = (after, before, side, side)
                expected |= _norm(f"{name}.bn{number}", after, True)
            if block == 0 and (stage > 1 or inputs != outputs):
                expected[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                expected |= _norm(f"{name}.downsample.1", outputs, True)
            inputs = outputs
    # Without a known depth, 50 and 18 say which kind of block.
    resnet = {"depth": depths[0] if depths else 50 if bottleneck else 18, "width": width, "stem_width": stem}
    resnet["stage_sizes"] = () if depths else stages
    return {"backbone": "resnet", "resnet": resnet, "outputs": inputs}, expected


def _vit(shapes):
    for prefix, reason in _NOT_OUR_VIT.items():
        found = [name for name in shapes if re.match(rf"backbone\.{prefix}", name)]
        if found:
            raise Refused(f"{found[0].removeprefix('backbone.')}: {reason}")
    depth = 1 + max(int(m[1]) for m in (re.match(r"backbone\.blocks\.(\d+)\.", n) for n in shapes) if m)
    if depth > 1000:
        raise Refused(f"a ViT of {depth} blocks")
    patch_shape = shapes.get("backbone.patch_embed.proj.weight", (384, 3, 16, 16))
    width, patch = patch_shape[0], patch_shape[-1]
    positions = _size(shapes, "backbone.pos_embed", 1, 197)
    grid = math.isqrt(max(positions - 1, 0))
    if grid * grid != positions - 1:
        kind = "a table without an entry for the class token" if math.isqrt(positions) ** 2 == positions else "no square"
        raise Refused(f"pos_embed has {positions} entries ({kind}); a square and one for the class token are needed")
    hidden = _size(shapes, "backbone.blocks.0.mlp.fc1.weight", 0, 4 * width)
    if hidden % width:
        raise Refused(f"an MLP of {hidden} channels in a ViT of {width}: no whole ratio")
    expected = {
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, positions, width),
        "backbone.patch_embed.proj.weight": (width, 3, patch, patch),
        "backbone.patch_embed.proj.bias": (width,),
    }
    for block in range(depth):
        name = f"backbone.blocks.{block}"
        expected |= _norm(f"{name}.norm1", width, False) | _norm(f"{name}.norm2", width, False)
        for layer, outputs, inputs in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            expected[f"{name}.{layer}.weight"] = (outputs, inputs)
            expected[f"{name}.{layer}.bias"] = (outputs,)
    final_norm = any(name.startswith("backbone.norm.") for name in shapes)
    if final_norm:
        expected |= _norm("backbone.norm", width, False)
    vit = {"patch": patch, "width": width, "depth": depth, "mlp_ratio": hidden // width, "final_norm": final_norm}
    return {"backbone": "vit", "vit": vit, "image_size": grid * patch, "outputs": width}, expected


_NOT_OUR_VIT = {
    "dist_token": "a distilled DeiT, with a second token; this project's ViT has the class token alone",
    "reg_token": "a ViT with register tokens, which this project's has not",
    r"blocks\.\d+\.(ls1|ls2|gamma_)": "a ViT with layer scale, which this project's has not",
}
# Backbones that share names with ours and are others: (start of the name, reason).
NOT_OURS = (
    ("stem.", "MMSegmentation's ResNetV1c, with a stem of three 3x3 convolutions; this project's ResNet has one 7x7"),
    ("dist_token", _NOT_OUR_VIT["dist_token"]),
    ("reg_token", _NOT_OUR_VIT["reg_token"]),
)


def describe_head(shapes: Mapping[str, tuple], inputs: int) -> tuple[dict[str, Any], Shapes]:
    """Return (description in `config.model`'s words, every tensor's shape) of the head; both empty if there is none."""
    modules = r"decode_head\.(image_pool|aspp_modules|bottleneck|convs|conv_cat)\."
    names = [name for name in shapes if re.match(modules, name)]
    if not names:
        return {}, {}
    if any(re.match(r"decode_head\.(aspp_modules|image_pool)\.", name) for name in names):
        branches = 1 + max((int(m[1]) for m in (re.match(r".*aspp_modules\.(\d+)\.", n) for n in names) if m), default=0)
        _few(branches, "ASPP branches")
        channels = _size(shapes, "decode_head.bottleneck.conv.weight", 0, 512)
        expected = _conv_bn("decode_head.image_pool.1", channels, inputs, 1)
        for index in range(branches):
            side = _size(shapes, f"decode_head.aspp_modules.{index}.conv.weight", 2, 3)
            expected |= _conv_bn(f"decode_head.aspp_modules.{index}", channels, inputs, side)
        expected |= _conv_bn("decode_head.bottleneck", channels, (branches + 1) * channels, 3)
        head = {"head": "aspp", "aspp": {"channels": channels}}
    else:
        count = 1 + max((int(m[1]) for m in (re.match(r".*convs\.(\d+)\.", n) for n in names) if m), default=0)
        _few(count, "convolutions")
        channels = _size(shapes, "decode_head.convs.0.conv.weight", 0, 256)
        expected = {}
        for index in range(count):
            expected |= _conv_bn(f"decode_head.convs.{index}", channels, channels if index else inputs, 3)
        cat = any(name.startswith("decode_head.conv_cat.") for name in names)
        if cat:
            expected |= _conv_bn("decode_head.conv_cat", channels, channels + inputs, 3)
        head = {"head": "fcn", "fcn": {"channels": channels, "num_convs": count, "concat_input": cat}}
    if any(name.startswith("decode_head.contrast_conv.") for name in shapes):
        dim = _size(shapes, "decode_head.contrast_conv.2.weight", 0, 128)
        for index, outputs in ((0, channels), (2, dim)):
            expected[f"decode_head.contrast_conv.{index}.weight"] = (outputs, channels, 1, 1)
            expected[f"decode_head.contrast_conv.{index}.bias"] = (outputs,)
        head["projection_dim"] = dim
    if any(name.startswith("decode_head.conv_seg.") for name in shapes):
        classes = _size(shapes, "decode_head.conv_seg.weight", 0, 1)
        expected["decode_head.conv_seg.weight"] = (classes, channels, 1, 1)
        expected["decode_head.conv_seg.bias"] = (classes,)
        head["num_classes"] = classes
    return head, expected


def _conv_bn(name, outputs, inputs, side):
    return {f"{name}.conv.weight": (outputs, inputs, side, side), **_norm(f"{name}.bn", outputs, True)}


def _few(count, what):
    if count > 64:
        raise Refused(f"a head of {count} {what}")


def _size(shapes, name, axis, default):
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else default
