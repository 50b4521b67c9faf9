"""Host batches for pretraining: which images, in which order, cropped how; read ahead by threads or processes.

Each stream (the foreground, and one background for each view) goes through the whole source in an order of its own, a new
one each epoch. The last samples of an epoch and the first of the next may share a batch: none is dropped. Sample
t * batch_size + j is row j of batch t for any number of processes, workers and threads, and depends on nothing but seed and
source. So a run goes on at step t with start_step=t.

Worker processes end with `Batches.close()`, or `.close()` of the iterator. Grain has them read absl's flags: outside
`absl.app.run` these have to be marked as parsed, `absl.flags.FLAGS.mark_as_parsed()`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import grain.python as grain
import numpy as np

from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.data.images.batches import Batches
from cp2_jax.data.images.crops import generator, random_crops
from cp2_jax.data.images.options import BACKGROUNDS
from cp2_jax.data.images.sources import read_image
from cp2_jax.data.rows import check_rows
from cp2_jax.data.workers import iterate, with_workers

__all__ = ["STREAMS", "Batches", "pretrain_dataset"]

# The images of a sample: the foreground and, if they are independent, one background for either view.
STREAMS = ("foreground", "background of the query", "background of the key")

# Beyond any run: 2**48 samples are 200 million epochs of ImageNet.
_ENDLESS = 2**48
_REPLACEMENTS = 32
# Samples, of each worker, whose images are on their way from a bucket; at least, for whole batches are.
_AHEAD = 64


def _order(length: int, seed: int, stream: int) -> grain.MapDataset:
    """Return source indices by position, without end; every `length` positions hold each index once, in a new order."""
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
    value_range: tuple[float, ...] = ()
    ahead: int = 0

    def _expect(self, position: int) -> None:
        """Say which images a later sample needs, to a source that cares: those in buckets are asked for in advance."""
        if self.ahead and hasattr(self.source, "expect"):
            for order in self.orders:
                self.source.expect(int(order[position]))

    def _crop(self, index: int, position: int, stream: int) -> np.ndarray:
        rng = generator(self.seed, position, stream, 0)
        views = 1 if stream else 2
        data = read_image(self.source, index)
        name = self.source.name(index)
        crops = random_crops(data, name, rng, self.image_size, views, self.crop_scale, value_range=self.value_range)
        if self.attention is None or stream:
            return crops
        # The same draws give the same boxes, for the map has its image's size. It becomes a fourth channel.
        rng = generator(self.seed, position, stream, 0)
        data, name = self.attention[index], self.attention.name(index)
        maps = random_crops(data, name, rng, self.image_size, views, self.crop_scale)
        return np.concatenate([crops, maps[..., :1]], axis=-1)

    def _load(self, position: int, stream: int) -> tuple[np.ndarray, int]:
        """Return the image's crops and -1, or those of a substitute and the index of the unreadable image."""
        index = int(self.orders[stream][position])
        try:
            return self._crop(index, position, stream), -1
        except UnreadableImage as error:
            first = error
        length = len(self.source)
        rng = np.random.default_rng([self.seed, position, stream, 1])
        substitutes = rng.choice(length, min(length, _REPLACEMENTS), replace=False)
        for substitute in substitutes:
            try:
                return self._crop(int(substitute), position, stream), index
            except UnreadableImage:
                continue
        raise SourceError(
            f"{first}. None of {len(substitutes)} images drawn in its place could be read either: "
            "check the data set, and that its disk is there"
        )

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        cv2.setNumThreads(1)  # samples are made in parallel already
        self._expect(position + self.ahead)
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
    rows: tuple[int, ...]

    def __call__(self, count: int) -> int:
        step, number = divmod(int(count), len(self.rows))
        return step * self.batch_size + self.rows[number]


def _stack(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


def _ahead(batch_size: int, rows: int, workers: int) -> int:
    """Return how many samples further on the images are asked for: a worker makes every so many-th batch."""
    return batch_size * max(workers, 1) * -(-_AHEAD // rows)


def pretrain_dataset(
    source: Any,
    *,
    batch_size: int,
    image_size: int,
    seed: int,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    backgrounds: str = "independent",
    attention: Any = None,
    value_range: Sequence[float] = (),
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    workers: int = 0,
    threads: int = 16,
    prefetch: int = 2,
) -> Iterator[dict[str, np.ndarray]]:
    """Return an endless iterator of this process's share of every batch, from batch `start_step` on.

    Args:
      source: of encoded images, see `sources`.
      batch_size: of all processes together.
      image_size: side of the crops in pixels.
      crop_scale: range of the crop's share of the image (the original's RandomResizedCrop, 0.2 to 1).
      backgrounds: a name in `options.BACKGROUNDS`; foregrounds are the same with either.
      attention: a source of maps of the images, alike in number, order and sizes. value_range: see `decoding.decode`.
      start_step: number of the first batch.
      rows: the rows of each batch that are made here, in this order (`mesh.local_rows`); all by default.
      workers, threads: processes that decode, see the head of this module; 0: that many threads of this process.
      prefetch: batches read ahead, for each worker.

    Returns:
      Batches of b = len(rows) samples; with S = image_size:
        foreground: uint8 (b, 2, S, S, 3), two random crops of one image, for the query and the key view;
        background: uint8 (b, 2, S, S, 3), a crop of each of two other images; absent with backgrounds="in_batch";
        attention: uint8 (b, 2, S, S), with `attention` alone: the foreground's crops of its attention map;
        unreadable: int64 (b, 3) or (b, 1), of foreground and backgrounds, the source's index of an image that could not be
          read and was replaced, else -1. (`Batches` takes it out.)

    Raises:
      ValueError, KeyError: for sizes that do not fit, for unknown backgrounds.
      SourceError: while iterating, if an image and all its substitutes cannot be read.
    """
    rows = check_rows(rows, batch_size)
    if min(start_step, seed) < 0:
        raise ValueError(f"start_step {start_step} and seed {seed} must not be negative")
    ahead = _ahead(batch_size, len(rows), workers)
    orders = tuple(_order(len(source), seed, stream) for stream in range(BACKGROUNDS[backgrounds]))
    samples = (
        grain.MapDataset.range(start_step * len(rows), _ENDLESS)
        .map(_Position(batch_size, rows))
        .map(_Sample(source, orders, seed, image_size, tuple(crop_scale), attention, tuple(value_range), ahead))
    )
    if workers:
        # Grain deals elements out to the workers in turn: whole batches stay as they are.
        batches = samples.batch(len(rows), batch_fn=_stack).to_iter_dataset(grain.ReadOptions(1, prefetch))
        batches = with_workers(batches, workers, prefetch)
    else:
        reading = samples.to_iter_dataset(grain.ReadOptions(threads, max(prefetch * len(rows), threads)))
        batches = reading.batch(len(rows), batch_fn=_stack)
    return iterate(batches)
