"""Host batches for pretraining: which images, in which order, cropped how; read ahead by threads or processes."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import grain.python as grain
import numpy as np

from cp2_jax.data.images import decoding
from cp2_jax.data.images.crops import generator, random_crops
from cp2_jax.data.workers import with_workers

# The images of a sample: the foreground and, if they are independent, one background for either view.
STREAMS = ("foreground", "background of the query", "background of the key")
# Where backgrounds come from, and how many streams that takes.
BACKGROUNDS = {"independent": 3, "in_batch": 1}

# Beyond any run: 2**48 samples are 200 million epochs of ImageNet.
_ENDLESS = 2**48
_REPLACEMENTS = 32


def _read(source, index: int) -> bytes:
    """Encoded image `index`; UnreadableImage where its file cannot be read."""
    try:
        return source[index]
    except OSError as error:
        raise decoding.UnreadableImage(source.name(index), f"cannot be read: {error}") from error


def _order(length: int, seed: int, stream: int) -> grain.MapDataset:
    """Source indices by position, without end; every `length` positions hold each index once, in a new order."""
    # Grain shuffles epoch e with seed + e: streams with neighbouring seeds would repeat one another an epoch
    # later, so that the seeds are hashed apart.
    (shuffle_seed,) = np.random.SeedSequence([seed, stream]).generate_state(1)
    return grain.MapDataset.range(length).shuffle(seed=int(shuffle_seed)).repeat()


@dataclasses.dataclass(frozen=True)
class _Sample:
    """From a position in the stream to a sample; everything follows from the fields and the position."""

    source: Any
    orders: Sequence[grain.MapDataset]
    seed: int
    image_size: int
    crop_scale: tuple[float, float]
    attention: Any = None

    def _crop(self, index: int, position: int, stream: int) -> np.ndarray:
        rng = generator(self.seed, position, stream, 0)
        views = 1 if stream else 2
        data = _read(self.source, index)
        crops = random_crops(data, self.source.name(index), rng, self.image_size, views, self.crop_scale)
        if self.attention is None or stream:
            return crops
        # The same draws give the same boxes, for the map has its image's size. It becomes a fourth channel.
        rng = generator(self.seed, position, stream, 0)
        data, name = self.attention[index], self.attention.name(index)
        maps = random_crops(data, name, rng, self.image_size, views, self.crop_scale)
        return np.concatenate([crops, maps[..., :1]], axis=-1)

    def _load(self, position: int, stream: int) -> tuple[np.ndarray, int]:
        """The image's crops and -1, or those of a substitute and the index of the unreadable image."""
        index = int(self.orders[stream][position])
        try:
            return self._crop(index, position, stream), -1
        except decoding.UnreadableImage as error:
            first = error
        length = len(self.source)
        rng = np.random.default_rng([self.seed, position, stream, 1])
        substitutes = rng.choice(length, min(length, _REPLACEMENTS), replace=False)
        for substitute in substitutes:
            try:
                return self._crop(int(substitute), position, stream), index
            except decoding.UnreadableImage:
                continue
        raise RuntimeError(
            f"{first}. None of {len(substitutes)} images drawn in its place could be read either: "
            "check the data set, and that its disk is there"
        )

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        cv2.setNumThreads(1)  # samples are made in parallel already
        crops, unreadable = zip(*(self._load(position, stream) for stream in range(len(self.orders))), strict=True)
        sample = {"foreground": crops[0][..., :3], "unreadable": np.array(unreadable, np.int64)}
        if self.attention is not None:
            sample["attention"] = crops[0][..., 3]
        if len(crops) > 1:
            sample["background"] = np.concatenate(crops[1:])
        return sample


@dataclasses.dataclass(frozen=True)
class _Position:
    """From the count of this process's rows to the position in the stream that all processes share."""

    batch_size: int
    rows: int
    first_row: int

    def __call__(self, count: int) -> int:
        step, row = divmod(int(count), self.rows)
        return step * self.batch_size + self.first_row + row


def _stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def pretrain_dataset(
    source,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    backgrounds: str = "independent",
    attention=None,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    threads: int = 16,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """An endless iterator of this process's share of every batch, from batch `start_step` on.

    Batches, with b = batch_size / process_count, S = image_size:
      'foreground'  uint8 [b, 2, S, S, 3]: two random crops of one image, for the query and the key view;
      'background'  uint8 [b, 2, S, S, 3]: one random crop of each of two other images, drawn independently; absent
                    with backgrounds='in_batch', where the step takes them from 'foreground';
      'attention'   uint8 [b, 2, S, S], with `attention` alone: the foreground's crops of its attention map;
      'unreadable'  int64 [b, 3] (or [b, 1]): for foreground and the two backgrounds, the source index of an image
                    that could not be read and was replaced by another, else -1. (`Batches` takes it out.)

    Each of the three streams goes through the whole source in an order of its own, a new one each epoch. The last
    samples of an epoch and the first of the next may share a batch: none is dropped. Sample t * batch_size + j is
    row j of batch t for any number of processes, workers and threads, and depends on nothing but seed and source;
    so a run resumes at step t with start_step=t. Process p gets rows [p * b, (p + 1) * b).

    source: see `sources`; items are encoded images. batch_size: of all processes together. crop_scale: range of
    the crop's share of the image (the original's RandomResizedCrop, 0.2 to 1). backgrounds: a name in `BACKGROUNDS`;
    the foregrounds are the same with either. attention: a source of maps of the same number, order and sizes as the
    images (`scripts/attention_maps.py`). workers: processes that decode; 0
    decodes in `threads` threads of this process. prefetch: batches read ahead, for each worker. With workers, call
    `.close()` when done, or let `Batches` do it; and Grain then reads absl's flags, so that outside `absl.app.run`
    they have to be marked as parsed: `absl.flags.FLAGS.mark_as_parsed()`.

    Raises ValueError for sizes that do not fit, KeyError for unknown backgrounds; while iterating, RuntimeError if an
    image and all its substitutes are unreadable.
    """
    if batch_size <= 0 or batch_size % process_count:
        raise ValueError(f"batch_size {batch_size} must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must lie in 0 to {process_count - 1}")
    if start_step < 0 or seed < 0:
        raise ValueError(f"start_step ({start_step}) and seed ({seed}) must not be negative")
    rows = batch_size // process_count
    orders = tuple(_order(len(source), seed, stream) for stream in range(BACKGROUNDS[backgrounds]))
    samples = (
        grain.MapDataset.range(start_step * rows, _ENDLESS)
        .map(_Position(batch_size, rows, process_index * rows))
        .map(_Sample(source, orders, seed, image_size, tuple(crop_scale), attention))
    )
    if workers:
        # Grain deals elements out to the workers in turn: these must be whole batches to stay as they are.
        batches = samples.batch(rows, batch_fn=_stack).to_iter_dataset(grain.ReadOptions(1, prefetch))
        batches = with_workers(batches, workers, prefetch)
    else:
        ahead = max(prefetch * rows, threads)
        batches = samples.to_iter_dataset(grain.ReadOptions(threads, ahead)).batch(rows, batch_fn=_stack)
    return iter(batches)


def _own(array: np.ndarray) -> np.ndarray:
    """A worker's array copied out of shared memory, which then is free at once, not when the batch is forgotten."""
    return array if type(array) is np.ndarray else np.array(array)


class Batches:
    """Batches placed on the device ahead of their use; counts and reports unreadable images.

    A background thread draws host batches from `iterator`, takes 'unreadable' out, applies `place` (host batch ->
    device batch) and keeps up to `ahead` results ready. The name of each unreadable file is logged once, with the
    reason.

    iterator: from `pretrain_dataset`, or any iterator of dicts. source: the one its indices refer to.
    Attributes: unreadable_count, images replaced in the batches handed out so far; wait_seconds, time that the
    consumer spent waiting in next().
    Whatever goes wrong in the background is raised by next().
    """

    def __init__(self, iterator, source, place: Callable[[dict], Any] | None = None, ahead: int = 2):
        self.unreadable_count = 0
        self.wait_seconds = 0.0
        self._iterator = iterator
        self._source = source
        self._place = place
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
        """Ends the background thread and the iterator's workers. May be called twice."""
        self._closed.set()
        while not self._ready.empty():  # a thread that waits for room sees `_closed` sooner
            self._ready.get_nowait()
        self._thread.join(timeout=30)
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _work(self) -> None:
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
            try:  # once more, for the reason: a worker process cannot hand it over within an array
                decoding.decode(_read(self._source, index), self._source.name(index))
            except decoding.UnreadableImage as error:
                logging.warning("unreadable image replaced by another: %s", error)
            else:
                logging.warning("unreadable image replaced by another, though readable now: %s", self._source.name(index))
