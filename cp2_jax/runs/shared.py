"""Whether the work directory of several processes is one and the same: each of them writes its part of every checkpoint."""

import pathlib
import secrets
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from cp2_jax.paths import AnyPath, BucketPath
from cp2_jax.runs.distributed import DisagreementError, raise_together

_NAME = ".shared"
# Seconds until what one host wrote has to be seen by all: network file systems ask the server only now and then.
_PATIENCE = 20.0


def check(folder: AnyPath) -> None:
    """Let all processes look whether they see the same folder; every one calls it.

    On a folder of each host's own, a checkpoint would be spread over the hosts, and a resumed run would find a part of it.

    Args:
      folder: exists, and the first process can write there.

    Raises:
      DisagreementError: naming a process that does not see what the first one wrote.
      OSError: the first process cannot write there.
    """
    if jax.process_count() == 1 or isinstance(folder, BucketPath):
        return
    path, error = folder / _NAME, None
    word = str(int(multihost_utils.broadcast_one_to_all(np.int32(secrets.randbelow(2**31)))))
    if jax.process_index() == 0:
        try:
            path.write_text(word, encoding="utf-8")
        except OSError as caught:
            error = caught
    raise_together(error)
    seen = multihost_utils.process_allgather(np.int32(reads(path, word, _PATIENCE))).ravel()
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)
    if not seen.all():
        raise DisagreementError(
            f"process {int(np.argmin(seen))} of this run does not see what process 0 writes in {folder}: all need the same "
            "folder, on a disk that their hosts share, or one in a bucket (gs://…, s3://…)"
        )


def reads(path: pathlib.Path, word: str, patience: float) -> bool:
    """Say whether a file holds a text within some seconds."""
    end = time.monotonic() + patience
    while True:
        try:
            if path.read_bytes() == word.encode():
                return True
        except OSError:
            pass
        if time.monotonic() > end:
            return False
        time.sleep(min(0.5, patience / 4))
