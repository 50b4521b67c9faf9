"""The end of a process of several: it tells the others and is told by them, says one line, and leaves with a status."""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging

from cp2_jax.runs import peers

TRY_AGAIN = 75  # exit status (EX_TEMPFAIL) of a run that was stopped and can be resumed; launchers start it again

_PATIENCE = 10.0  # seconds that a process which was told to stop waits for the others at the end
_LOOK = 2.0  # seconds to look for the newest checkpoint, on a disk that may be what is gone

_ending = threading.Lock()  # taken once, by the thread that ends this process
_peers: peers.Peers | None = None
_saved: Callable[[], int | None] | None = None


class Stopped(Exception):
    """Another process of this run met an error; the message says which one, and the error.

    Attributes:
      status: to leave with.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


class Lost(Stopped):
    """Another process of this run is gone; the message says which one, and where the run goes on from."""


def watch(patience: float) -> None:
    """Let the processes of this run watch one another from here on; every one calls it, once JAX has joined them.

    Args:
      patience: seconds without a word after which a process is taken for lost.
    """
    global _peers
    from jax._src import distributed  # the public API does not say who coordinates, nor pass on texts

    state = distributed.global_state
    host = (state.coordinator_address or "").rpartition(":")[0].strip("[]")
    links = peers.connect(state.client, host, state.process_id, state.num_processes)
    if links is None:
        if state.process_id == 0:
            logging.warning(
                "the processes of this run cannot connect to process 0 beside JAX (a firewall?): where one of them ends, "
                "the others notice it late, and steps since the last checkpoint are lost"
            )
        return
    _peers = peers.Peers(state.process_id, links, patience, TRY_AGAIN, _end)
    _delay_abort()
    atexit.register(_peers.leave)


def _delay_abort() -> None:
    """Let `abort` wait a few seconds, in which the line on a lost process is said and this process leaves by itself.

    JAX's coordination service calls it at once where process 0 is gone. The handler is the C library's own `sleep`, called
    with the signal's number as seconds (6): it needs neither Python nor memory, and afterwards the abort goes on.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.signal.restype, library.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        library.signal(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


@contextlib.contextmanager
def resumable(latest_step: Callable[[], int | None]) -> Iterator[None]:
    """While inside, messages say from which step the run goes on: that which `latest_step` returns."""
    global _saved
    _saved = latest_step
    try:
        yield
    finally:
        _saved = None


def draw(batches: Iterator, number: int) -> tuple[Any, Exception | None, bool]:
    """Return the next batch, if all processes have theirs; every one calls it before each step.

    Args:
      number: of finished steps.

    Returns:
      (batch, None, False), or (None, error, whether all processes stand at this step and may save it together); the error
      is this process's own, or a `Stopped` or `Lost`.
    """
    batch, error = None, None
    try:
        batch = next(batches)
    except StopIteration:
        error = RuntimeError(f"the batches ended after step {number}, before the run did")
    except Exception as caught:
        error = caught
    if _peers is None:
        return batch, error, error is not None and jax.process_count() == 1
    answer = _peers.agree(None if error is None else text(error))
    if answer is None:
        return batch, None, False
    if isinstance(answer, peers.Stop):
        return None, error or _exception(answer), False
    process, reason = answer
    return None, error or Stopped(f"process {process} of this run stopped after step {number}: {reason}"), True


def news(seconds: float) -> Exception | None:
    """Return why another process of this run ended, waiting some seconds for the news; None if nothing is heard."""
    stop = _peers.stopped(seconds) if _peers is not None else None
    return None if stop is None else _exception(stop)


def text(error: BaseException) -> str:
    """Return what an error says, with its kind where that is needed to understand it."""
    known = type(error).__module__.startswith("cp2_jax.") or isinstance(error, OSError)
    return str(error) if known and str(error) else f"{type(error).__name__}: {error}"


def _exception(stop: peers.Stop) -> Stopped:
    if stop.lost:
        again = f"start again with the same command{_resume()}"
        return Lost(f"process {stop.process} of this run {stop.reason}: {again}", stop.status)
    return Stopped(f"process {stop.process} of this run stopped: {stop.reason}", stop.status)


def _resume() -> str:
    """Say from where a run goes on; the disk that would tell may be what is gone."""
    if _saved is None:
        return ""
    found: list[int | None] = []
    looking = threading.Thread(target=lambda: found.append(_saved()), daemon=True)
    looking.start()
    looking.join(_LOOK)
    if not found:
        return " to resume from the last checkpoint"
    return " to begin anew (nothing was saved yet)" if found[0] is None else f" to resume from step {found[0]}"


def _end(stop: peers.Stop) -> None:
    """End this process, for another one has ended, and the main thread waits for it in vain."""
    leave(f"error: {_exception(stop)}", stop.status, 0 if stop.lost else _PATIENCE)


class Watchdog:
    """A hook of `loop.fit` that stops this process when no step ends for a set time, because some process hangs.

    A process that died or is frozen is noticed by `peers`; one that lives while it hangs, in a dead file system for
    instance, is not, and all others would wait for it for ever. The first step, which compiles, here or in another process,
    is not timed.

    Args:
      seconds: longer than any evaluation or saving between two steps; 0: never.
      status: to leave with.
    """

    def __init__(self, seconds: float, status: int):
        self._seconds, self._status, self._last, self._steps = seconds, status, None, 0

    def __call__(self, number: int, state: Any) -> None:
        self._last, self._steps = (number, time.monotonic()), self._steps + 1
        if self._steps == 2 and self._seconds > 0:  # the first step is seen to be complete before the second call
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def _watch(self) -> None:
        while (left := self._last[1] + self._seconds - time.monotonic()) > 0:
            time.sleep(min(left, 1.0))
        late = _peers.late() if _peers is not None else []
        who = f"process {late[0]} has not come to its next step" if late else "a process of this run hangs or is gone"
        leave(
            f"no step has ended for {self._seconds:g} s after step {self._last[0]}: {who}. Start again with the same "
            f"command{_resume()}",
            self._status,
            _PATIENCE,
        )


def leave(message: str, status: int, patience: float = 0, *, together: bool = False) -> None:
    """Print a message and end this process, at once or together with the others. The first of its threads to call it does.

    Args:
      patience: seconds to wait for all others to leave, too, as they do where all meet the same error or are stopped. An
        orderly end waits for them without limit, and they may be waiting for this one. Without any waiting, process 0
        takes JAX's coordination service along, which aborts (SIGABRT) every process that has not left by then.
      together: all leave now, as they agreed; the others need not be told why.
    """
    if not _ending.acquire(blocking=False):
        threading.Event().wait()
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    if _peers is not None:
        reason = message.splitlines()[-1] if message.startswith("Traceback") else message.removeprefix("error: ")
        _peers.leave(None if together else reason, status)
    for child in multiprocessing.active_children():  # processes that decode
        child.terminate()
    if patience:
        waiting = threading.Thread(target=_shut_down, daemon=True)
        waiting.start()
        end = time.monotonic() + patience
        while waiting.is_alive() and time.monotonic() < end and not isinstance(news(0), Lost):
            waiting.join(0.1)
    os._exit(status)


def _shut_down() -> None:
    with contextlib.suppress(RuntimeError):  # another process is gone: what was to be said is said
        jax.distributed.shutdown()


@contextlib.contextmanager
def answering(message: str) -> Iterator[None]:
    """While inside, SIGTERM and Ctrl-C end this process at once, also where it waits in C++, which Python's own would not.

    Args:
      message: what to say on SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():  # no other thread may handle signals
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def answer() -> None:
        while came := os.read(read, 1):
            if came[0] == signal.SIGTERM:
                leave(message, TRY_AGAIN)
            if came[0] == signal.SIGINT:
                leave("interrupted", 130)
        os.close(read)

    threading.Thread(target=answer, name="signals", daemon=True).start()
    try:
        yield
    except BaseException:
        signal.signal(signal.SIGTERM, before)
        raise
    finally:  # where all went well, SIGTERM is JAX's from here on
        signal.set_wakeup_fd(woken)
        os.close(write)
