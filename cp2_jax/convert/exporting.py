"""Our variables to others' files: PyTorch's zip format (written here, without PyTorch) and safetensors."""

import io
import pathlib
import struct
import zipfile
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from cp2_jax.convert import names
from cp2_jax.convert.origins import origin
from cp2_jax.lines import wrap
from cp2_jax.models.network import Network
from cp2_jax.paths import AnyPath, at, save_as
from cp2_jax.runs.checkpoints import CheckpointError

LAYOUTS = ("mmseg", "torchvision", "timm", "merged")
_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage"}


def state_dict(
    variables: Mapping, meta: Mapping, layout: str, projection: bool = True
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Return a PyTorch state_dict's names and arrays, float32 and C-contiguous.

    Args:
      variables: {'params', 'batch_stats'}.
      meta: of the checkpoint; `num_batches_tracked` of an imported one is given back, others count zero batches.
      layout: "mmseg" (backbone.*, decode_head.*; for `type='ResNet'`, not the ResNetV1c of many configs), "merged" (both
        without prefixes, as the original's `pretrained` option loads), "torchvision" or "timm" (only the backbone).
      projection: keep the projection (`decode_head.contrast_conv.*`) with the head.

    Raises:
      CheckpointError: the model has no counterpart in that layout, or one of the same names that computes something else.
    """
    if layout not in LAYOUTS:
        raise CheckpointError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    try:
        arrays = names.torch_from_variables(variables)
    except KeyError as error:
        raise CheckpointError(f"cannot be exported: {error.args[0]}") from error
    kind = "timm" if any(name.startswith("backbone.blocks.") for name in arrays) else "torchvision"
    if layout in ("timm", "torchvision") and layout != kind:
        raise CheckpointError(f"its backbone is not one of {layout}'s: use --layout {kind}, or mmseg")
    if layout in ("mmseg", "merged"):
        mmsegmentation(meta)  # which refuses what it cannot compute
    counters = meta.get("num_batches_tracked", {})
    exported = {}
    for name, array in arrays.items():
        if not name.startswith("backbone.") and (layout == kind or ("contrast_conv" in name and not projection)):
            continue
        exported[name] = np.ascontiguousarray(array, np.float32)
        if name.endswith(".running_var"):
            counter = name.replace(".running_var", ".num_batches_tracked")
            exported[counter] = np.asarray(counters.get(counter, 0), np.int64)
    if layout != "mmseg":
        exported = {name.removeprefix("backbone.").removeprefix("decode_head."): a for name, a in exported.items()}
    return exported


def mmsegmentation(meta: Mapping) -> str:
    """Return what a config of MMSegmentation says of a checkpoint's model, as Python text; "" if it describes no model.

    Args:
      meta: of the checkpoint.

    Raises:
      CheckpointError: MMSegmentation has no such model, with the setting that it lacks.
    """
    found = origin(meta)
    if found is None:
        return ""
    network = Network.from_config(found.model)
    where = f"MMSegmentation has no model that computes what this one does ({network.backbone_name}"
    if network.backbone.in_mmsegmentation is None:
        raise CheckpointError(f"{where})")
    try:
        parts = {"backbone": network.backbone.in_mmsegmentation(network.backbone_options, found.image_size)}
    except ValueError as error:
        raise CheckpointError(
            f"{where}, {error}); export the backbone alone with --layout torchvision, or finetune it with other settings"
        ) from error
    if "head" in found.model and network.head.in_mmsegmentation is not None:
        classes = {"num_classes": network.num_classes} if network.num_classes else {}
        parts["decode_head"] = network.head.in_mmsegmentation(network.head_options) | classes | {"align_corners": False}
    scaled = {key: [round(255 * v, 4) for v in found.model[key]] for key in ("mean", "std")} | {"to_rgb": True}
    lines = [f"model = {_call(parts)}", f"img_norm_cfg = {_call(scaled)}"]
    # No string in them has a space, so that lines are broken between arguments.
    return "\n".join(part for line in lines for part in wrap(line, further="    ", cut=True))


def _call(values: Mapping) -> str:
    inner = (f"{key}={_call(value) if isinstance(value, Mapping) else repr(value)}" for key, value in values.items())
    return f"dict({', '.join(inner)})"


def write(path: str | AnyPath, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write a state_dict to `.pth` (or `.pt`) or `.safetensors`, by the name's ending; complete or not at all.

    Raises:
      CheckpointError: another ending, or it cannot be written.
    """
    path = at(path)
    if path.suffix not in (".pth", ".pt", ".safetensors"):
        raise CheckpointError(f"{path}: end the output's name in .pth or .safetensors")
    try:
        with save_as(path) as file:
            if path.suffix == ".safetensors":
                from safetensors.numpy import save_file

                save_file(dict(arrays), file)
            else:
                write_pth(file, arrays)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


def write_pth(path: str | pathlib.Path, arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> None:
    """Write what `torch.save(OrderedDict(…))` would: float32 and int64 tensors, each with its own storage.

    `torch.load(path, weights_only=True)` reads it.
    """
    root = "archive"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, f"{root}/data.pkl", _pickle(arrays))
        _add(archive, f"{root}/byteorder", b"little")
        for index, array in enumerate(arrays.values()):
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            _add(archive, f"{root}/data/{index}", little.tobytes())
        _add(archive, f"{root}/version", b"3\n")


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Add an entry whose contents begin at a multiple of 64 bytes, as PyTorch lays them out for mapping into memory."""
    entry = zipfile.ZipInfo(name)
    start = archive.fp.tell() + 30 + len(name) + 4
    padding = -start % 64
    entry.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    archive.writestr(entry, data)


def _pickle(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> bytes:
    """Return the pickle (protocol 2) of an OrderedDict of tensors, opcode by opcode."""
    out = io.BytesIO()
    put = out.write
    put(b"\x80\x02ccollections\nOrderedDict\n)R(")
    for index, (name, array) in enumerate(arrays.items()):
        put(_text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n((")
        put(_text("storage") + f"ctorch\n{_STORAGES[array.dtype.name]}\n".encode())
        put(_text(str(index)) + _text("cpu") + _number(array.size) + b"tQ" + _number(0))
        strides = [int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim)]
        for values in (array.shape, strides):
            put(b"(" + b"".join(map(_number, values)) + b"t")
        put(b"\x89ccollections\nOrderedDict\n)RtR")
    put(b"u.")
    return out.getvalue()


def _text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
