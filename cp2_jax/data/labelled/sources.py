"""Where pairs of image and mask come from.

Pairs are any object with `len(pairs)`, `pairs[index]` (encoded image and mask), `places`, `stem` and `size` as those of
`pairs.FolderPairs`, that pickles. To add a source: write it in a file of its own and give it a line in `SOURCES`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.labelled.pairs import find_pairs
from cp2_jax.data.labelled.records import TfdsPairs, open_parquet_pairs, open_tar_pairs
from cp2_jax.paths import at, is_bucket


def layout(data: Any) -> dict[str, str]:
    """Return the arguments of `match_pairs` that say where things are, from `config.data`."""
    return {key: data[key] for key in ("images", "labels", "image_suffix", "label_suffix")}


def _folder(data: Any, split: str) -> Any:
    refuse_bucket(data)
    return find_pairs(data.path, split, **layout(data))


def _tfds(data: Any, split: str) -> Any:
    refuse_bucket(data)
    return TfdsPairs(TfdsSource(data.path, split, ("image", "segmentation_mask")))


def refuse_bucket(data: Any) -> None:
    """Refuse pairs in a bucket that are not in shards.

    Args:
      data: `config.data` of finetuning.

    Raises:
      SegmentationError: saying what to do.
    """
    if getattr(data, "source", "folder") in ("folder", "tfds") and is_bucket(data.path):
        why = "single images are not" if data.source == "folder" else "array_record is not"
        raise SegmentationError(
            f"{data.path}: {why} read from buckets; pack the pairs as tar shards or Parquet, and set data.source=tar or "
            "data.source=parquet (docs/buckets.md)"
        )


def _files(data: Any, split: str) -> str:
    """Return the pattern of a split's files: `data.path` with "{split}" in it, or `split` below `data.path`.

    Raises:
      SegmentationError: the split is a name only, as it is for a folder.
    """
    if "{split}" in data.path:
        return data.path.replace("{split}", split)
    path = os.path.join(data.path, split) if split else data.path
    if split and re.fullmatch(r"[\w-]+", split) and not at(path).exists():
        raise SegmentationError(
            f"there is no {path}; with data.source={data.source} a split is a file, a folder or a pattern below data.path: "
            f"set data.split and data.eval_split, such as {split}-*.{data.source}"
        )
    return path


def _tar(data: Any, split: str) -> Any:
    return open_tar_pairs(_files(data, split), layout(data))


def _parquet(data: Any, split: str) -> Any:
    columns = (getattr(data, key, default) for key, default in (("image_column", "image"), ("mask_column", "mask")))
    return open_parquet_pairs(_files(data, split), *columns)


# The values of data.source: each opens a split of what `config.data` describes.
SOURCES: dict[str, Callable[[Any, str], Any]] = {"folder": _folder, "tfds": _tfds, "tar": _tar, "parquet": _parquet}


def open_pairs(data: Any, split: str) -> Any:
    """Open the encoded pairs of a split.

    Args:
      data: `config.data` of finetuning.
      split: a folder, a list, or a split's name, according to the source.

    Raises:
      SegmentationError, SourceError: if the data is not there, or the source is unknown.
    """
    if not data.path:
        raise SegmentationError("data.path is empty; set it to the data set's folder")
    if data.source not in SOURCES:
        raise SegmentationError(f"data.source is {data.source!r}; it must be one of {', '.join(SOURCES)}")
    return SOURCES[data.source](data, split)
