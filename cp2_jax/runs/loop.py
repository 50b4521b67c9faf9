"""The training loop. It knows no task: a step, a state, batches, and what to do between steps."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from cp2_jax.runs import leaving
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints
from cp2_jax.runs.metrics_log import MetricsLog
from cp2_jax.runs.preemption import stop_requests
from cp2_jax.runs.writers import Writer


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
      RuntimeError: if the batches end too early. After any error of the input, also another process's, the state is saved.
    """
    training = _Training(state, writer, checkpoints, meta, MetricsLog(writer, samples_per_step, extra_metrics))
    if training.number < total_steps:
        writer.compiling(len(jax.tree.leaves(getattr(state, "params", {}))))
    with stop_requests() as stop_requested, _saves_finished(checkpoints):
        while training.number < total_steps and not stop_requested(training.number):
            if not training.advance(step, batches, log_every, stop_requested):
                break
            if training.is_finished(on_step):
                total_steps = training.number
            if training.number % save_every == 0:
                training.save()
        training.save()
        checkpoints.wait()
    if training.number < total_steps:
        raise Preempted(f"stopped by a signal after step {training.number}, saved; run the command again to go on")
    return training.state


@contextlib.contextmanager
def _saves_finished(checkpoints: Checkpoints) -> Iterator[None]:
    """Finish a save that has begun before an error that is raised inside goes on; see `Checkpoints.settle`."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, CheckpointError):
            checkpoints.settle(error)
        raise


class _Training:
    """The state between two steps, and the metrics of the last step, which have not been read yet."""

    def __init__(self, state: Any, writer: Writer, checkpoints: Checkpoints, meta: dict, log: MetricsLog):
        self.state, self.number = state, int(state.step)
        self._writer, self._checkpoints, self._meta, self._log, self._unread = writer, checkpoints, meta, log, None

    def advance(self, step: Callable, batches: Iterator, log_every: int, stop_requested: Callable[[int], bool]) -> bool:
        """Dispatch a step, then look at the one before; False if a signal broke the input."""
        begin = time.monotonic()
        batch, stopped, whole = leaving.draw(batches, self.number)
        if stopped is not None:
            # Signals reach the processes that decode, too. That none stops several after this step they know already.
            if whole and stop_requested(self.number + (jax.process_count() > 1)):
                return False
            if whole and self._unread:  # the state is good
                with contextlib.suppress(Exception):
                    self.save()
                    self._checkpoints.wait()
            raise stopped
        waited = time.monotonic() - begin
        self.state, metrics = step(self.state, batch)
        self._look(log_every)
        self.number += 1
        self._unread = (self.number, metrics, waited, time.monotonic())
        self._writer.progress(self.number)
        return True

    def is_finished(self, on_step: Iterable[Callable[[int, Any], None]]) -> bool:
        """Call the hooks; say whether one of them ends the run."""
        try:
            for hook in on_step:
                hook(self.number, self.state)
        except Finished:
            return True
        return False

    def save(self) -> None:
        """Save the state, in the background; only one whose loss was seen to be finite is worth keeping."""
        self._look(log_every=1)
        self._writer.flush()  # a run that goes on from here finds its metrics
        meta = self._meta | {"iterator": {"next_batch": self.number}}
        self._checkpoints.save(self.number, self.state, meta)

    def _look(self, log_every: int) -> None:
        if self._unread is None:
            return
        if problem := self._log.add(*self._unread):
            self._checkpoints.wait()
            raise NonFiniteLoss(
                f"{problem}. The last good checkpoint is that of step {self._checkpoints.latest_step()} in "
                f"{self._checkpoints.directory}. Lower the learning rate, add warmup_steps, or compute in float32"
            )
        if self._unread[0] % log_every == 0:
            self._log.write(self._unread[0])
        self._unread = None
