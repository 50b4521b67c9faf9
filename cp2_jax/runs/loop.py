"""The training loop. It knows no task: a step, a state, batches, and what to do between steps."""

import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from cp2_jax.runs.checkpoints import Checkpoints
from cp2_jax.runs.preemption import stop_requests
from cp2_jax.runs.writers import Writer, host_memory


class NonFiniteLoss(Exception):
    """The loss became NaN or infinite; the message names the step, its metrics and the last good checkpoint."""


class Finished(Exception):
    """A hook raises it to end a run before its last step: the state is saved, and the run counts as finished."""


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
      meta: JSON values saved with each checkpoint, together with the position of `batches`.
      save_every, log_every: in steps. A line of the log averages the steps since the line before; each saved step ends
        a line too, so that a resumed run writes the lines that an unbroken one does. The last step is saved.
      samples_per_step: for the rate.
      extra_metrics: read at each line of the log.
      on_step: called as `(number of finished steps, state)` after each step; one that raises `Finished` ends the run.

    Returns:
      The last state, which is saved.

    Raises:
      NonFiniteLoss: nothing is saved from the step at fault on.
      Preempted: after SIGTERM or SIGINT, once the state is saved. A second SIGINT interrupts at once.
      RuntimeError: if the batches end too early.
    """
    log = _Log(writer, samples_per_step, extra_metrics)
    number, unread = int(state.step), None

    def look(log_every: int):
        nonlocal unread
        if unread is None:
            return
        if problem := log.add(*unread):
            checkpoints.wait()
            raise NonFiniteLoss(
                f"{problem}. The last good checkpoint is that of step {checkpoints.latest_step()} in "
                f"{checkpoints.directory}. Lower the learning rate, add warmup_steps, or compute in float32"
            )
        if unread[0] % log_every == 0:
            log.write(unread[0])
        unread = None

    def save():
        look(log_every=1)  # only a state whose loss was seen to be finite is worth keeping
        checkpoints.save(number, state, meta | {"iterator": {"next_batch": number}})

    if number < total_steps:
        writer.compiling(len(jax.tree.leaves(getattr(state, "params", {}))))
    with stop_requests() as stop_requested:
        while number < total_steps and not stop_requested(number):
            begin = time.monotonic()
            try:
                batch = next(batches)
            except Exception as error:
                if stop_requested(number):
                    break  # Ctrl-C reaches the processes that decode, too
                if isinstance(error, StopIteration):
                    raise RuntimeError(f"the batches ended after step {number} of {total_steps}") from None
                raise
            waited = time.monotonic() - begin
            state, metrics = step(state, batch)
            look(log_every)
            number += 1
            unread = (number, metrics, waited, time.monotonic())
            writer.progress(number)
            try:
                for hook in on_step:
                    hook(number, state)
            except Finished:
                total_steps = number
            if number % save_every == 0:
                save()
        save()
        checkpoints.wait()
    if number < total_steps:
        raise Preempted(f"stopped by a signal after step {number}, saved in {checkpoints.directory}; run again to go on")
    return state


class _Log:
    """Collects metrics between two lines of the log, and looks at every loss."""

    def __init__(self, writer: Writer, samples_per_step: int, extra_metrics: Callable[[], dict[str, float]]):
        self._writer, self._samples, self._extra = writer, samples_per_step, extra_metrics
        self._window, self._waited, self._begin = [], 0.0, time.monotonic()

    def add(self, number: int, metrics: Any, waited: float, now: float) -> str | None:
        """Take one step's metrics, its wait for input and when it was dispatched; return what is wrong, if anything."""
        self._window.append(jax.device_get(metrics))
        self._waited, self._now = self._waited + waited, now
        values = {name: float(value) for name, value in self._window[-1].compute().items()}
        # With an infinite gradient the loss is finite for the last time.
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values.get(name, 0.0)):
                shown = ", ".join(f"{key} {value:.6g}" for key, value in values.items())
                return f"the {name} of step {number} is not finite ({shown})"
        return None

    def write(self, number: int) -> None:
        merged = functools.reduce(lambda a, b: a.merge(b), self._window).compute()
        steps, seconds = len(self._window), self._now - self._begin
        timings = {
            "time/images_per_second": steps * self._samples / seconds,
            "time/seconds_per_step": seconds / steps,
            "time/input_wait_seconds": self._waited,
            "time/input_wait_share": self._waited / seconds,
            "time/eta_seconds": self._writer.eta(number),
        }
        self._writer.scalars(number, {k: float(v) for k, v in merged.items()} | self._extra() | timings | host_memory())
        self._window, self._waited, self._begin = [], 0.0, self._now
