"""From the metrics of single steps to the lines of the log."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax

from cp2_jax.runs.writers import Writer, host_memory


class MetricsLog:
    """Collects the metrics of steps between two lines of the log, and looks at every loss.

    Args:
      writer: gets the lines.
      samples_per_step: for the rate.
      extra_metrics: read at each line.
    """

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
        """Write one line: averages of the steps since the line before, and how fast they went."""
        merged = functools.reduce(lambda a, b: a.merge(b), self._window).compute()
        steps, seconds = len(self._window), self._now - self._begin
        timings = {
            "time/images_per_second": steps * self._samples / seconds,
            "time/seconds_per_step": seconds / steps,
            "time/input_wait_seconds": self._waited,
            "time/input_wait_share": self._waited / seconds,
        }
        if math.isfinite(eta := self._writer.eta(number)):  # it is not known before the second step
            timings["time/eta_seconds"] = eta
        self._writer.scalars(number, {k: float(v) for k, v in merged.items()} | self._extra() | timings | host_memory())
        self._window, self._waited, self._begin = [], 0.0, self._now
