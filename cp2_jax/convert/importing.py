"""A foreign checkpoint file to our variables: read, recognise, check that nothing is missing, rename."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from cp2_jax.convert import assembling, detection, names, networks, openmmlab, report, unstated
from cp2_jax.convert.containers import files
from cp2_jax.convert.containers.values import CheckpointFormatError, Refused, printable
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


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user may say of a file.

    Attributes:
      format: a format's name, if it is not to be detected.
      heads: attention heads of a ViT, if the format does not tell.
      stage_sizes: allows a ResNet of just these numbers of blocks, which no known depth has.
      input: "imagenet", "half" (mean and std 0.5) or "unit" ([0, 1] as it is), if the format is wrong about it.
      prefix: what the names of the network's tensors begin with, to be taken off, such as "model."; others are left out.
      config_text: "read" what the config text inside an OpenMMLab checkpoint says, or "ignore" it.
    """

    format: str | None = None
    heads: int | None = None
    stage_sizes: tuple[int, ...] | None = None
    input: str | None = None
    prefix: str = ""
    config_text: str = "read"


def import_checkpoint(path: str | pathlib.Path, **options: Any) -> Imported:
    """Read a checkpoint of any of `formats.FORMATS`.

    Args:
      path: see `files.read`.
      options: the fields of `Options`.

    Raises:
      CheckpointFormatError: the file cannot be read, is of no known format, or lacks a tensor of its network.
    """
    path = pathlib.Path(path)
    tree, container = files.read(path)
    try:
        return _import(path, tree, container, Options(**options))
    except Refused as error:
        raise CheckpointFormatError(f"{path}: {printable(str(error), newlines=True)}") from error


def _import(path: pathlib.Path, tree: Any, container: str, options: Options) -> Imported:
    match = detection.detect(tree, container, options.format, options.prefix)
    left_out = assembling.leave_out(match)
    merged, sources = assembling.merge(match)
    batches = [n for n in merged if n.endswith(".num_batches_tracked")]
    counters = {n: int(merged[n].numpy_value()) for n in batches if merged[n].shape == ()}
    shapes = {n: a.shape for n, a in merged.items() if n not in batches}
    if "decode_head.contrast_conv.0.weight" in shapes:
        for name in [n for n in shapes if n.startswith("decode_head.conv_seg.")]:
            left_out[sources[name][0]] = "the classifier, which pretraining leaves as it was initialised"
            del shapes[name]
    found = networks.find(shapes, {"stage_sizes": options.stage_sizes})
    expected = assembling.in_order({n: s for n, s in found.expected.items() if n not in found.zeros}, shapes)
    assembling.check(match, shapes, expected, sources, left_out)
    stated = (openmmlab.read(tree) if options.config_text == "read" else None) or openmmlab.Stated()
    settings = unstated.settings(path, stated, match.format, found, options.heads, options.input)
    notes = [*match.format.notes, *settings["notes"]]
    notes += unstated.add_rates(found, stated, match.format) if found.head else []
    arrays = {name: merged[name].numpy_value() for name in expected}
    notes += _dtype_notes(arrays)
    arrays |= {name: np.zeros(found.expected[name], np.float32) for name in found.zeros}
    notes += [f"{name} is not in the file, which is the same as zero" for name in found.zeros]
    for name, array in arrays.items():
        arrays[name] = array = np.asarray(array, np.float32)
        if not np.isfinite(array).all():
            raise Refused(f"{sources[name][0]} holds values that are not finite")
    if stated.bgr:
        first = names.torch_name("params", f"backbone/{BACKBONES[found.model['backbone']].reads_image}")
        arrays[first] = arrays[first][:, ::-1]
    meta = {
        "kind": "converted",
        "format": match.format.name,
        "file": path.name,
        "sha256": _digest(path),
        "model": found.model,
        "input": settings["input"],
        "notes": notes,
        "num_batches_tracked": {n: c for n, c in counters.items() if n.rpartition(".")[0] + ".running_mean" in expected},
    }
    variables = names.variables_from_torch({n: np.ascontiguousarray(a) for n, a in arrays.items()})
    table = report.render(path, container, match, meta, sources, expected, left_out, tree)
    return Imported(variables, meta, printable(table, newlines=True))


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
