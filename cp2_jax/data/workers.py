"""Grain's worker processes end with the process that they work for."""

import os
import signal
import threading
import time

import grain.python as grain

from cp2_jax.data import notices


def with_workers(dataset: grain.IterDataset, workers: int, buffer: int) -> grain.IterDataset:
    """Return the data set read by `workers` processes, each with `buffer` elements ready."""
    options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=buffer)
    return dataset.mp_prefetch(options, worker_init_fn=_follow_parent)


def _follow_parent(index: int, count: int) -> None:
    """End this worker once its parent is gone: a parent that is killed has no time to tell it.

    Ctrl-C goes to all processes of a terminal; the parent alone answers it. Of several workers one tells of the data.
    """
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if index:
        notices.be_quiet()
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="follow parent", daemon=True).start()
