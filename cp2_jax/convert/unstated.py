"""What weights do not tell: heads, input normalisation, padding, strides and rates, from whoever states them."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from cp2_jax.convert import config_text
from cp2_jax.convert.containers.values import Refused
from cp2_jax.convert.format import IMAGENET, INPUTS, Format
from cp2_jax.convert.networks import Found
from cp2_jax.convert.openmmlab import Stated
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.heads import HEADS


def settings(
    path: pathlib.Path, stated: Stated, form: Format, found: Found, heads: int | None, input_name: str | None
) -> dict[str, Any]:
    """Fill in what weights do not tell: heads, input normalisation, padding; from options, files beside, or the format.

    Args:
      path: of the file. stated: by the config text in it. form: its format.
      found: the network, whose `model` is completed.
      heads, input_name: the user's options.

    Returns:
      {'input': {'mean', 'std'}, 'notes': what a user should know}.

    Raises:
      Refused: the number of heads is not known, or an option has an impossible value.
    """
    beside_it, name = _beside(path), found.model["backbone"]
    section, options = found.model[name], {field.name for field in dataclasses.fields(BACKBONES[name].options)}
    notes = list(stated.notes)
    mean, std = form.input
    if input_name:
        if input_name not in INPUTS:
            raise Refused(f"--input {input_name}: there are {', '.join(INPUTS)}")
        mean, std = INPUTS[input_name]
    elif "mean" in beside_it:
        mean, std = beside_it["mean"], beside_it["std"]
        notes.append(f"input normalisation from {beside_it['source']}")
    elif stated.input:
        mean, std = (values[::-1] if stated.bgr else values for values in stated.input)
    elif form.name in ("timm", "hugging_face"):
        notes.append("taken to have ImageNet's mean and std; many timm and Google models have 0.5: then pass --input half")
    if stated.bgr:
        notes.append("made for BGR images: the channels of what reads the image were turned round to RGB")
    if (tuple(mean), tuple(std)) != IMAGENET:
        values = tuple(float(v) for v in mean), tuple(float(v) for v in std)
        notes.append(f"set config.model.mean to {values[0]} and std to {values[1]}")
    if "padding" in options:
        section["padding"] = form.padding
        if form.padding != "torch":
            what = "every convolution and the max-pool pad" if form.padding == "same" else "the max-pool pads"
            notes.append(f"{what} as TensorFlow's SAME: set config.model.{name}.padding to {form.padding!r}")
    if "heads" in found.backbone.unknown:
        section["heads"] = _heads(form, section["width"], heads or beside_it.get("heads") or stated.heads)
    return {"input": {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}, "notes": notes}


def _beside(path: pathlib.Path) -> dict[str, Any]:
    """Return what `config.json` and `preprocessor_config.json` of a Hugging Face folder say of heads and input.

    Raises:
      Refused: one of the two is there and is no JSON object.
    """
    found: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        file = path.with_name(name)
        if not file.is_file() or file.stat().st_size > 1 << 20:
            continue
        try:
            stated = json.loads(file.read_text("utf-8"))
            stated |= stated.get("pretrained_cfg") or {}
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise Refused(f"{file} beside it is no JSON object") from error
        heads = stated.get("num_attention_heads", stated.get("num_heads"))
        found |= {"heads": heads} if type(heads) is int and heads > 0 else {}
        mean, std = (stated.get(a) or stated.get(b) for a, b in (("image_mean", "mean"), ("image_std", "std")))
        if _three(mean) and _three(std):
            found |= {"mean": tuple(mean), "std": tuple(std), "source": name}
    return found


def _three(values: Any) -> bool:
    return isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)


def _heads(form: Format, width: int, stated: int | None) -> int:
    """Return the number of attention heads: what is stated, or what the format always has."""
    found = stated or form.heads(width)
    if not found or width % found:
        why = f"{found} do not divide {width} channels" if found else "weights do not tell them, nor does this format"
        hint = f" ({form.notes[0]})" if form.name == "moco_v2_vit" else ""
        raise Refused(f"how many attention heads? {why}: pass --heads N{hint}. ViT-S has 6 in DINO and timm, 12 in MoCo v3")
    return int(found)


def add_rates(found: Found, stated: Stated, form: Format) -> list[str]:
    """Add strides and rates of a segmentation model: those that its config text states, or its source's defaults.

    Returns:
      What a user should know, a line each.

    Raises:
      Refused: the rates that are stated do not go with the head's weights.
    """
    notes = []
    for table, name, said in (
        (BACKBONES, found.model["backbone"], stated.backbone),
        (HEADS, found.model["head"], stated.head),
    ):
        section = found.model[name]
        known = {field.name for field in dataclasses.fields(table[name].options)}
        values = {key: value for key, value in (form.rates.get(name, {}) | said).items() if key in known}
        if section.get("depth", 50) not in (18, 34) or values.get("output_stride") == 32:
            values.pop("basic_dilation", None)  # of no effect
        if supposed := {key: value for key, value in values.items() if key not in said}:
            notes.append(f"{name}: {_listed(supposed)} is not stated in the file, but taken as in {form.rates_of}")
        section |= values
    _check_rates(found)
    return notes


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in values.items())


def _check_rates(found: Found) -> None:
    """Refuse rates that do not go with the branches: a rate of 1 is a 1x1 kernel."""
    rates, supposed = found.model[found.model["head"]].get("dilations"), found.head.section.get("dilations", ())
    if rates and [rate == 1 for rate in rates] != [rate == 1 for rate in supposed]:
        kernels = ", ".join("1x1" if rate == 1 else "3x3" for rate in supposed)
        raise config_text.refuse(f"it states the rates {rates}, where the head's branches are {kernels}")
