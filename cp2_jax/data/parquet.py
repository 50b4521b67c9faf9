"""A column of images in Parquet files, by row: read directly where the bytes stand in the file, else by row group."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from cp2_jax.data import files, indexes, notices, shards
from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.paths import AnyPath, BucketError

# Row groups that a process keeps: a group is read whole for one of its images, and neighbours may be asked for next.
_KEPT_BYTES = 256 * 2**20


class _Kept:
    """Row groups read last, up to a number of bytes; for all threads of a process."""

    def __init__(self, most: int):
        self._most, self._groups, self._lock = most, collections.OrderedDict(), threading.Lock()

    def get(self, key: tuple, read: Any) -> Any:
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        group = read()  # outside the lock: threads read different groups at once
        with self._lock:
            self._groups[key] = group
            while len(self._groups) > 1 and sum(one.nbytes for one in self._groups.values()) > self._most:
                self._groups.popitem(last=False)
        return group


_kept = _Kept(_KEPT_BYTES)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of encoded images in Parquet files. Pickles without the bytes, for worker processes.

    Attributes:
      files: in order.
      stamps: size and time of each when it was opened.
      name: of the column.
      first_rows: number of the first row of each file, and the number of all rows.
      groups: for each file, the first row (in it) of each row group.
      offset, size: where in its file the bytes of each row are; -1 where they are not there as they are (compressed), -2
        where there are none.
      rows: the rows that are used, in order.
    """

    files: tuple[AnyPath, ...]
    stamps: tuple[tuple[int, int], ...]
    name: str
    first_rows: np.ndarray
    groups: tuple[np.ndarray, ...]
    offset: np.ndarray
    size: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def _place(self, index: int) -> tuple[int, int]:
        """Return number of the file and row in it."""
        row = int(self.rows[index])
        file = int(np.searchsorted(self.first_rows, row, side="right")) - 1
        return file, row - int(self.first_rows[file])

    def place(self, index: int) -> str:
        """Return where a row is to be found, "FILE.parquet#ROW"."""
        file, row = self._place(index)
        return f"{files.as_text(self.files[file])}#{row}"

    def short_names(self) -> list[str]:
        """Return "FILE.parquet#ROW" of all rows, with the files' names relative to the folder that all are in."""
        short = shards.short_names(self.files, shards.common_folder(self.files))
        number = np.searchsorted(self.first_rows, self.rows, side="right") - 1
        pairs = zip(number.tolist(), (self.rows - self.first_rows[number]).tolist(), strict=True)
        return [f"{short[file]}#{row}" for file, row in pairs]

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of a row.

        Raises:
          UnreadableImage: if they cannot be read, or the row has none.
          SourceError: if the file was changed after it was opened.
        """
        file, row = self._place(index)
        path, offset = self.files[file], int(self.offset[self.rows[index]])
        try:
            if offset >= 0:
                return files.read_unchanged(path, self.stamps[file], offset, int(self.size[self.rows[index]]))
            files.check(path, self.stamps[file])
            data = self._from_group(file, row)
        except files.Changed as error:
            raise SourceError(f"Parquet file {path} was changed while it was in use; start again") from error
        except (SourceError, BucketError):
            raise
        except Exception as error:  # OSError, and pyarrow's own for damaged pages
            raise UnreadableImage(self.place(index), f"cannot be read: {_first_line(error)}") from error
        if data is None:
            raise UnreadableImage(self.place(index), f"has nothing in column {self.name}")
        return data

    def expect(self, index: int) -> None:
        """Say that a row will be read soon, see `files.expect`."""
        if (offset := int(self.offset[self.rows[index]])) >= 0:
            files.expect(self.files[self._place(index)[0]], offset, int(self.size[self.rows[index]]))

    def _from_group(self, file: int, row: int) -> bytes | None:
        group = int(np.searchsorted(self.groups[file], row, side="right")) - 1
        path = self.files[file]
        key = (path, self.stamps[file], self.name, group)
        values = _kept.get(key, lambda: _read_group(path, group, self.name))
        value = values[row - int(self.groups[file][group])]
        return value.as_py()


def open_column(path: str | os.PathLike | Sequence[str | os.PathLike], name: str, key: str) -> Column:
    """Open a column of images.

    The first time, uncompressed files are gone through for an index of where each image's bytes are, which is kept (see
    `indexes`); any image is one read away then. In compressed files a whole row group is read for an image.

    Args:
      path: see `shards.find_files`.
      name: of the column: bytes, or a structure with a field `bytes`, as Hugging Face writes.
      key: of the config that says so, for messages.

    Raises:
      SourceError: naming a file that is missing or no Parquet file, a column that is not there, of another kind or without
        any image; if no file has a row.
    """
    found = shards.find_files(path, ".parquet", "Parquet files")
    with ThreadPoolExecutor(8) as pool:
        headers = list(pool.map(lambda file: _header(file, name, key), found))
    build = functools.partial(_build, name=name)
    parts, stamps, _ = indexes.load_or_make(found, f"parquet.{name}", build, "indexing Parquet files")
    counts = [rows for rows, _, _ in headers]
    if not any(counts):
        raise SourceError(f"no row in {shards.all_of(found)}; set data.path to Parquet files with images")
    if empty := sum(empty for _, _, empty in headers):
        notices.say_once(f"{empty} of {sum(counts)} rows of {shards.all_of(found)} have nothing in column {name}")
    shards.say_empty(found, [number for number, count in enumerate(counts) if not count], "row")
    offset = np.concatenate([part["offset"] for part in parts])
    if compressed := np.count_nonzero(offset == -1):
        largest = max(int(np.max(np.diff([*groups, rows]))) if rows else 0 for rows, groups, _ in headers)
        notices.say_once(
            f"{compressed} of {len(offset)} images in {found[0].parent} are compressed a second time by Parquet: up to "
            f"{largest} are read for each. Written with compression='none' each is read alone (docs/data.md)"
        )
    return Column(
        tuple(found),
        tuple(stamps),
        name,
        np.cumsum([0, *counts], dtype=np.int64),
        tuple(groups for _, groups, _ in headers),
        offset,
        np.concatenate([part["size"] for part in parts]),
        np.arange(sum(counts), dtype=np.int64),
    )


def _pyarrow():
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise SourceError("data.source=parquet needs pyarrow: pip install 'cp2_jax[parquet]'") from error
    return pyarrow.parquet


def _open(file: AnyPath):
    parquet = _pyarrow()
    try:
        return parquet.ParquetFile(files.open_binary(file), pre_buffer=False)
    except BucketError:
        raise
    except Exception as error:  # OSError, and pyarrow's own
        raise SourceError(f"{file} is no Parquet file, or is cut off ({_first_line(error)})") from error


def _header(file: AnyPath, name: str, key: str) -> tuple[int, np.ndarray, int]:
    """Return the number of rows, the first row of each row group, and how many rows are known to be empty; refuse a file
    without the column, or with nothing in it."""
    with _open(file) as opened:
        schema, metadata = opened.schema_arrow, opened.metadata
    if name not in schema.names:
        raise SourceError(f"{file} has no column {name!r}; set {key} to one of: {', '.join(schema.names)}")
    empty = _count_empty(metadata, _field(schema.field(name).type, file, name, key), file)
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    return metadata.num_rows, np.cumsum([0, *rows[:-1]], dtype=np.int64)[: len(rows)], empty


def _count_empty(metadata: Any, inside: str, file: AnyPath) -> int:
    """Return how many rows have nothing in a column, as far as the file itself says it; refuse one without any image."""
    empty = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunk = next(one for one in map(group.column, range(group.num_columns)) if one.path_in_schema == inside)
        if chunk.statistics is not None and chunk.statistics.has_null_count:
            empty += chunk.statistics.null_count
    if metadata.num_rows and empty == metadata.num_rows:
        paths = "; Hugging Face's data sets may hold paths alone, which have to be embedded" if "." in inside else ""
        raise SourceError(f"column {inside!r} of {file} has no image in any row{paths}: write the images' bytes into it")
    return empty


def _field(kind: Any, file: AnyPath, name: str, key: str) -> str:
    """Return the path of the bytes within a column."""
    import pyarrow

    inside = f"{name}.bytes" if pyarrow.types.is_struct(kind) and "bytes" in [field.name for field in kind] else name
    bytes_kind = kind.field("bytes").type if inside != name else kind
    if not (pyarrow.types.is_binary(bytes_kind) or pyarrow.types.is_large_binary(bytes_kind)):
        raise SourceError(f"column {name!r} of {file} holds {kind}, not encoded images (bytes); set {key} to another")
    return inside


def _read_group(file: AnyPath, group: int, name: str):
    """Return the bytes of a row group: an Arrow array."""
    with _open(file) as opened:
        inside = _field(opened.schema_arrow.field(name).type, file, name, name)
        column = opened.read_row_group(group, columns=[inside]).column(name).combine_chunks()
    return column.field("bytes") if inside != name else column


def _build(file: AnyPath, name: str) -> indexes.Arrays:
    """Find out where in a file the bytes of each row stand as they are."""
    offsets, sizes = [], []
    with _open(file) as opened:
        inside = _field(opened.schema_arrow.field(name).type, file, name, name)
        metadata = opened.metadata
        for group in range(metadata.num_row_groups):
            columns = (metadata.row_group(group).column(i) for i in range(metadata.num_columns))
            chunk = next(one for one in columns if one.path_in_schema == inside)
            if chunk.compression != "UNCOMPRESSED":
                offsets += [-1] * metadata.row_group(group).num_rows
                sizes += [0] * metadata.row_group(group).num_rows
                continue
            begin = min(place for place in (chunk.dictionary_page_offset, chunk.data_page_offset) if place)
            stored = files.read_range(file, begin, chunk.total_compressed_size)
            position = 0
            for value in _read_group(file, group, name):
                value = value.as_py()
                place = -1 if value is None else _find(stored, value, position)
                offsets.append(place + begin if place >= 0 else -2 if value is None else -1)
                sizes.append(len(value) if place >= 0 else 0)
                position = max(position, place + (len(value) if place >= 0 else 0))
    return {"offset": np.array(offsets, np.int64), "size": np.array(sizes, np.int64)}


def _find(stored: bytes, value: bytes, position: int) -> int:
    """Return where a value stands, nearly always right after a position and its length in 4 bytes; -1 if nowhere."""
    if stored.startswith(value, position + 4):
        return position + 4
    for begin in (position, 0):
        place = stored.find(value[:64], begin)  # looking for the whole of a large value is slow
        while place >= 0:
            if stored.startswith(value, place):
                return place
            place = stored.find(value[:64], place + 1)
    return -1


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
