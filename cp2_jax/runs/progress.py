"""Progress of long work that is no training: a bar with rate and time left on a terminal, plain lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import rich.console
import rich.progress

T = TypeVar("T")
_SECONDS = 30.0  # between two lines where there is no terminal


def track(items: Iterable[T], title: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, and show on stderr how many are done, how many a second, and when the rest will be.

    Args:
      total: number of items, if that is known and `items` does not tell.
    """
    total = len(items) if total is None and hasattr(items, "__len__") else total
    console = rich.console.Console(stderr=True)
    if console.is_terminal:
        yield from _with_bar(console, items, title, total)
        return
    begin = last = time.monotonic()
    count = 0
    for item in items:
        yield item
        count += 1
        now = time.monotonic()
        if now - last >= _SECONDS:
            last = now
            print(_line(title, count, total, now - begin), file=sys.stderr, flush=True)
    print(_line(title, count, total, time.monotonic() - begin), file=sys.stderr, flush=True)


@contextlib.contextmanager
def waiting(title: str) -> Iterator[None]:
    """Show on stderr what is waited for where nothing can be counted: with the time on a terminal, a line elsewhere."""
    console = rich.console.Console(stderr=True)
    if not console.is_terminal:
        print(title, file=sys.stderr, flush=True)
        yield
        return
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.TimeElapsedColumn())
    with rich.progress.Progress(*columns, console=console, transient=True, refresh_per_second=1) as bar:
        bar.add_task(title, total=None)
        yield


def _line(title: str, count: int, total: int | None, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    of = f"/{total}" if total else ""
    left = f", {max(total - count, 0) / rate:.0f} s left" if total and rate and count < total else ""
    return f"{title}: {count}{of} in {seconds:.0f} s, {rate:.1f} a second{left}"


def _with_bar(console, items, title, total):
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]}"),
        rich.progress.TimeElapsedColumn(),
        rich.progress.TextColumn("eta"),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, rate="")
        for item in items:
            yield item
            speed = bar.tasks[0].finished_speed or bar.tasks[0].speed
            bar.update(task, advance=1, rate=f"{speed:.1f}/s" if speed else "")
