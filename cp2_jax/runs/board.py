"""TensorBoard's event files, written without TensorFlow and by the caller's own thread.

tensorboardX gives the records and their checksums. Its writer is not used: that has a thread, which on a full disk ends
with a traceback, and a queue, which then fills and stops the training for ever. Here an error is an `OSError` of the call.
"""

import contextlib
import os
import pathlib
import socket
import time
from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter


class Board:
    """One event file.

    Args:
      folder: made if absent.
      purge_step: TensorBoard forgets what earlier files say of this step and later ones.
      flush_seconds: what was written is on disk after at most so many seconds of further writing.

    Raises:
      OSError: the file cannot be written; of every method.
    """

    def __init__(self, folder: str | pathlib.Path, purge_step: int | None = None, flush_seconds: float = 10.0):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._records = RecordWriter(str(folder / name))
        self._every, self._flushed = flush_seconds, time.monotonic()
        self._write(file_version="brain.Event:2")
        if purge_step is not None:
            self._write(purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by name."""
        for name, value in values.items():
            self._write(step, summary=summary.scalar(name, value))

    def image(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Write a picture."""
        self._write(step, summary=summary.image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        """Write what is left; where that fails, forget it: whoever wrote last was told already."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _write(self, step: int = 0, **content) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self._records.write(event.SerializeToString())
        if time.monotonic() - self._flushed >= self._every:
            self._records.flush()
            self._flushed = time.monotonic()
