"""Names and axis orders of each family of sources, as rules onto MMSegmentation's names (`backbone.layer1.0.conv1.weight`).

A layout turns one source name into (canonical name, how to turn the array), or None if it does not know the name. A part of
a fused tensor ends in `#0`, `#1`, …; the parts are joined along the first axis.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

Turn = Callable[[np.ndarray], np.ndarray]


def _same(array):
    return array


def oihw(array):
    """From [rows, columns, inputs, outputs] to PyTorch's [outputs, inputs, rows, columns]."""
    return array.transpose(3, 2, 0, 1)


def flat(array):
    """From [1, 1, 1, channels] (Haiku's batch norm) to [channels]."""
    return array.reshape(-1)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One family of names.

    Attributes:
      name: as in messages.
      rules: (pattern of the whole source name, template or function of the match, turn).
      prepare: renames that need all names at once (TensorFlow numbers its layers in order of creation).
    """

    name: str
    rules: tuple[tuple[str, str | Callable[[re.Match], str], Turn], ...]
    prepare: Callable[[Iterable[str]], Mapping[str, str]] | None = None

    def assign(self, names: Iterable[str]) -> dict[str, tuple[str, Turn]]:
        """Return {source name: (canonical name, turn)} of the names it knows."""
        names = list(names)
        prepared = self.prepare(names) if self.prepare else {}
        found = {}
        for name in names:
            hit = self._rule(prepared.get(name, name))
            if hit:
                found[name] = hit
        return found

    def _rule(self, name: str) -> tuple[str, Turn] | None:
        for pattern, template, turn in self.rules:
            match = re.fullmatch(pattern, name)
            if match:
                return (template(match) if callable(template) else match.expand(template)), turn
        return None


_BN = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_WB = r"(weight|bias)"

TORCHVISION = Layout(
    "torchvision's ResNet names",
    (
        (r"conv1\.weight", r"backbone.\g<0>", _same),
        (rf"bn1\.{_BN}", r"backbone.\g<0>", _same),
        (r"layer[1-4]\.\d+\.conv[123]\.weight", r"backbone.\g<0>", _same),
        (rf"layer[1-4]\.\d+\.bn[123]\.{_BN}", r"backbone.\g<0>", _same),
        (r"layer[1-4]\.\d+\.downsample\.0\.weight", r"backbone.\g<0>", _same),
        (rf"layer[1-4]\.\d+\.downsample\.1\.{_BN}", r"backbone.\g<0>", _same),
    ),
)

_CHILDREN = {"0": "conv1", "1": "bn1"}


def _child(match: re.Match) -> str:
    """Name a child of torchvision's ResNet by its number: 0 conv1, 1 bn1, 4 to 7 the stages (2 and 3 have no weights)."""
    number, rest = match[1], match[2]
    return f"backbone.{_CHILDREN.get(number) or f'layer{int(number) - 3}'}.{rest}"


CHILDREN = Layout(
    "torchvision's ResNet as a sequence of its children",
    (
        (r"(0)\.(weight)", _child, _same),
        (rf"(1)\.({_BN})", _child, _same),
        (
            rf"([4-7])\.(\d+\.(?:conv[123]\.weight|bn[123]\.{_BN}|downsample\.0\.weight|downsample\.1\.{_BN}))",
            _child,
            _same,
        ),
    ),
)

_BLOCK = r"(\d+)"
TIMM = Layout(
    "timm's ViT names",
    (
        (r"cls_token|pos_embed", r"backbone.\g<0>", _same),
        (rf"patch_embed\.proj\.{_WB}", r"backbone.\g<0>", _same),
        (rf"blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.{_WB}", r"backbone.\g<0>", _same),
        (rf"norm\.{_WB}", r"backbone.\g<0>", _same),
    ),
)

MMSEG_VIT = Layout(
    "MMSegmentation's ViT names",
    (
        (r"cls_token|pos_embed", r"backbone.\g<0>", _same),
        (rf"patch_embed\.(?:projection|proj)\.{_WB}", r"backbone.patch_embed.proj.\1", _same),
        (rf"layers\.{_BLOCK}\.ln([12])\.{_WB}", r"backbone.blocks.\1.norm\2.\3", _same),
        (rf"layers\.{_BLOCK}\.attn\.attn\.in_proj_{_WB}", r"backbone.blocks.\1.attn.qkv.\2", _same),
        (rf"layers\.{_BLOCK}\.attn\.attn\.out_proj\.{_WB}", r"backbone.blocks.\1.attn.proj.\2", _same),
        (rf"layers\.{_BLOCK}\.attn\.qkv\.{_WB}", r"backbone.blocks.\1.attn.qkv.\2", _same),
        (rf"layers\.{_BLOCK}\.attn\.proj\.{_WB}", r"backbone.blocks.\1.attn.proj.\2", _same),
        (rf"layers\.{_BLOCK}\.ffn\.layers\.0\.0\.{_WB}", r"backbone.blocks.\1.mlp.fc1.\2", _same),
        (rf"layers\.{_BLOCK}\.ffn\.layers\.1\.{_WB}", r"backbone.blocks.\1.mlp.fc2.\2", _same),
        (rf"ln1\.{_WB}", r"backbone.norm.\1", _same),
    ),
)

_HF_PART = {"query": "0", "key": "1", "value": "2", "q_proj": "0", "k_proj": "1", "v_proj": "2"}


def _hf_qkv(match: re.Match) -> str:
    return f"backbone.blocks.{match[1]}.attn.qkv.{match[3]}#{_HF_PART[match[2]]}"


_HF_LAYER = r"(?:encoder\.layer|layers)\.(\d+)"  # the second since transformers 5
HUGGING_FACE = Layout(
    "Hugging Face's ViT names",
    (
        (r"embeddings\.cls_token", r"backbone.cls_token", _same),
        (r"embeddings\.position_embeddings", r"backbone.pos_embed", _same),
        (rf"embeddings\.patch_embeddings\.projection\.{_WB}", r"backbone.patch_embed.proj.\1", _same),
        (rf"{_HF_LAYER}\.attention\.attention\.(query|key|value)\.{_WB}", _hf_qkv, _same),
        (rf"{_HF_LAYER}\.attention\.([qkv]_proj)\.{_WB}", _hf_qkv, _same),
        (rf"{_HF_LAYER}\.attention\.(?:output\.dense|o_proj)\.{_WB}", r"backbone.blocks.\1.attn.proj.\2", _same),
        (rf"{_HF_LAYER}\.layernorm_before\.{_WB}", r"backbone.blocks.\1.norm1.\2", _same),
        (rf"{_HF_LAYER}\.layernorm_after\.{_WB}", r"backbone.blocks.\1.norm2.\2", _same),
        (rf"{_HF_LAYER}\.(?:intermediate\.dense|mlp\.fc1)\.{_WB}", r"backbone.blocks.\1.mlp.fc1.\2", _same),
        (rf"{_HF_LAYER}\.(?:output\.dense|mlp\.fc2)\.{_WB}", r"backbone.blocks.\1.mlp.fc2.\2", _same),
        (rf"layernorm\.{_WB}", r"backbone.norm.\1", _same),
    ),
)

_SEPARIUS = {"0": "conv1", "2": "conv2", "4": "conv3", "1.0": "bn1", "3.0": "bn2", "5.0": "bn3"}
SEPARIUS = Layout(
    "SimCLRv2-Pytorch's names",
    (
        (r"net\.0\.0\.weight", r"backbone.conv1.weight", _same),
        (rf"net\.0\.1\.0\.{_BN}", r"backbone.bn1.\1", _same),
        (
            r"net\.([1-4])\.blocks\.(\d+)\.net\.(0|2|4|1\.0|3\.0|5\.0)\.(\w+)",
            lambda m: f"backbone.layer{m[1]}.{m[2]}.{_SEPARIUS[m[3]]}.{m[4]}",
            _same,
        ),
        (
            r"net\.([1-4])\.blocks\.(\d+)\.projection\.shortcut\.weight",
            r"backbone.layer\1.\2.downsample.0.weight",
            _same,
        ),
        (
            rf"net\.([1-4])\.blocks\.(\d+)\.projection\.bn\.0\.{_BN}",
            r"backbone.layer\1.\2.downsample.1.\3",
            _same,
        ),
    ),
)


def _in_order_of_creation(names: Iterable[str]) -> dict[str, str]:
    """Number SimCLR's layers by position: `conv2d`, `conv2d_1`, … become `conv/0/kernel`, `conv/1/kernel`, …"""
    pattern = r"((?:.*/)?)(conv2d|(?:sync_)?batch_normalization)(?:_(\d+))?/(kernel|gamma|beta|moving_mean|moving_variance)"
    layers: dict[str, dict[int, list[tuple[str, str]]]] = {"conv": {}, "bn": {}}
    names = [name for name in names if not re.search(r"(^|/)(head_|ema_model|projection_head)", name)]
    if any(name.startswith("base_model/") for name in names):
        names = [name for name in names if name.startswith("base_model/")]
    for name in names:
        match = re.fullmatch(pattern, name)
        if match:
            kind = "conv" if match[2] == "conv2d" else "bn"
            layers[kind].setdefault(int(match[3] or 0), []).append((name, match[4]))
    return {
        name: f"{kind}/{position}/{leaf}"
        for kind, numbered in layers.items()
        for position, number in enumerate(sorted(numbered))
        for name, leaf in numbered[number]
    }


_TENSORFLOW_LEAF = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def simclr_order(stages: tuple[int, ...], bottleneck: bool) -> list[tuple[str, str]]:
    """Return the (convolution, batch norm) modules of a ResNet in SimCLR's order of creation: shortcuts come first."""
    order = [("conv1", "bn1")]
    for stage, blocks in enumerate(stages, 1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            if block == 0:
                order.append((f"{name}.downsample.0", f"{name}.downsample.1"))
            order += [(f"{name}.conv{i}", f"{name}.bn{i}") for i in range(1, 4 if bottleneck else 3)]
    return order


def tensorflow(stages: tuple[int, ...], bottleneck: bool) -> Layout:
    """The layout of SimCLR's own checkpoints, for a network of known depth (its names do not tell)."""
    order = simclr_order(stages, bottleneck)

    def named(match: re.Match) -> str:
        position, which = int(match[2]), 0 if match[1] == "conv" else 1
        module = order[position][which] if position < len(order) else f"surplus.{match[1]}{position}"
        return f"backbone.{module}.{_TENSORFLOW_LEAF[match[3]]}"

    return Layout(
        "SimCLR's TensorFlow names",
        (
            (r"(conv)/(\d+)/(kernel)", named, oihw),
            (r"(bn)/(\d+)/(gamma|beta|moving_mean|moving_variance)", named, _same),
        ),
        _in_order_of_creation,
    )


_CONV_BN = rf"(?:conv\.weight|bn\.{_BN})"
HEAD = Layout(
    "MMSegmentation's head names",
    (
        (rf"image_pool\.1\.{_CONV_BN}", r"decode_head.\g<0>", _same),
        (rf"aspp_modules\.\d+\.{_CONV_BN}", r"decode_head.\g<0>", _same),
        (rf"convs\.\d+\.{_CONV_BN}", r"decode_head.\g<0>", _same),
        (rf"(?:bottleneck|conv_cat)\.{_CONV_BN}", r"decode_head.\g<0>", _same),
        (rf"contrast_conv\.[02]\.{_WB}", r"decode_head.\g<0>", _same),
        (rf"conv_seg\.{_WB}", r"decode_head.\g<0>", _same),
    ),
)
