"""Where encoded images come from.

A source is any object with `len(source)`, `source[index]` (the encoded bytes of an image, or `UnreadableImage`) and
`source.name(index)` (where it is to be found, for messages), that pickles and always has its images in the same order. All
that pretraining promises (the order, exact resumption, replacement of images that cannot be read) follows from this. To add
one: write it in a file of its own here and give it a line in `SOURCES` (`tests/data/test_options.py` does so).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.data.images.formats import SUFFIXES
from cp2_jax.data.images.sources.folder import ImageFolder
from cp2_jax.data.images.sources.parquet import ParquetSource, open_parquet
from cp2_jax.data.images.sources.tar import TarSource, open_tar
from cp2_jax.data.images.sources.tfds import TfdsSource
from cp2_jax.paths import is_bucket

__all__ = [
    "SOURCES",
    "SUFFIXES",
    "ImageFolder",
    "ParquetSource",
    "SourceError",
    "TarSource",
    "TfdsSource",
    "Where",
    "open_held_out",
    "open_images",
    "open_source",
    "read_image",
    "source_of",
]


@dataclasses.dataclass(frozen=True)
class Where:
    """What a source is opened by: the keys of the same names of `config.data`.

    Attributes:
      path: as the user typed it.
      split: of sources that have splits.
      list: a text file of the images to take; empty: all.
      image_column: of Parquet files.
    """

    path: str
    split: str = "train"
    list: str = ""
    image_column: str = "image"


def _folder(where: Where) -> ImageFolder:
    if is_bucket(where.path):
        raise SourceError(
            f"{where.path}: single images are not read from buckets; pack them as tar shards or Parquet, and set "
            "data.source, or give a path that ends in .tar or .parquet (docs/buckets.md)"
        )
    return ImageFolder(where.path, where.list)


def _tfds(where: Where) -> TfdsSource:
    if is_bucket(where.path):
        raise SourceError(
            f"{where.path}: array_record's library reads no buckets; copy the data set to the disk, or pack it as tar "
            "shards or Parquet (docs/buckets.md)"
        )
    if where.list:
        raise SourceError(
            f"data.list={where.list} names files; for data.source=tfds take a part by data.split, such as 'train[:10%]'"
        )
    return TfdsSource(where.path, where.split)


# The values of data.source.
SOURCES: dict[str, Callable[[Where], Any]] = {
    "folder": _folder,
    "tfds": _tfds,
    "tar": open_tar,
    "parquet": open_parquet,
}


def open_source(data: Any) -> Any:
    """Open the images that `config.data` describes.

    Args:
      data: the section, or `ImageOptions`: `source` (a name in `SOURCES`) and the fields of `Where`, those with defaults
        may be absent.

    Raises:
      SourceError: if `source` is unknown, `path` is empty, or the data set cannot be opened.
    """
    return _open(data.source, _where(data))


def open_images(path: str | os.PathLike) -> Any:
    """Open images by their path only: tar shards or Parquet files if it ends so, else a folder.

    Args:
      path: a folder, or a file or pattern as `shards.find_files` takes it.

    Raises:
      SourceError: if there is no such thing, or no image in it.
    """
    return SOURCES[source_of(path)](Where(str(path)))


def source_of(path: str | os.PathLike) -> str:
    """Return the value of `data.source` that a path implies: tar or parquet if it ends so, else folder."""
    suffix = os.path.splitext(str(path))[1].lower()
    return suffix[1:] if suffix in (".tar", ".parquet") else "folder"


def open_held_out(data: Any) -> Any:
    """Open the images that probes look at: those of `data.probe_path` (else of `data.path`) and `data.probe_split`.

    Raises:
      SourceError: as `open_source`.
    """
    where = dataclasses.replace(_where(data), split=data.probe_split)
    if data.probe_path:
        where = dataclasses.replace(where, path=data.probe_path, list="")
    return _open(data.source, where)


def _where(data: Any) -> Where:
    given = {field.name: getattr(data, field.name, field.default) for field in dataclasses.fields(Where)}
    return Where(**given)


def _open(source: str, where: Where) -> Any:
    if not where.path:
        raise SourceError("data.path is empty; set it to the folder of images or to the data set")
    if source not in SOURCES:
        raise SourceError(f"data.source is {source!r}; it must be one of {', '.join(SOURCES)}")
    return SOURCES[source](where)


def read_image(source: Any, index: int) -> bytes:
    """Return an encoded image of a source.

    Raises:
      UnreadableImage: if it cannot be read.
    """
    try:
        return source[index]
    except OSError as error:
        raise UnreadableImage(source.name(index), f"cannot be read: {error}") from error
