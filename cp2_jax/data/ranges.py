"""An object in a bucket as a file that can seek, for libraries that want one."""

from __future__ import annotations

import io
import threading

from cp2_jax.paths import BucketPath, stores

BLOCK = 2**20  # bytes
_AHEAD = 6  # blocks on their way while a file is read one after the other
_KEPT = 4


class Ranges(io.RawIOBase):
    """Reads blocks, some of them ahead of their use.

    Args:
      path: of the object.

    Raises:
      OSError, BucketError: while reading.
    """

    def __init__(self, path: BucketPath):
        self.name, self._path, self._at, self._size = str(path), path, 0, None
        self._blocks: dict[int, bytes] = {}
        self._coming: dict[int, object] = {}
        self._last, self._lock = -2, threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            if self._size is None:
                self._size = stores.size(self._path)
            offset += self._size
        self._at = offset + (self._at if whence == io.SEEK_CUR else 0)
        return self._at

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        number, inside = divmod(self._at, BLOCK)
        part = self._block(number)[inside : inside + len(view)]
        view[: len(part)] = part
        self._at += len(part)
        return len(part)

    def read(self, size: int = -1) -> bytes:
        parts = []
        while size:
            number, inside = divmod(self._at, BLOCK)
            block = self._block(number)
            part = block[inside:] if size < 0 else block[inside : inside + size]
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            size -= len(part) if size > 0 else 0
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        with self._lock:
            if number not in self._blocks:
                begin, end = number * BLOCK, (number + 1) * BLOCK
                if self._last + 1 >= number > 0:
                    for other in range(number, number + _AHEAD):
                        if other not in self._coming:
                            self._coming[other] = stores.start(self._path, other * BLOCK, (other + 1) * BLOCK)
                future = self._coming.pop(number, None)
                if future is None:
                    data, _ = stores.read(self._path, begin, end)
                else:
                    data, _ = stores.finish(self._path, future, begin, end)
                self._coming = {other: one for other, one in self._coming.items() if other > number}
                while len(self._blocks) >= _KEPT:
                    self._blocks.pop(next(iter(self._blocks)))
                self._blocks[number] = data
                self._last = number
            return self._blocks[number]
