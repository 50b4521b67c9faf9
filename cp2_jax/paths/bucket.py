"""A path in a bucket, with the methods of `pathlib.Path` that this package uses."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import os
import posixpath
from collections.abc import Iterator

from cp2_jax.paths import stores


@dataclasses.dataclass(frozen=True, order=True)
class BucketPath:
    """`gs://bucket/key` or `s3://bucket/key`. It is no `os.PathLike`: nothing takes it for a local path.

    Folders are not there by themselves: a folder exists if a file is in it.

    Attributes:
      scheme: "gs" or "s3".
      bucket: its name.
      key: without slashes at its ends; "" for the whole bucket.
    """

    scheme: str
    bucket: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, other: str | os.PathLike) -> BucketPath:
        key = posixpath.normpath(posixpath.join("/", self.key, os.fspath(other)))
        return dataclasses.replace(self, key=key.strip("/"))

    @property
    def name(self) -> str:
        return posixpath.basename(self.key)

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> BucketPath:
        return dataclasses.replace(self, key=posixpath.dirname(self.key))

    def with_name(self, name: str) -> BucketPath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> BucketPath:
        return self.with_name(self.stem + suffix)

    def as_posix(self) -> str:
        return str(self)

    def absolute(self) -> BucketPath:
        return self

    def resolve(self) -> BucketPath:
        return self

    def expanduser(self) -> BucketPath:
        return self

    def is_relative_to(self, other: object) -> bool:
        """Say whether this is `other`, or inside it."""
        if not isinstance(other, BucketPath) or (self.scheme, self.bucket) != (other.scheme, other.bucket):
            return False
        return not other.key or f"{self.key}/".startswith(f"{other.key}/")

    def is_file(self) -> bool:
        return bool(self.key) and stores.generation(self) is not None

    def is_dir(self) -> bool:
        return bool(stores.keys(self))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[BucketPath]:
        """Yield files and folders in this one, by name."""
        yield from self.glob("*")

    def glob(self, pattern: str) -> Iterator[BucketPath]:
        """Yield files and folders that match a pattern of one or more parts, each as `fnmatch` has it, by name."""
        depth = pattern.count("/") + 1
        found = {"/".join(key.split("/")[:depth]) for key in stores.keys(self) if key.count("/") >= depth - 1}
        for name in sorted(found):
            if all(map(fnmatch.fnmatchcase, name.split("/"), pattern.split("/"))):
                yield self / name

    def files(self) -> list[str]:
        """Return the names, relative to this folder, of all files in it at any depth, sorted."""
        return stores.keys(self)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders are there as soon as something is in them."""

    def read_bytes(self) -> bytes:
        """Return what the file holds.

        Raises:
          FileNotFoundError: there is no such file.
          BucketError: it cannot be read.
        """
        return stores.read(self)[0]

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Write the file, as a whole or not at all.

        Raises:
          BucketError: it cannot be written.
        """
        stores.write(self, bytes(data))

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file.

        Raises:
          FileNotFoundError: there is none, and `missing_ok` is false.
        """
        if not missing_ok and stores.generation(self) is None:
            raise FileNotFoundError(errno.ENOENT, "no such object, or no such bucket", str(self))
        stores.write(self, None)
