"""Requests to stop a run: SIGTERM from a scheduler that wants the machine back, Ctrl-C from a person."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from cp2_jax.runs import distributed

_HEARD = b"\nstopping when this step is done and saved; Ctrl-C again: at once, and what was not saved is lost\n"


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Give a function `(number of finished steps) -> bool` that says whether SIGTERM or SIGINT asked to stop.

    To be called once between every two steps, by all processes. One process: a second SIGINT raises KeyboardInterrupt at
    once; at the end the previous handlers are set again; outside the main thread, where signals cannot be handled, it is
    always False. Several processes: SIGTERM to any of them stops all after the same step; SIGINT interrupts at once.
    """
    if jax.process_count() > 1:
        yield _together()
        return
    stop = threading.Event()

    def request(number, _frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()
        if number == signal.SIGINT and sys.stderr.isatty():  # by os: a handler may come in the middle of a print
            os.write(sys.stderr.fileno(), _HEARD)

    in_main = threading.current_thread() is threading.main_thread()  # no other thread may handle signals
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT) if in_main}
    try:
        yield lambda _: stop.is_set()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _together() -> Callable[[int], bool]:
    """Return what `stop_requests` gives to several processes: JAX's coordination service handles SIGTERM.

    It agrees on the step after the highest that any process has asked for, so on 1 if none has asked yet: a signal that
    comes while a resumed run starts would wait for a step that is long over. The first time, 1 is therefore asked for, too.
    """
    asked = False

    def requested(step: int) -> bool:
        nonlocal asked
        before, asked = asked, True
        if not before and step > 1:
            early = multihost_utils.reached_preemption_sync_point(1)
            if distributed.any_of(early):
                return True
        return multihost_utils.reached_preemption_sync_point(step)

    return requested
