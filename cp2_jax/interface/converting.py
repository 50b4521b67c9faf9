"""Others' checkpoints, converted when they are met."""

import hashlib
import os
import pathlib

import jax
from jax.experimental import multihost_utils

from cp2_jax.convert.importing import import_checkpoint
from cp2_jax.interface import kinds
from cp2_jax.paths import AnyPath, BucketPath, at, local
from cp2_jax.runs.checkpoints import CheckpointError, read_variables, write_variables


def convert_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    format: str | None = None,
    heads: int | None = None,
    stage_sizes: tuple[int, ...] | None = None,
    input: str | None = None,
    prefix: str = "",
    config_text: str = "read",
) -> str:
    """Convert somebody else's checkpoint to one that runs start from; nothing that the file contains is run.

    Example:
      print(cp2_jax.convert_checkpoint("moco_v2_800ep_pretrain.pth.tar", "converted/moco_v2_800ep"))

    Args:
      source: a file or folder in one of the formats of docs/checkpoints.md.
      output: a folder that does not exist, or is empty.
      format, heads, stage_sizes, input, prefix, config_text: see `convert.importing.Options`.

    Returns:
      A table: what went where, what was left out and why, what keeps its initial value.

    Raises:
      CheckpointError: there is something at `output`, or it cannot be written.
      CheckpointFormatError: the file cannot be read, is of no known format, or lacks a tensor of its network.
    """
    source, output = local(source), at(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise CheckpointError(f"{output} exists: name another output, or remove it")
    imported = import_checkpoint(
        source,
        format=format,
        heads=heads,
        stage_sizes=stage_sizes,
        input=input,
        prefix=prefix,
        config_text=config_text,
    )
    write_variables(output, imported.variables, imported.meta)
    return imported.report


def converted(checkpoint: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return the path of a checkpoint that runs can start from: `checkpoint` itself, or its conversion into a folder.

    Args:
      checkpoint: a run, a converted checkpoint, or somebody else's file.
      folder: where a file is converted to. If it already holds a conversion of the same file, that one is taken.

    Raises:
      CheckpointError: `folder` holds the conversion of another file, the file is in a bucket, or it is a folder of images.
      CheckpointFormatError: see `convert_checkpoint`.
    """
    checkpoint, folder = at(checkpoint), at(folder)
    kinds.refuse_images(checkpoint)
    if isinstance(checkpoint, BucketPath) and not checkpoint.is_dir() and checkpoint.is_file():
        raise CheckpointError(f"{checkpoint} is somebody else's file: fetch it to the disk, where it is converted")
    if not checkpoint.is_file():
        return str(checkpoint)
    if jax.process_index() == 0:
        _convert_once(checkpoint, folder)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("converted")
    return str(folder)


def _convert_once(checkpoint: pathlib.Path, folder: AnyPath) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        _, meta = read_variables(folder)
        with checkpoint.open("rb") as file:
            if meta.get("sha256") == hashlib.file_digest(file, "sha256").hexdigest():
                return
        raise CheckpointError(
            f"{folder} holds the conversion of {meta.get('file')}: remove it, or use another work directory"
        )
    report = convert_checkpoint(checkpoint, folder)
    (folder / "report.txt").write_text(report + "\n", encoding="utf-8")
    print(f"converted {checkpoint} into {folder} (report.txt there says what went where)")
