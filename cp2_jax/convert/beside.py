"""What is written beside the weights: Hugging Face's config files, and the config text inside OpenMMLab's checkpoints."""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from cp2_jax.convert import formats
from cp2_jax.convert.containers.pickles import Refused


def config_files(path: pathlib.Path) -> dict[str, Any]:
    """Return what `config.json` and `preprocessor_config.json` of a Hugging Face folder say of heads and input."""
    found: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        file = path.with_name(name)
        if not file.is_file() or file.stat().st_size > 1 << 20:
            continue
        try:
            stated = json.loads(file.read_text())
            stated |= stated.get("pretrained_cfg") or {}
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise Refused(f"{file} beside it is no JSON object") from error
        heads = stated.get("num_attention_heads", stated.get("num_heads"))
        found |= {"heads": heads} if type(heads) is int and heads > 0 else {}
        mean, std = (stated.get(a) or stated.get(b) for a, b in (("image_mean", "mean"), ("image_std", "std")))
        if _three(mean) and _three(std):
            found |= {"mean": tuple(mean), "std": tuple(std), "source": name}
    return found


def _three(values):
    return isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)


def config_text(tree: Any) -> dict[str, Any]:
    """Return what the config text that OpenMMLab's checkpoints carry says of heads, input (on [0, 1]) and dilations."""
    meta = tree.get("meta") if isinstance(tree, Mapping) else None
    text = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    if not isinstance(text, str):
        return {}
    found: dict[str, Any] = _dilations(text)
    heads = re.search(r"\bnum_heads=(\d{1,3})\b", text)
    if heads:
        found["heads"] = int(heads[1])
    number = r"\s*([\d.]+)\s*"
    triple = rf"[\[(]{number},{number},{number},?\s*[\])]"
    both = re.search(rf"mean={triple},\s*std={triple}", text)
    if both:
        values = [float(v) / 255 for v in both.groups()]
        found |= {"mean": tuple(values[:3]), "std": tuple(values[3:])}
        # The published constants, as everyone writes them, are these to three digits.
        if np.allclose(values, np.ravel(formats.IMAGENET), atol=2e-4):
            found["mean"], found["std"] = formats.IMAGENET
        found["bgr"] = bool(re.search(r"(to_rgb|bgr_to_rgb)\s*=\s*False", text))
    return found


def _dilations(text: str) -> dict[str, Any]:
    """Return output stride and rates as far as a segmentation model's text says: settings of `resnet`, `aspp`, `fcn`."""
    model = re.search(r"backbone=dict\((.*?)decode_head=dict\((.*?)(?:auxiliary_head|train_cfg|\Z)", text, re.DOTALL)
    if not model:
        return {}
    backbone, head = model.groups()
    numbers = r"\w*=[\[(]([\d, ]+)[\])]"
    found: dict[str, Any] = {}
    if strides := re.search(rf"\bstrides{numbers}", backbone):
        stride = 4 * math.prod(map(int, re.findall(r"\d+", strides[1])))
        found["resnet"] = {"output_stride": stride, "contract_dilation": "contract_dilation=True" in backbone}
    if rates := re.search(rf"\bdilations{numbers}", head):
        found["aspp"] = {"dilations": tuple(map(int, re.findall(r"\d+", rates[1])))}
    if rate := re.search(r"\bdilation=(\d+)", head):
        found["fcn"] = {"dilation": int(rate[1])}
    return found
