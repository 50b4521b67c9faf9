"""The checkpoints of a run whose work directory is in a bucket.

Orbax writes each step to the local disk of the first process, checksums included; from there it is carried into the bucket
file by file, `checksums.json` last. So gs:// and s3:// are written in the same way, which depends on nothing but whole
objects: no renaming, no appending, no file system shared by the processes. Restoring goes the other way round: each process
fetches the step and places its part of the arrays.
"""

import contextlib
import json
import pathlib
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from cp2_jax.paths import AnyPath, BucketPath, Unreachable
from cp2_jax.runs import bucket_steps, checkpoints, checksums, files
from cp2_jax.runs.checkpoints import CheckpointError, Checkpoints


def open_checkpoints(directory: str | AnyPath, keep: int = 3) -> "Checkpoints | BucketCheckpoints":
    """Return the checkpoints of a run, wherever they are; both kinds have the same methods."""
    directory = files.expand(directory)
    return (BucketCheckpoints if isinstance(directory, BucketPath) else Checkpoints)(directory, keep)


class BucketCheckpoints:
    """As `checkpoints.Checkpoints`, with the same methods, for a directory in a bucket.

    Args:
      directory: what a killed run left half-written in it is removed.
      keep: how many of the newest to keep.
    """

    def __init__(self, directory: BucketPath, keep: int = 3):
        self.directory, self._keep = directory, keep
        self._failure: Exception | None = None
        self._saving: int | None = None
        self._carried: Future | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="carry")
        if jax.process_index() == 0:
            bucket_steps.clean(directory)

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Save in the background, see `Checkpoints.save`; the arrays are copied to the host before this returns.

        Raises:
          CheckpointError: if the save before failed, or a later step is there.
          Unreachable: if the save before failed, for the bucket did not answer.
        """
        self.wait()
        # Compared before the first process begins to carry: who looked later would find the step there already, leave it,
        # and then not meet the others in `wait`.
        latest = self.latest_step()
        latest = None if (found := _worst(-1 if latest is None else latest)) < 0 else found
        if step == latest:
            return
        if latest is not None and latest > step:
            raise CheckpointError(
                f"step {step} was not saved: {self.directory} holds step {latest}. "
                "Use another work directory, or move the later checkpoints away"
            )
        state = jax.tree.map(_on_host, state)
        self._saving = step
        if jax.process_index() == 0:
            self._carried = self._thread.submit(self._carry, step, state, meta)

    def _carry(self, step: int, state: Any, meta: dict) -> None:
        # A folder of its own: a step that is saved again, after that in the bucket was set aside, is no step that is there.
        with tempfile.TemporaryDirectory(prefix="cp2_jax_") as folder:
            with contextlib.closing(Checkpoints(folder, keep=1, alone=True)) as local:
                local.save(step, state, meta)
            bucket_steps.upload(pathlib.Path(folder) / str(step), self.directory / str(step))
        bucket_steps.prune(self.directory, self._keep)

    def wait(self) -> None:
        """Wait until the last save is complete in the bucket.

        Raises:
          CheckpointError: if it failed; the checkpoints before it are still there.
          Unreachable: if it failed, for the bucket did not answer.
        """
        if self._saving is None:
            return
        error = self._carried.exception() if self._carried is not None else None
        step, self._saving, self._carried = self._saving, None, None
        worst = _worst(0 if error is None else 1 + (not isinstance(error, Unreachable)))
        if not worst:
            return
        reason = "see the message of process 0" if error is None else files.reason(error) or checkpoints.first_line(error)
        kind = Unreachable if worst == 1 else CheckpointError
        raise kind(f"saving step {step} to {self.directory} failed: {reason}. The checkpoints before it are still there")

    def settle(self, error: BaseException) -> None:
        """Wait until the last save is complete or has failed, after `error`; see `Checkpoints.settle`."""
        waiting = threading.Thread(target=self._settle, name="settle", daemon=True)
        waiting.start()
        waiting.join(None if jax.process_count() == 1 else checkpoints.PATIENCE)
        if self._failure is not None:
            logging.warning("%s", self._failure)

    def _settle(self) -> None:
        try:
            self.wait()
        except (CheckpointError, Unreachable) as error:
            self._failure = error

    def close(self) -> None:
        """Wait, then end the thread that carries; raises as `wait`, unless `settle` has told of it."""
        try:
            with contextlib.suppress(*[CheckpointError, Unreachable] * (self._failure is not None)):
                self.wait()
        finally:
            self._thread.shutdown()

    def latest_step(self) -> int | None:
        """Return the newest step that is complete, or None."""
        return max(map(int, bucket_steps.complete(self.directory)), default=None)

    def latest_meta(self) -> dict:
        """Return what was saved beside the newest state of which it can be read; {} if there is none."""
        return checkpoints.newest_meta(bucket_steps.complete(self.directory).values())

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """Return (state, meta) of the newest good checkpoint, or None if there is none at all; see `Checkpoints.restore`.

        Raises:
          CheckpointError: as of `Checkpoints.restore`.
          BucketError: the bucket cannot be read.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged = {}
        for path in reversed(bucket_steps.complete(self.directory).values()):
            problem, restored = None, None
            try:
                with bucket_steps.on_disk(path) as folder:
                    restored = _restored(folder, target, path)
            except checksums.Damaged as error:
                problem = str(error)
            if _worst(int(problem is not None)):
                damaged[path] = problem or "another process finds it damaged"
                continue
            for one, reason in damaged.items():
                self.set_aside(one, reason)
            return restored
        if not damaged:
            return None
        raise CheckpointError(
            f"all checkpoints in {self.directory} are damaged:\n"
            + "".join(f"  {path.name}: {problem}\n" for path, problem in damaged.items())
            + "Put back a copy of one, or start anew in another work directory"
        )

    def set_aside(self, path: BucketPath, problem: str) -> None:
        """Move a damaged step to `<step>.damaged`, and say so; all processes call it. See `Checkpoints.set_aside`."""
        aside = path.with_name(path.name + ".damaged")
        while aside.is_dir():
            aside = aside.with_name(aside.name + "_")
        if jax.process_index() == 0:
            logging.warning("checkpoint %s is damaged (%s); moved to %s", path, problem, aside)
            bucket_steps.move(path, aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {path.name}")


def _restored(folder: pathlib.Path, target: Any, path: BucketPath) -> tuple[Any, dict]:
    """Return (state, meta) of a step on the disk, the state placed as the target says."""
    checkpoints.compare(folder, target, path)
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), target)
    handler = ocp.PyTreeCheckpointHandler()
    found = handler.restore(folder / "state", args=ocp.args.PyTreeRestore(item=target, restore_args=as_numpy))
    meta = json.loads((folder / "meta" / "metadata").read_text("utf-8"))
    return jax.tree.map(_placed, found, target), meta


def _placed(value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
    value = np.asarray(value).astype(like.dtype, copy=False)
    if getattr(like, "sharding", None) is None:
        return jax.numpy.asarray(value)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])


def _on_host(array: Any) -> np.ndarray:
    """Return a copy of a whole array, which may be spread over the devices of all processes."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable:
        return np.array(array)
    if array.is_fully_replicated:
        return np.array(array.addressable_data(0))
    return np.array(multihost_utils.process_allgather(array, tiled=True))


def _worst(code: int) -> int:
    """Return the largest of the processes' numbers."""
    return int(np.max(multihost_utils.process_allgather(np.int32(code)))) if jax.process_count() > 1 else code
