"""The training loop. It knows no task: a step, a state, batches, and what to do between steps."""

import collections
import contextlib
import functools
import math
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from cp2_jax.checkpoints import Checkpoints
from cp2_jax.writers import Writer


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite; the message names the step, its metrics and the last good checkpoint."""


class Preempted(Exception):
    """SIGTERM or SIGINT came; the state was saved. Entry points leave with status 75 so that a launcher restarts them."""


def fit(
    step: Callable[[Any, Any], tuple[Any, Any]],
    state: Any,
    batches: Iterator,
    *,
    total_steps: int,
    writer: Writer,
    checkpoints: Checkpoints,
    meta: dict,
    save_every: int,
    log_every: int,
    samples_per_step: int,
    extra_metrics: Callable[[], dict[str, float]] = dict,
    on_step: Iterable[Callable[[int, Any], None]] = (),
) -> Any:
    """Train until `total_steps` steps are finished.

    Args:
      step: `(state, batch) -> (state, metrics)`; may donate the state. `metrics` is a `clu.metrics.Collection` with a
        `loss`; its values are read one step late, so that the device always has the next step to work on.
      state: has a scalar `step`, the number of finished steps.
      batches: yields what `step` takes, beginning with batch number `state.step`.
      meta: saved with each checkpoint, together with the position of `batches`.
      save_every, log_every: in steps; the last step is saved and logged as well.
      samples_per_step: for the rate.
      extra_metrics: read at each line of the log.
      on_step: called as `(number of finished steps, state)` after each step.

    Returns:
      The last state, which is saved.

    Raises:
      NonFiniteLoss: nothing is saved from the step at fault on.
      Preempted: after SIGTERM or SIGINT, once the state is saved. A second SIGINT interrupts at once.
    """
    log = _Log(writer, log_every, total_steps, samples_per_step, extra_metrics, checkpoints)
    number = int(state.step)
    unread = collections.deque()

    def save():
        # Only a state whose loss was seen to be finite is worth keeping.
        while unread:
            log.add(*unread.popleft())
        if checkpoints.latest_step() != number:
            checkpoints.save(number, state, meta | {"iterator": {"next_batch": number}})

    with _stop_requests() as stop:
        log.start()
        while number < total_steps and not stop.is_set():
            begin = time.monotonic()
            batch = next(batches)
            log.waited += time.monotonic() - begin
            state, metrics = step(state, batch)
            number += 1
            unread.append((number, metrics))
            if len(unread) > 1:
                log.add(*unread.popleft())
            for hook in on_step:
                hook(number, state)
            if number % save_every == 0:
                save()
        save()
        checkpoints.wait()
    if number < total_steps:
        raise Preempted(f"stopped by a signal after step {number}, saved in {checkpoints.directory}; run again to go on")
    return state


class _Log:
    """Collects metrics between two lines of the log, and looks at every loss."""

    def __init__(self, writer, log_every, total_steps, samples_per_step, extra_metrics, checkpoints):
        self._writer, self._every, self._total = writer, log_every, total_steps
        self._samples, self._extra, self._checkpoints = samples_per_step, extra_metrics, checkpoints
        self.start()

    def start(self):
        self._window, self._begin, self.waited = [], time.monotonic(), 0.0

    def add(self, number: int, metrics: Any) -> None:
        metrics = jax.device_get(metrics)
        if not math.isfinite(metrics.loss.compute()):
            values = ", ".join(f"{name} {float(value):.6g}" for name, value in metrics.compute().items())
            good = self._checkpoints.latest_step()
            kept = "there is no checkpoint yet" if good is None else f"the last good checkpoint is that of step {good}"
            raise NonFiniteLoss(
                f"the loss of step {number} is not finite ({values}); {kept} in {self._checkpoints.directory}. "
                "Lower the learning rate, add warmup_steps, or compute in float32"
            )
        self._window.append(metrics)
        if number % self._every == 0 or number == self._total:
            merged = functools.reduce(lambda a, b: a.merge(b), self._window)
            seconds = time.monotonic() - self._begin
            timings = {
                "time/images_per_second": len(self._window) * self._samples / seconds,
                "time/seconds_per_step": seconds / len(self._window),
                "time/input_wait_seconds": self.waited,
                "time/input_wait_share": self.waited / seconds,
                "time/eta_seconds": self._writer.eta(number),
                "host/peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
            self._writer.scalars(number, {k: float(v) for k, v in merged.compute().items()} | self._extra() | timings)
            self.start()


@contextlib.contextmanager
def _stop_requests():
    """Turn SIGTERM and the first SIGINT into an event; outside the main thread signals cannot be caught."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number, _frame):
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
