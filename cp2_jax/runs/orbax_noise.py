"""What Orbax and TensorStore print of a save that fails or that a signal asks for, while we say it in one line."""

import logging
import sys
import traceback


def silence() -> None:
    """Keep their tracebacks, and how processes agree on a last step, from the screen; all else is shown as before.

    To be called as often as one likes.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_is_for_people)
    if sys.unraisablehook is not _shown:
        _before.append(sys.unraisablehook)
        sys.unraisablehook = _shown


_before = []


def _is_for_people(record: logging.LogRecord) -> bool:
    """Orbax logs an error of each of its threads, asyncio each error but the first of arrays that are written together."""
    if not record.exc_info or record.exc_info is True:
        return "Reached preemption sync point" not in str(record.msg)
    frames = traceback.walk_tb(record.exc_info[2])
    return not any("orbax" in place for place in (record.pathname, *(f.f_code.co_filename for f, _ in frames)))


def _shown(unraisable) -> None:
    """TensorStore's threads report to an event loop that Orbax closed at the first error, once for each array."""
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(unraisable.exc_traceback)]
    if unraisable.exc_type is not RuntimeError or names != ["call_soon_threadsafe", "_check_closed"]:
        _before[-1](unraisable)
