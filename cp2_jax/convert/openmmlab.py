"""What the config text of an OpenMMLab checkpoint says of the network that the weights do not tell.

Defaults are those of MMSegmentation's classes. What this project cannot compute is refused, with the key that says so.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cp2_jax.convert import config_text
from cp2_jax.convert.config_text import refuse
from cp2_jax.convert.containers.values import Refused
from cp2_jax.convert.format import IMAGENET
from cp2_jax.models.resnet import STRIDES


@dataclasses.dataclass
class Stated:
    """What a config text states.

    Attributes:
      backbone, head: values of the section of `config.model` of whichever backbone and head the weights are of.
      heads: attention heads, or None.
      input: mean and standard deviation of the inputs on [0, 1], in the network's order of channels, or None.
      bgr: whether the network's channels are in the order blue, green, red.
      notes: what a user should know.
    """

    backbone: dict[str, Any] = dataclasses.field(default_factory=dict)
    head: dict[str, Any] = dataclasses.field(default_factory=dict)
    heads: int | None = None
    input: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    bgr: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)


def read(tree: Any) -> Stated | None:
    """Return what the config text in a checkpoint's contents states, or None if there is no such text.

    Raises:
      Refused: the text is not understood, or describes a network that this project does not have.
    """
    text = config_text.find(tree)
    if text is None:
        return None
    variables = config_text.parse(text)
    model = variables.get("model", {})
    if not isinstance(model, dict):
        raise refuse("`model` is no dict")
    stated = Stated()
    if found := _normalization(variables):
        stated.input, stated.bgr = found
    backbone, head = model.get("backbone", {}), model.get("decode_head")
    if not isinstance(backbone, dict):
        raise refuse("`model.backbone` is no dict")
    kind = _kind(backbone)
    if "num_heads" in backbone or kind == "VisionTransformer":
        _read_vit(backbone, head is not None, stated)
    else:
        _read_resnet(backbone, head is not None, stated)
    if kind not in ("", "ResNet", "VisionTransformer"):
        stated.notes.append(f"its backbone is a {kind}, read by the names of its weights")
    if head is not None:
        _read_head(head, backbone, stated)
    return stated


def _kind(section: Mapping) -> str:
    return str(section.get("type", "")).rpartition(".")[2]


def _get(section: Mapping, key: str, default: Any, where: str) -> Any:
    """Return a value of the default's type; lists of numbers as tuples."""
    value = section.get(key, default)
    value = default if value is None else value
    value = tuple(value) if isinstance(value, list) else value
    if isinstance(default, tuple):
        good = isinstance(value, tuple) and all(type(number) is int for number in value)
    else:
        good = type(value) is type(default)
    if not good:
        raise refuse(f"{where}.{key} is {str(value)[:60]}")
    return value


def _epsilon(section: Mapping, default: float, where: str) -> None:
    norm = section.get("norm_cfg") or {}
    epsilon = norm.get("eps", default) if isinstance(norm, dict) else None
    if epsilon != default:
        raise Refused(f"its config has {where}.norm_cfg.eps={epsilon}: here all such norms have {default}")


def _read_resnet(backbone: Mapping, segments: bool, stated: Stated) -> None:
    where = "model.backbone"
    if _get(backbone, "style", "pytorch", where) != "pytorch":
        raise Refused("its config has model.backbone.style='caffe': the stride is in the first 1x1, here in the 3x3")
    _epsilon(backbone, 1e-5, where)
    if not segments:  # what is finetuned from it chooses strides of its own
        return
    if set(_get(backbone, "multi_grid", (), where)) - {1}:
        raise Refused("its config has model.backbone.multi_grid, rates that this project's ResNet has not")
    strides, dilations = STRIDES[32]
    has = _get(backbone, "strides", strides, where), _get(backbone, "dilations", dilations, where)
    stride = next((stride for stride, known in STRIDES.items() if known == has), None)
    if stride is None:
        known = ", ".join(f"{strides} with {dilations}" for strides, dilations in STRIDES.values())
        raise Refused(f"its config has strides {has[0]} with dilations {has[1]}; this project's ResNet has {known}")
    stated.backbone |= {
        "output_stride": stride,
        "contract_dilation": _get(backbone, "contract_dilation", False, where),
        # MMSegmentation's BasicBlock dilates its first convolution alone.
        "basic_dilation": "first",
    }


def _read_vit(backbone: Mapping, segments: bool, stated: Stated) -> None:
    where = "model.backbone"
    stated.heads = _get(backbone, "num_heads", 12, where)
    _epsilon(backbone, 1e-6, where)
    for key, ours in {"interpolate_mode": "bicubic", "with_cls_token": True, "output_cls_token": False}.items():
        if (value := _get(backbone, key, ours, where)) != ours:
            raise Refused(f"its config has model.backbone.{key}={value!r}, this project's ViT {ours!r}")
    _activation(backbone, "GELU", where)
    if not segments:
        return
    # 0.x up to 0.14, which the original copied, drops rows and columns beyond the last whole patch; later versions pad.
    if "depth" in backbone:
        stated.backbone["remainder"] = "drop"
    elif _get(backbone, "patch_pad", "corner", where) == "corner":
        stated.backbone["remainder"] = "stretch"
    else:
        raise Refused(f"its config has model.backbone.patch_pad={backbone['patch_pad']!r}, this project's ViT 'corner'")


def _activation(section: Mapping, ours: str, where: str) -> None:
    activation = section.get("act_cfg") or {"type": ours}
    if not isinstance(activation, dict) or activation.get("type") != ours:
        raise Refused(f"its config has {where}.act_cfg={str(activation)[:60]}, this project's network {ours}")


def _read_head(head: Any, backbone: Mapping, stated: Stated) -> None:
    where, kind = "model.decode_head", _kind(head) if isinstance(head, dict) else ""
    if not isinstance(head, dict):
        raise refuse("`model.decode_head` is no dict (a cascade of heads is not supported)")
    _epsilon(head, 1e-5, where)
    _activation(head, "ReLU", where)
    if head.get("input_transform") is not None:
        raise Refused("its config has model.decode_head.input_transform: this project's heads read the last stage alone")
    outputs, index = backbone.get("out_indices", ()), head.get("in_index", -1)
    if isinstance(outputs, tuple | list) and outputs and index not in (-1, len(outputs) - 1):
        raise Refused(f"its config has model.decode_head.in_index={index}: this project's heads read the last stage")
    if head.get("align_corners"):
        stated.notes.append("its config has align_corners=True, with which logits are upsampled otherwise than here")
    if kind == "FCNHead" or "dilation" in head:
        stated.head["dilation"] = _get(head, "dilation", 1, where)
    if kind == "ASPPHead" or "dilations" in head:
        stated.head["dilations"] = _get(head, "dilations", (1, 6, 12, 18), where)
    if kind not in ("", "FCNHead", "ASPPHead"):
        stated.notes.append(f"its head is a {kind}, read by the names of its weights")


def _normalization(variables: Mapping) -> tuple[tuple[tuple[float, ...], tuple[float, ...]], bool] | None:
    """Return ((mean, std) on [0, 1], whether BGR) as the first of several places states it; they must agree."""
    found = dict.fromkeys(_normalizations(variables))
    if len(found) > 1:
        raise refuse(f"it states {len(found)} input normalisations that differ")
    return next(iter(found), None)


def _normalizations(variables: Mapping) -> Iterator[tuple]:
    model = variables.get("model")
    inside = model.get("data_preprocessor") if isinstance(model, dict) else None
    outside = variables.get("data_preprocessor")
    for section in (inside, outside):
        if isinstance(section, dict) and section.get("mean") is not None:
            # MMEngine's data loaders give BGR; either of the two flags swaps the channels.
            swapped = any(_get(section, key, False, "data_preprocessor") for key in ("bgr_to_rgb", "rgb_to_bgr"))
            yield _scaled(section), not swapped
            return
    if isinstance(variables.get("img_norm_cfg"), dict):
        section = variables["img_norm_cfg"]
        yield _scaled(section), not _get(section, "to_rgb", True, "img_norm_cfg")
    for section in _dicts(variables, 0):
        if _kind(section) == "Normalize" and "mean" in section:
            yield _scaled(section), not _get(section, "to_rgb", True, "Normalize")


def _dicts(value: Any, depth: int) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list | tuple) and depth < 20:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _dicts(inner, depth + 1)


def _scaled(section: Mapping) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std on [0, 1]: OpenMMLab's are on [0, 255], OpenSelfSup's on [0, 1]."""
    values = []
    for key in ("mean", "std"):
        value = section.get(key)
        good = isinstance(value, list | tuple) and len(value) == 3 and all(type(v) in (int, float) for v in value)
        if not good or not np.isfinite(value).all() or (key == "std" and min(value) <= 0):
            raise refuse(f"{key}={str(value)[:60]} of the input")
        values += map(float, value)
    if values == [0, 0, 0, 1, 1, 1]:
        raise refuse("mean 0 and std 1 go with inputs on [0, 255] or on [0, 1]")
    scale = 255 if max(values[3:]) > 1 else 1
    values = [value / scale for value in values]
    # The published constants, as everyone writes them, are these to three digits.
    for mean, std in (IMAGENET, tuple(v[::-1] for v in IMAGENET)):
        if np.allclose(values, [*mean, *std], atol=2e-4):
            return mean, std
    return tuple(values[:3]), tuple(values[3:])
