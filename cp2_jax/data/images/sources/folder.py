"""A folder of image files."""

from __future__ import annotations

import os
from collections.abc import Sequence

from cp2_jax.data import files, listing, notices, walking
from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.data.images.formats import SUFFIXES


class ImageFolder:
    """The image files below a folder, at any depth, sorted by the parts of their paths; or those that a list names.

    Files are chosen by suffix (upper or lower case), see `formats.SUFFIXES`; other files are counted in one warning. Class
    folders, where there are some, have no meaning here. What is left out and how links are followed: `walking.walk`.

    Attributes:
      root: the folder, absolute.

    Args:
      root: the folder.
      listed: a text file with a path a line, relative to `root`; empty takes all images. See `listing.read_list`.

    Raises:
      SourceError: if the folder does not exist or holds no image, or for a list that names what is not there.
    """

    def __init__(self, root: str | os.PathLike, listed: str | os.PathLike = ""):
        self.root = files.place(root)
        if not self.root.is_dir():
            what = "is no folder" if self.root.exists() else "does not exist"
            raise SourceError(f"folder of images {self.root} {what}; give one that is there (data.path)")
        self._files: Sequence[str] = self._listed(listed) if listed else self._walked()

    def _walked(self) -> list[str]:
        found = walking.walk(self.root, SUFFIXES)
        for line in found.closed:
            notices.say_once(f"this folder may not be entered, its images are missing: {line}")
        remark = found.remark(self.root)
        if not found.files:
            kinds = " ".join(sorted(SUFFIXES))
            seen = "".join(f"; {line}" for line in (*found.closed[:3], remark) if line)
            kind = next((one for one in ("tar", "parquet") if f".{one}" in found.passed_over), "")
            hint = f"data.source={kind} for these, or a path that ends in .{kind}" if kind else "data.path"
            raise SourceError(f"no image found in {self.root} or its subfolders (looked for {kinds}){seen}; set {hint}")
        if remark:
            notices.say_once(remark)
        return found.files

    def _listed(self, listed: str | os.PathLike) -> list[str]:
        path, lines = listing.read_list(listed, self.root)
        names = [listing.below(line, self.root) for line in lines]
        missing = listing.missing(self.root, names)
        if missing:
            raise SourceError(
                f"{path} names {lines[missing[0]]}, but there is no such file in {self.root}"
                f"{f' (and {len(missing) - 1} more)' if missing[1:] else ''}; its lines are paths relative to data.path"
            )
        return names

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> bytes:
        """Return the encoded bytes of an image.

        Raises:
          UnreadableImage: if the file cannot be read, such as a link that leads nowhere.
        """
        try:
            return files.read(self.root / self._files[index])
        except OSError as error:
            raise UnreadableImage(self.name(index), f"cannot be read: {error.strerror or error}") from error

    def names(self) -> Sequence[str]:
        """Return the paths of all images relative to `root`, which say whether a folder is the one that it was."""
        return self._files

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return files.as_text(self.root / self._files[index])
