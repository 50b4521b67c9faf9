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
      part: bytes after which another file is begun; 0: never. TensorBoard reads them one after the other.

    Raises:
      OSError: the file cannot be written; of every method.
    """

    def __init__(
        self, folder: str | pathlib.Path, purge_step: int | None = None, flush_seconds: float = 10.0, part: int = 0
    ):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._every, self._flushed, self._part = flush_seconds, time.monotonic(), part
        self._begin()
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

    def flush(self) -> None:
        """Let what was written so far be on disk."""
        self._records.flush()

    def _begin(self) -> None:
        # TensorBoard reads files in the order of their names: also where the clock was put back, the newest is the last.
        there = (path.name.split(".")[3] for path in self._folder.glob("events.out.tfevents.*"))
        stamp = max([time.time_ns(), *(int(number) + 1 for number in there if number.isdecimal())])
        name = f"events.out.tfevents.{stamp}.{socket.gethostname()}.{os.getpid()}"
        self._records, self._length = RecordWriter(str(self._folder / name)), 0
        self._write(file_version="brain.Event:2")

    def _write(self, step: int = 0, **content) -> None:
        if self._part and self._length > self._part:
            self._records.close()
            self._begin()
        event = event_pb2.Event(step=step, wall_time=time.time(), **content).SerializeToString()
        self._records.write(event)
        self._length += len(event)
        if time.monotonic() - self._flushed >= self._every:
            self._records.flush()
            self._flushed = time.monotonic()
