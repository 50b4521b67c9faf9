"""A TFDS data set stored as `array_record`, read without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from cp2_jax.data import files
from cp2_jax.data.errors import SourceError, UnreadableImage


def _version_folder(path: Path) -> Path:
    """`path` if it is a prepared version of a TFDS data set, else the only such folder below it."""
    if not path.is_dir():
        raise SourceError(f"no such TFDS data set: {path}; set data.path to a folder that holds dataset_info.json")
    if (path / "dataset_info.json").is_file():
        return path
    found = sorted(info.parent for info in path.rglob("dataset_info.json"))
    if not found:
        raise SourceError(f"no TFDS data set in {path}: neither it nor a folder below holds dataset_info.json")
    if len(found) > 1:
        raise SourceError(f"{path} holds several TFDS data sets; set data.path to one of: {', '.join(map(str, found))}")
    return found[0]


class TfdsSource:
    """The encoded images of one split of a TFDS data set in array_record format; TensorFlow is never imported.

    Args:
      path: the version folder (it holds dataset_info.json), or a folder with a single version somewhere below.
      split: a split's name or a TFDS slice of one, e.g. "train[:10%]".
      keys: names of image features. With one, items are bytes; with several, dicts from key to bytes.

    Raises:
      SourceError: if the path, format, split or feature is not there.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train", keys: Sequence[str] = ("image",)):
        self.path = _version_folder(files.place(path))
        self.split = split
        self.keys = tuple(keys)
        self._records = self._open()

    def _open(self):
        import tensorflow_datasets as tfds  # here, because it takes a second that a folder's user need not wait

        try:
            builder = tfds.builder_from_directory(str(self.path))
        except Exception as error:  # of TFDS and of protobuf, for files that are missing, cut off or of an old version
            raise SourceError(
                f"{self.path} cannot be opened as a TFDS data set ({_first_line(error)}); make it again"
            ) from error
        file_format = builder.info.file_format.value
        if file_format != "array_record":
            raise SourceError(
                f"{self.path} is stored as {file_format}, which needs TensorFlow to read; "
                "prepare it again with file_format='array_record'"
            )
        features = builder.info.features
        for key in self.keys:
            if key not in features:
                raise SourceError(f"{self.path} has no feature {key!r}; it has: {', '.join(features)}")
            if not isinstance(features[key], tfds.features.Image):
                raise SourceError(f"feature {key!r} of {self.path} is no image but {type(features[key]).__name__}")
        # All images stay encoded, also those not asked for: decoding them would only cost time.
        skip = {key: tfds.decode.SkipDecoding() for key, kind in features.items() if isinstance(kind, tfds.features.Image)}
        try:
            found = builder.info.splits[self.split]
        except (KeyError, ValueError, AssertionError) as error:
            there = ", ".join(builder.info.splits) or "none"
            raise SourceError(f"{self.path} has no split {self.split!r}; it has: {there}") from error
        missing = [path for path in map(str, found.filepaths) if not os.path.exists(path)]
        if missing:
            more = f" (and {len(missing) - 1} more of {len(found.filepaths)})" if missing[1:] else ""
            raise SourceError(
                f"no such file: {missing[0]}{more}; split {self.split!r} needs it: put it back, or make it again"
            )
        return builder.as_data_source(split=self.split, decoders=skip)

    # A worker process gets the three settings and opens the files itself: open handles do not travel.
    def __getstate__(self) -> dict:
        return {"path": self.path, "split": self.split, "keys": self.keys}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, _records=None)

    @property
    def records(self):
        if self._records is None:
            self._records = self._open()
        return self._records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> bytes | dict[str, bytes]:
        """Return the encoded bytes of an example, or a dict of them if the source has several keys.

        Raises:
          UnreadableImage: if they cannot be read, for their file is damaged.
        """
        record = self.record(index)
        if absent := [key for key in self.keys if record.get(key) is None]:  # a file that is cut off may still be opened
            raise UnreadableImage(self.name(index), f"has nothing in feature {absent[0]}: is its file damaged?")
        if len(self.keys) == 1:
            return bytes(record[self.keys[0]])
        return {key: bytes(record[key]) for key in self.keys}

    def record(self, index: int) -> dict:
        """Return all that is stored of an example, images encoded.

        Raises:
          UnreadableImage: if it cannot be read, for its file is damaged.
        """
        try:
            return self.records[int(index)]
        except (RuntimeError, ValueError, OSError) as error:  # RuntimeError is array_record's own
            if isinstance(error, SourceError):
                raise
            raise UnreadableImage(self.name(index), f"cannot be read: {_first_line(error)}") from error

    def name(self, index: int) -> str:
        """Return where an example is to be found, for messages."""
        return f"{self.path}:{self.split}[{int(index)}]"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
