"""Pairs of image and mask that are records of a file of many."""

from __future__ import annotations

import dataclasses

from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.labelled.masks import header_size


@dataclasses.dataclass(frozen=True)
class TfdsPairs:
    """Encoded pairs from the features `image` and `segmentation_mask` of a TFDS split, and `name` where it has one."""

    source: TfdsSource

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[bytes, bytes]:
        """Return image and mask as they are stored."""
        record = self.source[index]
        return record["image"], record["segmentation_mask"]

    def places(self, index: int) -> tuple[str, str]:
        """Return where image and mask lie, for messages."""
        place, name = self.source.name(index), self._name(index)
        place = f"{place} ({name})" if name else place
        return f"{place}/image", f"{place}/segmentation_mask"

    def stem(self, index: int) -> str:
        """Return the name of files made from the image: that under which it was prepared, or its number."""
        return self._name(index) or f"{index:06d}"

    def size(self, index: int, turn: bool = True) -> tuple[int, int]:
        """Return (height, width) from the mask's header alone, see `masks.header_size`.

        Raises:
          SegmentationError: naming a mask that cannot be read.
        """
        return header_size(self[index][1], self.places(index)[1], turn)

    def _name(self, index: int) -> str:
        name = self.source.records[index].get("name", b"")
        return name.decode() if isinstance(name, bytes) else str(name)
