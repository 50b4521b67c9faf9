"""Images in a column of Parquet files, as Hugging Face has them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

from cp2_jax.data import listing, parquet, shards


class ParquetSource:
    """The images in a column, in the order of the files and their rows; or those that a list names.

    Attributes:
      root: the folder that all files are in.

    Args:
      path: see `shards.find_files`.
      column: its name; bytes, or a structure with a field `bytes`.
      listed: a text file with "FILE.parquet#ROW" a line, rows counted from 0 in each file; empty: all.

    Raises:
      SourceError: for files that are missing or broken, a column that is not there or holds no bytes, no rows, or a list
        that names what is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        column: str = "image",
        listed: str | os.PathLike = "",
    ):
        self._column = parquet.open_column(path, column, "data.image_column")
        self.root = shards.common_folder(self._column.files)
        if listed:
            roots = shards.roots(path, self.root)
            path_of_list, lines = listing.read_list(listed, roots[0])
            names = [self._column.place(index) for index in range(len(self))]
            chosen = listing.find(path_of_list, lines, roots, names, [])
            self._column = dataclasses.replace(self._column, rows=self._column.rows[chosen])

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: int) -> bytes:
        """Return the encoded bytes of an image.

        Raises:
          UnreadableImage: if they cannot be read, or the row has none.
          SourceError: if the file was changed after it was opened.
        """
        return self._column.read(index)

    def expect(self, index: int) -> None:
        """Say that an image will be asked for soon, see `files.expect`."""
        self._column.expect(index)

    def names(self) -> Sequence[str]:
        """Return "FILE.parquet#ROW" of all images, files relative to `root`: whether a data set is the one that it was."""
        return self._column.short_names()

    def name(self, index: int) -> str:
        """Return where an image is to be found, "FILE.parquet#ROW"."""
        return self._column.place(index)


def open_parquet(where: Any) -> ParquetSource:
    """Open the source that `where` (see `sources.Where`) describes.

    Raises:
      SourceError: see `ParquetSource`.
    """
    return ParquetSource(where.path, where.image_column, where.list)
