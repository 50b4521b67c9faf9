"""Files that grow, for a work directory in a bucket, where nothing can be appended to."""

import contextlib
import pathlib
import tempfile
import threading

from absl import logging

from cp2_jax.paths import BucketError, BucketPath

PART = 4 * 2**20  # bytes after which an event file is ended: what has grown is written anew as a whole


class Spool:
    """A folder on the local disk whose files a thread writes into a bucket, again and again as long as they grow.

    Training does not wait for it. An error of the thread is a warning, and `flush` tries once more.

    Args:
      place: the folder in the bucket.
      every: seconds between two rounds.

    Attributes:
      folder: the local one.
    """

    def __init__(self, place: BucketPath, every: float = 30.0):
        self._temporary = tempfile.TemporaryDirectory(prefix="cp2_jax_")
        self.folder = pathlib.Path(self._temporary.name)
        self._place, self._written, self._lock, self._ended = place, {}, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, args=(every,), name="spool", daemon=True)
        self._thread.start()

    def fetch(self, name: str) -> None:
        """Bring a file from the bucket, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / name).write_bytes((self._place / name).read_bytes())

    def flush(self) -> None:
        """Write what has changed; when this returns, it is in the bucket.

        Raises:
          BucketError: it could not be written.
        """
        with self._lock:
            for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
                status = path.stat()
                stamp = status.st_size, status.st_mtime_ns
                if self._written.get(path) != stamp:
                    (self._place / path.relative_to(self.folder).as_posix()).write_bytes(path.read_bytes())
                    self._written[path] = stamp

    def close(self) -> None:
        """Write what is left, and remove the local folder.

        Raises:
          BucketError: see `flush`.
        """
        self._ended.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            self._temporary.cleanup()

    def _work(self, every: float) -> None:
        while not self._ended.wait(every):
            try:
                self.flush()
            except BucketError as error:
                logging.warning("%s; it is tried again", error)
