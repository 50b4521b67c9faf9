"""A foreign checkpoint file to our variables: read, recognise, check that nothing is missing, rename."""

import dataclasses
import difflib
import hashlib
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from cp2_jax.convert import beside, detection, formats, names, networks, report
from cp2_jax.convert.containers import files
from cp2_jax.convert.containers.pickles import CheckpointFormatError, Refused, printable
from cp2_jax.convert.detection import Match
from cp2_jax.convert.formats import Format
from cp2_jax.models.backbones import BACKBONES


@dataclasses.dataclass
class Imported:
    """A converted checkpoint.

    Attributes:
      variables: {'params', 'batch_stats'} in float32, as `names` lays them out.
      meta: what `checkpoints.write_variables` keeps: kind, format, the file's name and SHA-256, `model` (in the words of
        `config.model`), `input` (mean and std), notes, and PyTorch's batch counters.
      report: the table for people.
    """

    variables: dict
    meta: dict
    report: str


def import_checkpoint(
    path: str | pathlib.Path,
    *,
    format: str | None = None,
    heads: int | None = None,
    stage_sizes: tuple[int, ...] | None = None,
    input: str | None = None,
) -> Imported:
    """Read a checkpoint of any of `formats.FORMATS`.

    Args:
      path: see `files.read`.
      format: a format's name, if it is not to be detected.
      heads: attention heads of a ViT, if the format does not tell.
      stage_sizes: allows a ResNet of just these numbers of blocks, which no known depth has.
      input: "imagenet", "half" (mean and std 0.5) or "unit" ([0, 1] as it is), if the format is wrong about it.

    Raises:
      CheckpointFormatError: the file cannot be read, is of no known format, or lacks a tensor of its network.
    """
    path = pathlib.Path(path)
    tree, container = files.read(path)
    try:
        return _import(path, tree, container, format, heads, stage_sizes, input)
    except Refused as error:
        raise CheckpointFormatError(f"{path}: {printable(str(error), newlines=True)}") from error


def _import(path, tree, container, format, heads, stage_sizes, input_name):
    match = detection.detect(tree, container, format)
    left_out = _refuse_others(match)
    merged, sources = _merge(match)
    batches = [n for n in merged if n.endswith(".num_batches_tracked")]
    counters = {n: int(merged[n].numpy_value()) for n in batches if merged[n].shape == ()}
    shapes = {n: a.shape for n, a in merged.items() if n not in batches}
    if "decode_head.contrast_conv.0.weight" in shapes:
        for name in [n for n in shapes if n.startswith("decode_head.conv_seg.")]:
            left_out[sources[name][0]] = "the classifier, which pretraining leaves as it was initialised"
            del shapes[name]
    found = networks.find(shapes, {"stage_sizes": stage_sizes})
    expected, model = _in_order(found.expected, shapes), found.model
    _check(match, shapes, expected, sources, left_out)
    settings = _settings(path, tree, match.format, found, heads, input_name)
    if found.head:
        _add_rates(found, beside.config_text(tree))
    arrays = {name: merged[name].numpy_value() for name in expected}
    notes = [*match.format.notes, *settings.pop("notes"), *_dtype_notes(arrays)]
    for name, array in arrays.items():
        arrays[name] = array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise Refused(f"{sources[name][0]} holds values that are not finite")
    if settings.pop("bgr"):
        first = names.torch_name("params", f"backbone/{BACKBONES[model['backbone']].reads_image}")
        arrays[first] = arrays[first][:, ::-1]
    meta = {
        "kind": "converted",
        "format": match.format.name,
        "file": path.name,
        "sha256": _digest(path),
        "model": model,
        "input": settings["input"],
        "notes": notes,
        "num_batches_tracked": {n: c for n, c in counters.items() if n.rpartition(".")[0] + ".running_mean" in expected},
    }
    variables = names.variables_from_torch({n: np.ascontiguousarray(a) for n, a in arrays.items()})
    table = report.render(path, container, match, meta, sources, expected, left_out, tree)
    return Imported(variables, meta, printable(table, newlines=True))


@dataclasses.dataclass
class _Lazy:
    """A canonical tensor whose parts are still in the file: shape now, values later."""

    parts: list[tuple[Any, Any]]  # (array in the file, how to turn it)

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [turn(np.broadcast_to(np.zeros((), bool), array.shape)).shape for array, turn in self.parts]
        return (sum(s[0] for s in shapes), *shapes[0][1:]) if len(shapes) > 1 else tuple(shapes[0])

    def numpy_value(self) -> np.ndarray:
        turned = [turn(files.to_numpy(array)) for array, turn in self.parts]
        return np.concatenate(turned) if len(turned) > 1 else turned[0]


def _merge(match: Match) -> tuple[dict[str, _Lazy], dict[str, list[str]]]:
    """Return the canonical tensors, fused where they come in parts, and the source names of each."""
    found: dict[str, dict[str, tuple[str, Any]]] = {}
    for source, (canonical, turn) in match.assigned.items():
        name, _, part = canonical.partition("#")
        if part in found.setdefault(name, {}):
            raise Refused(f"{source} and {found[name][part][0]} are both {name}")
        found[name][part] = (source, turn)
    merged, sources = {}, {}
    for name, parts in found.items():
        if "" not in parts and sorted(parts) != ["0", "1", "2"]:
            have = ", ".join(source for source, _ in parts.values())
            raise Refused(f"{name}: of query, key and value only {have} is there")
        ordered = [parts[k] for k in sorted(parts)]
        sources[name] = [source for source, _ in ordered]
        try:
            merged[name] = _Lazy([(match.tensors[source], turn) for source, turn in ordered])
            merged[name].shape  # noqa: B018 (turns that do not fit fail here, where the name is known)
        except ValueError as error:
            raise Refused(f"{sources[name][0]} has {len(match.tensors[sources[name][0]].shape)} axes") from error
    return merged, sources


def _refuse_others(match: Match) -> dict[str, str]:
    """Return {source name: why it is left out}; refuse networks that only look like ours."""
    reasons = {}
    for source in match.tensors:
        if source in match.assigned:
            continue
        if source.startswith(match.prefix):
            for pattern, reason in networks.NOT_OURS:
                if re.match(pattern, source[len(match.prefix) :]):
                    raise Refused(f"{source}: {reason}")
        known = (why for start, why in match.format.left_out if source.startswith(start))
        ended = (why for end, why in _BOOKKEEPING.items() if source.endswith(end))
        reasons[source] = next(known, next(ended, ""))
    return reasons


_BOOKKEEPING = {
    "_ema/hidden": "the average before Haiku's correction of its start",
    "_ema/counter": "Haiku's count of batches",
    "/Momentum": "the optimiser's",
    "/Momentum_1": "the optimiser's",
}
_ROOTS = r"(conv1|bn1|layer\d+|blocks|layers|patch_embed|cls_token|pos_embed|norm|ln1|embeddings|encoder)(\.|$)"


def _in_order(expected: Mapping, shapes: Mapping) -> dict[str, tuple[int, ...]]:
    """Return the expected tensors in the file's order; what the file lacks comes last, kernels first."""
    there = [name for name in shapes if name in expected]
    missing = sorted(expected, key=lambda name: -len(expected[name]))
    return {name: expected[name] for name in dict.fromkeys([*there, *missing])}


def _check(match: Match, shapes: Mapping, expected: Mapping, sources: Mapping, left_out: dict) -> None:
    """Refuse a file in which a tensor of the network is missing, has another shape, or is surplus."""
    spare = [name for name, reason in left_out.items() if not reason]
    problems = []
    for name, shape in expected.items():
        if name not in shapes:
            near = difflib.get_close_matches(name, spare, 2, 0.5) or difflib.get_close_matches(name, match.tensors, 2, 0.5)
            problems.append(f"{name} is missing (nearest: {', '.join(near) or 'nothing like it'})")
        elif tuple(shapes[name]) != tuple(shape):
            problems.append(f"{sources[name][0]} is {shapes[name]}, {name} takes {shape}")
    problems += [f"{sources[name][0]}: no such tensor in this network" for name in shapes if name not in expected]
    for name in spare:
        rest = name[len(match.prefix) :] if name.startswith(match.prefix) else ""
        if rest and (match.prefix or re.match(_ROOTS, rest)):
            problems.append(f"{name}: no such tensor in this network")
        left_out[name] = "no part of this project's models"
    if problems:
        shown = problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise Refused(
            f"read as {match.format.title} ({match.format.name}), {len(problems)} of its tensors do not fit:\n  "
            + "\n  ".join(shown)
        )


def _settings(
    path: pathlib.Path, tree: Any, form: Format, found: networks.Found, heads: int | None, input_name: str | None
) -> dict[str, Any]:
    """Fill in what weights do not tell: heads, input normalisation, padding; from options, files beside, or the format."""
    stated, config = beside.config_files(path), beside.config_text(tree)
    name = found.model["backbone"]
    section, options = found.model[name], {field.name for field in dataclasses.fields(BACKBONES[name].options)}
    notes = []
    settings = {"bgr": False, "notes": notes}
    mean, std = form.input
    if "mean" in stated:
        mean, std = stated["mean"], stated["std"]
        notes.append(f"input normalisation from {stated['source']}")
    elif "mean" in config:
        mean, std = config["mean"], config["std"]
        settings["bgr"] = config["bgr"]
        if settings["bgr"]:
            mean, std = mean[::-1], std[::-1]
            notes.append("made for BGR images: the first convolution's channels were turned round to RGB")
    elif form.name in ("timm", "hugging_face") and input_name is None:
        notes.append("taken to have ImageNet's mean and std; many timm and Google models have 0.5: then pass --input half")
    if input_name:
        if input_name not in formats.INPUTS:
            raise Refused(f"--input {input_name}: there are {', '.join(formats.INPUTS)}")
        mean, std = formats.INPUTS[input_name]
    settings["input"] = {"mean": [float(v) for v in mean], "std": [float(v) for v in std]}
    if (tuple(mean), tuple(std)) != formats.IMAGENET:
        notes.append(
            f"set config.model.mean to {tuple(settings['input']['mean'])} and std to {tuple(settings['input']['std'])}"
        )
    if "padding" in options:
        section["padding"] = form.padding
        if form.padding != "torch":
            what = "every convolution and the max-pool pad" if form.padding == "same" else "the max-pool pads"
            notes.append(f"{what} as TensorFlow's SAME: set config.model.{name}.padding to {form.padding!r}")
    if "heads" in found.backbone.unknown:
        section["heads"] = _heads(form, section["width"], heads or stated.get("heads") or config.get("heads"))
    return settings


def _heads(form: Format, width: int, stated: int | None) -> int:
    """Return the number of attention heads: what is stated, or what the format always has."""
    found = stated or form.heads(width)
    if not found or width % found:
        why = f"{found} do not divide {width} channels" if found else "weights do not tell them, nor does this format"
        hint = f" ({form.notes[0]})" if form.name == "moco_v2_vit" else ""
        raise Refused(f"how many attention heads? {why}: pass --heads N{hint}. ViT-S has 6 in DINO and timm, 12 in MoCo v3")
    return int(found)


def _add_rates(found: networks.Found, stated: Mapping) -> None:
    """Add strides and rates of a segmentation model, as its config text states them or as the original has them."""
    model, backbone, head = found.model, found.model["backbone"], found.model["head"]
    if backbone == "resnet":
        model[backbone] |= {"output_stride": 16, "contract_dilation": True} | stated.get("resnet", {})
    rates = stated.get("aspp", {}).get("dilations", ())
    if head == "aspp" and len(rates) == len(found.head.section["dilations"]):
        model[head]["dilations"] = rates
    if head == "fcn":
        model[head] |= stated.get("fcn", {})


def _dtype_notes(arrays: Mapping[str, np.ndarray]) -> list[str]:
    kinds = {str(a.dtype) for a in arrays.values()} - {"float32"}
    exact = {"float16", str(np.dtype(ml_dtypes.bfloat16))}
    notes = [f"{kind} widened to float32, exactly" for kind in sorted(kinds & exact)]
    if kinds - exact - {"float64"}:
        raise Refused(f"weights of type {', '.join(sorted(kinds - exact))}")
    return notes + (["float64 rounded to float32"] if "float64" in kinds else [])


def _digest(path: pathlib.Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
