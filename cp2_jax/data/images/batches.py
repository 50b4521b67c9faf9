"""Host batches placed on the device ahead of their use, and a word about every image that could not be read."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images import decoding
from cp2_jax.data.images.sources import read_image
from cp2_jax.data.workers import uninterrupted

# Names of unreadable images that are logged one by one; beyond, only the count goes on.
_NAMED = 20


def _own(array: np.ndarray) -> np.ndarray:
    """Return a worker's array copied out of shared memory, which is free at once then, not when the batch is forgotten."""
    return array if type(array) is np.ndarray else np.array(array)


class Batches:
    """Batches that are placed on the device before they are needed. Counts and reports unreadable images.

    A background thread draws host batches, takes `unreadable` out, places the rest and keeps some results ready. The name
    of each unreadable file is logged once with the reason, 20 of them at most. An error in the background is
    raised by next().

    Args:
      iterator: from `pretrain_dataset`, or any iterator of dicts.
      source: the one that the indices in `unreadable` refer to.
      place: host batch → device batch; None leaves it as it is.
      ahead: results kept ready.
      value_range: see `decoding.decode`; for the reasons.

    Attributes:
      unreadable_count: images replaced in the batches handed out so far.
      wait_seconds: time that the consumer spent waiting in next().
    """

    def __init__(
        self,
        iterator: Any,
        source: Any,
        place: Callable[[dict], Any] | None = None,
        ahead: int = 2,
        value_range: Sequence[float] = (),
    ):
        self.unreadable_count = 0
        self.wait_seconds = 0.0
        self._iterator = iterator
        self._source = source
        self._place = place
        self._value_range = value_range
        self._reported: set[int] = set()
        self._ready: queue.Queue = queue.Queue(maxsize=max(1, ahead))
        self._closed = threading.Event()
        self._end: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise RuntimeError("these batches were closed")
        if self._end is not None:
            raise self._end
        started = time.perf_counter()
        batch, replaced, error = self._ready.get()
        self.wait_seconds += time.perf_counter() - started
        if error is not None:
            self._end = error
            raise error
        self.unreadable_count += replaced
        return batch

    def close(self) -> None:
        """End the background thread and the iterator's workers. May be called twice."""
        self._closed.set()
        while not self._ready.empty():  # a thread that waits for room sees `_closed` sooner
            self._ready.get_nowait()
        self._thread.join(timeout=30)
        self._end_workers()

    def _end_workers(self) -> None:
        iterator, self._iterator = self._iterator, iter(())  # Grain's complains if it is still there when Python ends
        close = getattr(iterator, "close", None)
        if close is not None:
            close()

    def _work(self) -> None:
        with uninterrupted():
            self._draw()

    def _draw(self) -> None:
        try:
            for host_batch in self._iterator:
                host_batch = {key: _own(value) for key, value in host_batch.items()}
                indices = host_batch.pop("unreadable", np.empty(0, np.int64))
                indices = indices[indices >= 0]
                self._report(indices)
                batch = host_batch if self._place is None else self._place(host_batch)
                if not self._put((batch, indices.size, None)):
                    return
            self._put((None, 0, StopIteration()))
        except BaseException as error:
            # Before the consumer hears of it and leaves: Python's end and Grain's threads would end the workers at once,
            # each in the way of the other.
            self._end_workers()
            self._put((None, 0, error))

    def _put(self, item: tuple) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _report(self, indices: np.ndarray) -> None:
        for index in map(int, indices):
            if index in self._reported:
                continue
            self._reported.add(index)
            if len(self._reported) <= _NAMED:
                logging.warning("unreadable image replaced by another: %s", self._reason(index))
            elif len(self._reported) == _NAMED + 1:
                logging.warning(
                    "more images cannot be read and are replaced; from here on they are only counted (unreadable_images)"
                )

    def _reason(self, index: int) -> str:
        """Return name and reason, by reading once more: a worker process cannot hand them over within an array."""
        name = self._source.name(index)
        try:
            decoding.decode(read_image(self._source, index), name, self._value_range)
        except UnreadableImage as error:
            return str(error)
        return f"{name} (it can be read now)"
