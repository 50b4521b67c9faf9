"""Grain's worker processes end with the process that they work for."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker

import grain.python as grain

from cp2_jax.data import notices


def with_workers(dataset: grain.IterDataset, workers: int, buffer: int) -> grain.IterDataset:
    """Return the data set read by `workers` processes, each with `buffer` elements ready."""
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer)
    return dataset.mp_prefetch(options, worker_init_fn=_follow_parent)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let threads and processes that are started inside never see Ctrl-C, which reaches all processes of a terminal.

    They inherit what this thread blocks, from their first moment on. The main thread answers the signal, afterwards if it
    is the one that is in here.
    """
    resource_tracker.ensure_running()  # its start, which comes with the first process, unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def iterate(dataset: grain.IterDataset) -> Iterator:
    """Return an iterator whose workers leave Ctrl-C to the process that they work for."""
    with uninterrupted():
        return iter(dataset)


def _follow_parent(index: int, count: int) -> None:
    """End this worker once its parent is gone: a parent that is killed has no time to tell it.

    Of several workers one tells of the data.
    """
    del count
    if index:
        notices.be_quiet()
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="follow parent", daemon=True).start()
