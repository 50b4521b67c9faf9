"""Where a run's numbers and pictures go: terminal, `metrics.jsonl`, TensorBoard files and PNGs, all without TensorFlow."""

import collections
import contextlib
import json
import math
import pathlib
import resource
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import rich.console
import rich.progress
from absl import logging
from jaxtyping import UInt8

from cp2_jax import pictures
from cp2_jax.paths import AnyPath, BucketError, BucketPath, at
from cp2_jax.runs import progress_line
from cp2_jax.runs.board import Board
from cp2_jax.runs.spool import PART, Spool
from cp2_jax.runs.trackers import Tracker

_BAR = 8  # columns of the progress bar, beside which its line stands

# Keys of `metrics.jsonl` with these prefixes differ between two runs that compute the same.
VARYING = ("time/", "host/")


class Writer:
    """Writes one run's metrics and pictures into its work directory. Of several processes, only the first writes.

    Args:
      workdir: made if absent.
      total_steps: length of the run, for the ETA.
      start_step: number of steps already finished; lines of `metrics.jsonl` beyond it (which will be computed again) are
        dropped, so that after a resumption the file is as an unbroken run would have written it.
      title: what the progress bar says.
      trackers: who else gets metrics and pictures.

    Attributes:
      last: the last value of each metric so far.

    A progress bar on a terminal, plain lines otherwise. Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        workdir: str | AnyPath,
        total_steps: int,
        start_step: int = 0,
        title: str = "training",
        trackers: Sequence[Tracker] = (),
    ):
        self.workdir = at(workdir)
        self.pictures = self.workdir / "pictures"
        self._total = total_steps
        # (time, step) at the start and at the last lines of the log, for the rate.
        self._start, self._marks = (time.monotonic(), start_step), collections.deque(maxlen=10)
        self._moved = False
        self._first = jax.process_index() == 0
        self._bar, self._latest, self._trackers = None, {}, trackers
        self.last: dict[str, float] = {}
        if not self._first:
            return
        self.pictures.mkdir(parents=True, exist_ok=True)
        self._spool = Spool(self.workdir) if isinstance(self.workdir, BucketPath) else None
        local = self.workdir if self._spool is None else self._spool.folder
        if self._spool is not None:
            self._spool.fetch("metrics.jsonl")
        self._metrics = local / "metrics.jsonl"
        for line in _truncate(self._metrics, start_step):
            self.last |= line
        self._lines = self._metrics.open("a")
        purge_step = start_step + 1 if start_step else None
        self._board = Board(local / "tensorboard", purge_step, part=PART if self._spool else 0)
        console = rich.console.Console()
        if console.is_terminal:
            columns = rich.progress.BarColumn(_BAR), rich.progress.TextColumn("{task.fields[shown]}", markup=False)
            self._bar = rich.progress.Progress(*columns, console=console)
            self._bar.start()
            self._task = self._bar.add_task("", total=total_steps, completed=start_step, shown=title)

    def compiling(self, arrays: int) -> None:
        """Say that the first step is being compiled, and about how long that takes for so many arrays of parameters."""
        if self._bar is not None:
            self._bar.update(self._task, shown=progress_line.compiling(arrays))
        else:
            self.text(progress_line.compiling(arrays))

    def progress(self, step: int) -> None:
        """Move the progress bar; cheap enough for every step."""
        if not self._moved:  # the first step was compiled, which says nothing about those that follow
            self._start, self._moved = (time.monotonic(), step), True
        if self._bar is not None:
            room = self._bar.console.width - _BAR - 1
            shown = progress_line.line(step, self._total, self._latest, self.eta(step), room)
            self._bar.update(self._task, completed=step, shown=shown)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics, floats exact to the last bit (NaN and infinities, which JSON lacks, as null).

        Args:
          step: number of finished steps.
          values: by name; those whose keys begin with one of `VARYING` say how fast it went, the others what it computed.
        """
        if not self._marks or step > self._marks[-1][1]:
            self._marks.append((time.monotonic(), step))
        plain = {name: np.asarray(value).item() for name, value in values.items()}
        self.last |= plain | {"step": step}
        if not self._first:
            return
        as_json = {name: value if math.isfinite(value) else None for name, value in plain.items()}
        self._lines.write(json.dumps({"step": step} | as_json, allow_nan=False) + "\n")
        self._lines.flush()
        self._board.scalars(step, {name: value for name, value in plain.items() if math.isfinite(value)})
        for tracker in self._trackers:
            tracker.scalars(step, plain)
        if self._bar is not None:
            self._latest = self._latest | plain  # a probe's or an evaluation's values stay until the next
            self.progress(step)
        else:
            print(progress_line.line(step, self._total, plain, self.eta(step)), flush=True)

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"], numbered: bool = True) -> AnyPath:
        """Write a picture as a PNG, and to TensorBoard and the trackers.

        Args:
          numbered: the file is `pictures/<name>_<step>.png`; otherwise `pictures/<name>.png`, which the next one replaces.
        """
        path = self.pictures / (f"{name}_{step:07d}.png" if numbered else f"{name}.png")
        if self._first:
            pictures.save_png(path, picture)
            self._board.image(step, name, picture)
            for tracker in self._trackers:
                tracker.image(step, name, picture)
        return path

    def curves(self, lines: Mapping[str, Sequence[tuple[str, float]]] | None = None) -> None:
        """Draw what `metrics.jsonl` holds so far as `pictures/curves.png`, if there is anything to draw.

        Args:
          lines: what to compare with, see `pictures.curves`.
        """
        if self._first and (records := read_metrics(self._metrics)):
            pictures.save_png(self.pictures / "curves.png", pictures.curves(records, lines=lines))

    def text(self, message: str) -> None:
        """Print a message above the progress bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        elif self._first:
            print(message, flush=True)

    def eta(self, step: int) -> float:
        """Return the seconds that are left, at the rate of the last lines of the log; infinite before the first step."""
        then, before = self._marks[0] if len(self._marks) > 1 else self._start  # the first steps compile
        return (time.monotonic() - then) / (step - before) * (self._total - step) if step > before else math.inf

    def flush(self) -> None:
        """Let what was written so far be in the work directory, if that is in a bucket; before a checkpoint, for example.

        Raises:
          BucketError: it could not be written.
        """
        if self._first and self._spool is not None:
            self._board.flush()
            self._spool.flush()

    def close(self) -> None:
        """Flush and close all files.

        Raises:
          BucketError: the work directory is in a bucket, and what is left could not be written.
        """
        if self._bar is not None:
            self._bar.stop()
        if self._first:
            with contextlib.suppress(OSError):  # on a full disk, of which the last write has told
                self._lines.close()
            self._board.close()
            for tracker in self._trackers:
                tracker.close()
            if self._spool is not None:
                self._spool.close()
        sys.stdout.flush()

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with contextlib.suppress(*[BucketError] * (kind is not None)):  # what ends the run is told, not what follows
            self.close()


def host_memory() -> dict[str, float]:
    """Return this process's memory in MiB: {'host/memory_mb': now (absent without /proc), 'host/peak_memory_mb'}."""
    status = pathlib.Path("/proc/self/statm")
    now = (
        {"host/memory_mb": int(status.read_bytes().split()[1]) * resource.getpagesize() / 2**20} if status.exists() else {}
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts it in bytes, Linux in KiB.
    return now | {"host/peak_memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}


def read_metrics(path: str | AnyPath) -> list[dict]:
    """Return the lines of a `metrics.jsonl`. What is none is left out: broken off by a kill, or changed by an editor.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    return [line for line in map(_parsed, at(path).read_bytes().splitlines()) if line is not None]


def _parsed(text: bytes) -> dict | None:
    """Return a line of metrics, or None for what is none."""
    try:
        line = json.loads(text)
    except ValueError:  # no JSON, or no text
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _truncate(path: pathlib.Path, start_step: int) -> list[dict]:
    """Drop the lines beyond a step; return the others."""
    if not path.exists():
        return []
    read = read_metrics(path)  # of a killed run, the last line may be broken off
    if broken := sum(_parsed(text) is None for text in path.read_bytes().splitlines()[:-1]):
        logging.warning("%s: %d lines that are no metrics are left out", path, broken)
    kept = [line for line in read if line["step"] <= start_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
    return kept
