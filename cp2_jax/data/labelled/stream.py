"""The training stream of labelled images (Grain): a sample follows from the seed and its number, from nothing else."""

import functools
from collections.abc import Sequence

import cv2
import grain
import numpy as np
from ml_collections import ConfigDict

from cp2_jax.data.labelled import transforms
from cp2_jax.data.labelled.examples import Examples
from cp2_jax.data.rows import check_rows
from cp2_jax.data.workers import with_workers

_THREADS = 4


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    """Return the order of one epoch; kept, because each of its samples asks for it."""
    return np.random.default_rng([seed, 0, epoch]).permutation(length)


class _Stream:
    """Training samples by their number in one process's part of the stream; pickles for worker processes."""

    def __init__(
        self, examples: Examples, options: dict, seed: int, batch: int, rows: tuple[int, ...], start: int, ahead: int
    ):
        self.ahead = ahead  # positions
        self.examples, self.options, self.seed = examples, options, seed
        self.batch, self.rows, self.start = batch, rows, start

    def __len__(self) -> int:
        return 2**40

    def __repr__(self) -> str:
        return f"training samples of {len(self.examples)} labelled images"

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:
        cv2.setNumThreads(1)  # samples are made in parallel already
        self.examples.expect(self._place(position + self.ahead)[0])
        index, number = self._place(position)
        rng = np.random.default_rng([self.seed, 1, number])
        return transforms.training_sample(*self.examples.load(index), rng, **self.options)

    def _place(self, position: int) -> tuple[int, int]:
        """Return index of the example, and number of the sample in the stream that all processes share."""
        step, row = divmod(position, len(self.rows))
        number = (self.start + step) * self.batch + self.rows[row]
        epoch, place = divmod(number, len(self.examples))
        return int(_order(self.seed, epoch, len(self.examples))[place]), number


def training_dataset(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    options: dict,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
    workers: int = 0,
) -> grain.IterDataset:
    """Return an endless data set of host batches of this process.

    Sample t * batch_size + j of the stream is row j of the global batch t for any number of processes and workers, and
    depends on nothing but `seed` and that number: to resume is to begin at `start_step`. Each epoch has its own order.

    Args:
      batch_size: of all processes together.
      rows: which rows of each batch are made here, in this order; all by default. Of several processes, each makes its
        `mesh.local_rows`.
      options: arguments of `transforms.training_sample`.
      start_step: number of the first batch.
      workers: processes that make samples; 0 makes them in threads of this one.

    Returns:
      Batches, with b the number of `rows`, of image (uint8 [b, height, width, 3]), label (uint8 [b, height, width]) and
      size (int32 [b, 2]).

    Raises:
      ValueError: if `rows` are no rows of a batch.
      What `Examples.load` raises, while iterating.
    """
    rows = check_rows(rows, batch_size)
    ahead = _THREADS * max(workers, 1) * len(rows)  # each thread makes whole batches
    stream = _Stream(examples, dict(options), seed, batch_size, rows, start_step, ahead)
    # Few batches are kept ready: Grain's default of 500 would fill the memory with 512x512 crops.
    reading = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_THREADS)
    dataset = grain.MapDataset.source(stream).batch(len(rows)).to_iter_dataset(reading)
    if workers:
        dataset = with_workers(dataset, workers, 2)
    return dataset


def training_options(data: ConfigDict) -> dict:
    """Return `transforms.training_sample`'s options from `config.data`."""
    return {
        "crop_size": tuple(data.crop_size),
        "bounds": tuple(data.resize) or None,
        "ratio": tuple(data.scale_range),
        "max_ratio": data.crop_max_ratio,
        "flip": data.flip,
        "photometric": data.photometric,
        "ignore_label": data.ignore_label,
    }
