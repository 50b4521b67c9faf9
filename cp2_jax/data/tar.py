"""Members of tar files by number: where each lies is found out once, so that any of them is one read away."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tarfile
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from cp2_jax.data import files, indexes, notices, shards, walking
from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.paths import AnyPath

_BLOCKS = 1024  # an archive ends with two empty blocks
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclasses.dataclass(frozen=True)
class Members:
    """Members of tar files. Pickles without their bytes, for worker processes.

    Attributes:
      shards: the files.
      stamps: size and time of each when its index was made.
      shard: number of the file of each member, [members].
      offset, size: where in it the member's bytes are, and how many.
      names: the members' names, one after the other; `ends`: where each ends in it.
    """

    shards: tuple[AnyPath, ...]
    stamps: tuple[tuple[int, int], ...]
    shard: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    names: bytes
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)

    def member(self, index: int) -> str:
        """Return a member's name inside its file."""
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])].decode("utf-8", "backslashreplace")

    def name(self, index: int) -> str:
        """Return where a member is to be found, "FILE.tar/MEMBER"."""
        return f"{files.as_text(self.shards[self.shard[index]])}/{self.member(index)}"

    def all_names(self) -> list[str]:
        """Return the names of all members inside their files."""
        ends = self.ends.tolist()
        if self.names.isascii():  # nearly always, and quicker
            text = self.names.decode("ascii")
            return [text[start:end] for start, end in itertools.pairwise([0, *ends])]
        return [self.member(index) for index in range(len(ends))]

    def read(self, index: int) -> bytes:
        """Return a member's bytes.

        Raises:
          UnreadableImage: if they cannot be read.
          SourceError: if the file was changed after its index was made.
        """
        path, size = self.shards[self.shard[index]], int(self.size[index])
        try:
            data = files.read_unchanged(path, self.stamps[self.shard[index]], int(self.offset[index]), size)
        except files.Changed as error:
            raise SourceError(f"tar shard {path} was changed while it was in use; start again") from error
        except OSError as error:
            raise UnreadableImage(self.name(index), f"cannot be read: {error.strerror or error}") from error
        if len(data) != size:
            raise UnreadableImage(self.name(index), f"cut off: {len(data)} of {size} bytes are there")
        return data

    def expect(self, index: int) -> None:
        """Say that a member will be read soon, see `files.expect`."""
        files.expect(self.shards[self.shard[index]], int(self.offset[index]), int(self.size[index]))

    def without(self, which: Int[np.ndarray, " chosen"]) -> list[int]:
        """Return the numbers of the files in which none of the members with these numbers is."""
        return np.flatnonzero(np.bincount(self.shard[which], minlength=len(self.shards)) == 0).tolist()

    def chosen(self, which: Int[np.ndarray, " chosen"]) -> Members:
        """Return the members with these numbers, in this order."""
        names = [self._raw_name(int(index)) for index in which]
        return dataclasses.replace(
            self,
            shard=self.shard[which],
            offset=self.offset[which],
            size=self.size[which],
            names=b"".join(names),
            ends=np.cumsum([len(name) for name in names], dtype=np.int64),
        )

    def _raw_name(self, index: int) -> bytes:
        return self.names[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


def open_members(path: str | os.PathLike | Sequence[str | os.PathLike]) -> Members:
    """Return all files in tar shards; hidden ones and those of folders such as `__MACOSX` are left out.

    The first time each shard is gone through for its index, which is kept (see `indexes`) and made anew when the shard's
    size or time is another. A tar file inside a tar file, as in ILSVRC2012_img_train.tar, is gone through as well.

    Args:
      path: see `shards.find_files`.

    Raises:
      SourceError: for a shard that is missing, compressed, cut off or no tar file; the message names it.
    """
    found = shards.find_files(path, ".tar", "tar shards")
    parts, stamps, kept = indexes.load_or_make(found, "tar", _build, "indexing tar shards")
    if not kept:
        notices.say_once(f"the index of {found[0]} can be kept neither beside it nor in the cache: it is made each time")
    if skipped := sum(int(part.get("links", 0)) for part in parts):
        notices.say_once(
            f"{skipped} links in {shards.all_of(found)} are not followed, and what they stand for is missing: pack again "
            "with tar --dereference --hard-dereference"
        )
    if repeated := sum(int(part.get("repeated", 0)) for part in parts):
        notices.say_once(
            f"{repeated} names are there again in the same file of {shards.all_of(found)}, as `tar -r` leaves them: "
            "images are all taken, of labelled pairs the last"
        )
    counts = [len(part["offset"]) for part in parts]
    starts = np.cumsum([0, *(len(part["names"]) for part in parts)], dtype=np.int64)
    return Members(
        tuple(found),
        tuple(stamps),
        np.repeat(np.arange(len(found), dtype=np.int32), counts),
        np.concatenate([part["offset"] for part in parts]),
        np.concatenate([part["size"] for part in parts]),
        b"".join(part["names"].tobytes() for part in parts),
        np.concatenate([part["ends"] + start for part, start in zip(parts, starts[:-1], strict=True)]),
    )


def _build(file: AnyPath) -> indexes.Arrays:
    """Go through a tar file and return the index of its members."""
    names, offsets, sizes, links = [], [], [], []

    def take(name: str, offset: int, size: int) -> None:
        if offset < 0:
            links.append(name)
            return
        names.append(name.encode("utf-8", "surrogateescape"))
        offsets.append(offset)
        sizes.append(size)

    try:
        with files.open_binary(file) as stream:
            head = stream.read(8)
            if kind := next((kind for mark, kind in _COMPRESSED.items() if head.startswith(mark)), ""):
                raise SourceError(
                    f"tar shard {file} is compressed ({kind}): an image in the middle cannot be reached without reading "
                    "all before it. Unpack it to a plain .tar; images hardly get smaller by compression"
                )
            stream.seek(0)
            _go_through(stream, 0, "", take)
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"tar shard {file} is cut off or no tar file ({error}); make or fetch it again") from error
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    blob = np.frombuffer(b"".join(names), np.uint8)
    return {"names": blob, "ends": ends, "offset": np.array(offsets, np.int64), "size": np.array(sizes, np.int64)} | {
        "links": np.array(len(links)),
        "repeated": np.array(len(names) - len(set(names))),
    }


def _go_through(stream, start: int, inside: str, take: Callable[[str, int, int], None]) -> None:
    """Call `take(name, offset, size)` for each file in the tar file that a stream shows, which lies at `start`; for links
    with an offset of -1."""
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name = inside + os.path.normpath(member.name).lstrip("/")
            if not walking.is_data(name):
                continue
            if member.issym() or member.islnk():
                take(name, -1, 0)
            if not member.isfile() or member.issparse():
                continue
            if name.lower().endswith(".tar"):
                _go_through(archive.extractfile(member), start + member.offset_data, f"{name}/", take)
            else:
                take(name, start + member.offset_data, member.size)
            archive.members = []  # else all headers stay in memory
        end = archive.offset
    # tarfile takes a damaged header for the end.
    stream.seek(end)
    rest = stream.read(_BLOCKS)
    if rest.strip(b"\0"):
        raise tarfile.ReadError(f"no header where one should be, at byte {start + end}")
    if not rest:
        notices.say_once(
            f"tar shard {getattr(stream, 'name', inside)} has no mark at its end; if it was cut off, images are missing"
        )
