"""Where a run's numbers and pictures go: terminal, `metrics.jsonl`, TensorBoard files and PNGs, all without TensorFlow."""

import json
import pathlib
import sys
import time

import numpy as np
import rich.console
import rich.progress
from PIL import Image
from tensorboardX import SummaryWriter

# What a plain line and the progress bar show of all the metrics, in this order.
_SHOWN = ("loss", "loss_instance", "loss_dense", "accuracy_instance", "accuracy_dense", "pixel_accuracy", "feature_std",
          "learning_rate", "miou")  # fmt: skip


class Writer:
    """Writes one run's metrics and pictures into its work directory.

    Args:
      workdir: made if absent.
      total_steps: length of the run, for the ETA.
      start_step: number of steps already finished; lines of `metrics.jsonl` beyond it (which will be computed again) are
        dropped, so that after a resumption the file is as an unbroken run would have written it.
      title: what the progress bar says.

    A progress bar on a terminal, plain lines otherwise. Use as a context manager, or call `close`.
    """

    def __init__(self, workdir: str | pathlib.Path, total_steps: int, start_step: int = 0, title: str = "training"):
        self.workdir = pathlib.Path(workdir)
        self.pictures = self.workdir / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        self._total, self._start, self._begin = total_steps, start_step, time.monotonic()
        path = self.workdir / "metrics.jsonl"
        _truncate(path, start_step)
        self._lines = path.open("a")
        self._board = SummaryWriter(str(self.workdir / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        self._console = rich.console.Console()
        self._bar = None
        if self._console.is_terminal:
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn(title),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TimeRemainingColumn(),
                rich.progress.TextColumn("{task.fields[shown]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(title, total=total_steps, completed=start_step, shown="")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write one line of metrics, exact to the last bit; keys under `time/` are those that differ between runs."""
        self._lines.write(json.dumps({"step": step} | {k: _plain(v) for k, v in values.items()}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, _plain(value), step)
        shown = " ".join(f"{name} {values[name]:.4g}" for name in _SHOWN if name in values)
        rate = values.get("time/images_per_second")
        if rate is not None:
            shown += f" {rate:.1f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, shown=shown)
        else:
            print(f"step {step}/{self._total} {shown} eta {_clock(self.eta(step))}", flush=True)

    def image(self, step: int, name: str, picture: np.ndarray) -> pathlib.Path:
        """Write a picture (uint8 [height, width, 3]) as `pictures/<name>_<step>.png` and to TensorBoard."""
        path = self.pictures / f"{name}_{step:07d}.png"
        Image.fromarray(picture).save(path)
        self._board.add_image(name, picture, step, dataformats="HWC")
        return path

    def text(self, message: str) -> None:
        """Print a message above the progress bar."""
        if self._bar is not None:
            self._bar.console.print(message, markup=False, highlight=False)
        else:
            print(message, flush=True)

    def eta(self, step: int) -> float:
        """Return the seconds that are left, at the rate so far; NaN before the first step."""
        done = step - self._start
        return (time.monotonic() - self._begin) / done * (self._total - step) if done > 0 else float("nan")

    def close(self) -> None:
        """Flush and close all files."""
        if self._bar is not None:
            self._bar.stop()
        self._lines.close()
        self._board.close()
        sys.stdout.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_metrics(path: str | pathlib.Path) -> list[dict]:
    """Return the lines of a `metrics.jsonl`; a last line broken off by a kill is left out.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    lines = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _truncate(path: pathlib.Path, start_step: int) -> None:
    if not path.exists():
        return
    kept = [line for line in read_metrics(path) if line["step"] <= start_step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
    temporary.replace(path)


def _plain(value) -> float | int:
    """Turn NumPy and JAX scalars into Python's; float32 widens to a double, which JSON writes exactly."""
    value = np.asarray(value).item()
    return value


def _clock(seconds: float) -> str:
    if seconds != seconds:
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
