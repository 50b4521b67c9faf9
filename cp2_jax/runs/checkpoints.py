"""Checkpoints (Orbax): a training state and its metadata in one atomic step; newest good one found by itself.

Layout: `<directory>/<step>/{state,meta,checksums.json}`. A step is written under a temporary name and renamed when
complete, checksums included: a kill at any moment leaves the finished steps and what the next start removes.
"""

import contextlib
import json
import pathlib
import re
import shutil
import tempfile
import threading
from collections.abc import Reversible
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from cp2_jax.paths import AnyPath, BucketError, BucketPath
from cp2_jax.runs import bucket_steps, checksums, files, orbax_noise, settings
from cp2_jax.runs.orbax_states import read_state, without_wildcards

PATIENCE = 60.0  # seconds that a process which ends with an error waits for the others to complete a save


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another model; the message names it and says what to do."""


class Checkpoints:
    """The checkpoints of one run. With several processes, all of them call every method; the directory is shared.

    Args:
      directory: made if absent. What a killed run left half-written in it is removed.
      keep: how many of the newest to keep.
      alone: this process alone calls the methods, with arrays on the host.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 3, alone: bool = False):
        self.directory = pathlib.Path(files.expand(directory))
        self.directory.mkdir(parents=True, exist_ok=True)
        self._saving, self._failure, self._alone = None, None, alone
        orbax_noise.silence()
        self._alias = contextlib.ExitStack()
        self._manager = ocp.CheckpointManager(
            self._alias.enter_context(without_wildcards(self.directory)),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes={0} if alone else None),
                cleanup_tmp_directories=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._seal),
            ),
            item_names=("state", "meta"),
        )

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Save in the background, after waiting for the save before. A step that is there already is left as it is.

        Args:
          step: number of finished steps.
          state: pytree of arrays; it may be donated as soon as this returns.
          meta: JSON values saved in the same atomic step: config, iterator position, kind of state.

        Raises:
          CheckpointError: if the save before failed, or a later step is there.
        """
        self.wait()
        if step == self.latest_step():
            return
        if jax.default_backend() == "cpu" and not self._alone:
            # Elsewhere Orbax copies to the host before it returns; on a CPU it may read the very buffers that the next
            # step is given to overwrite.
            state = jax.tree.map(jnp.copy, state)
        # Through JSON once, so that what is saved equals what is read back (tuples become lists).
        meta = json.loads(json.dumps(meta))
        self._saving = step
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        if not self._manager.save(step, args=items):
            raise CheckpointError(
                f"step {step} was not saved: {self.directory} holds step {self.latest_step()}. "
                "Use another work directory, or move the later checkpoints away"
            )

    def wait(self) -> None:
        """Wait until the last save is complete on disk.

        Raises:
          CheckpointError: if it failed; the checkpoints before it are still there.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            self._manager.reload()
            if jax.process_index() == 0:  # what was written of it takes room, and is of no use
                for path in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(path, ignore_errors=True)
            last, why = self.latest_step(), files.reason(error) or first_line(error)
            left = "There is none before it" if last is None else f"The last complete checkpoint is that of step {last}"
            raise CheckpointError(f"saving step {self._saving} to {self.directory} failed: {why}. {left}") from error

    def settle(self, error: BaseException) -> None:
        """Wait until the last save is complete or has failed, after something else went wrong.

        Of several processes, one alone cannot wait for ever: the others may not come.

        Raises:
          CheckpointError: in place of an error of writing, if the save failed for the same reason, a full disk for
            instance: it says what is left. Another failure is logged, for `error` is what people are to see.
        """
        waiting = threading.Thread(target=self._settle, name="settle", daemon=True)
        waiting.start()
        waiting.join(None if jax.process_count() == 1 else PATIENCE)
        if self._failure is None:
            return
        if isinstance(error, OSError) and (files.reason(error) or "another reason") in str(self._failure):
            raise self._failure from error
        logging.warning("%s", self._failure)

    def _settle(self) -> None:
        try:
            self.wait()
        except CheckpointError as error:
            self._failure = error

    def close(self) -> None:
        """Wait, then release Orbax's threads; raises as `wait`, unless `settle` has told of it."""
        try:
            with contextlib.suppress(*[CheckpointError] * (self._failure is not None)):
                self.wait()
        finally:
            self._manager.close()
            self._alias.close()

    def latest_step(self) -> int | None:
        """Return the newest step that is complete on disk, or None."""
        return max(map(int, bucket_steps.complete(self.directory)), default=None)

    def latest_meta(self) -> dict:
        """Return what was saved beside the newest state of which it can be read; {} if there is none."""
        return newest_meta(bucket_steps.complete(self.directory).values())

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """Return (state, meta) of the newest good checkpoint, or None if there is none at all.

        Damaged ones that are newer are named in the log and moved aside to `<step>.damaged`. If all are damaged, all stay.

        Args:
          like: a state, or `jax.ShapeDtypeStruct`s with shardings, that says what to restore and where to put it;
            the topology may differ from the one that saved.

        Raises:
          CheckpointError: if a checkpoint holds another model (with the differences), if all are damaged, or if an
            intact one cannot be restored (out of memory, for instance).
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        damaged = {}
        for path in reversed(bucket_steps.complete(self.directory).values()):
            intact = False
            try:
                intact = checksums.agree(path)
                compare(path, target, path)
                items = ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore())
                restored = self._manager.restore(int(path.name), args=items)
                break
            except CheckpointError:
                raise
            except Exception as error:
                # Of several processes, one alone cannot go on to the step before.
                if intact or (jax.process_count() > 1 and not isinstance(error, checksums.Damaged)):
                    raise CheckpointError(f"checkpoint {path} cannot be restored: {error}") from error
                damaged[path] = first_line(error)
        else:
            if not damaged:
                return None
            raise CheckpointError(
                f"all checkpoints in {self.directory} are damaged:\n"
                + "".join(f"  {path.name}: {problem}\n" for path, problem in damaged.items())
                + "Put back a copy of one, or start anew in another work directory"
            )
        for path, problem in damaged.items():
            self.set_aside(path, problem)
        return restored.state, restored.meta

    def set_aside(self, path: pathlib.Path, problem: str) -> None:
        """Move a step of which `problem` says what is wrong to `<step>.damaged`; all processes call it."""
        aside = path.with_name(path.name + ".damaged")
        while aside.exists():
            aside = aside.with_name(aside.name + "_")
        if jax.process_index() == 0:
            logging.warning("checkpoint %s is damaged (%s); moved to %s", path, problem, aside)
            path.rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {path.name}")
        self._manager.reload()

    def _seal(self) -> None:
        """Write the checksums into the step that is about to be renamed (Orbax calls this just before)."""
        for path in self.directory.glob(f"{self._saving}.orbax-checkpoint-tmp*"):
            checksums.write(path)


def newest_meta(steps: Reversible[AnyPath]) -> dict:
    """Return what was saved beside the newest of some steps (oldest first) of which it can be read; {} if there is none."""
    for path in reversed(steps):
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((path / "meta" / "metadata").read_text("utf-8"))
            if isinstance(found, dict):
                return found
    return {}


def read(path: str | AnyPath) -> tuple[dict, dict]:
    """Return (tree of NumPy arrays, meta) of a checkpoint; needs none of the classes that saved it.

    Args:
      path: a work directory (also in a bucket), its `checkpoints` directory, one step's directory, or what
        `write_variables` wrote; of several steps, the newest that is not damaged.

    Raises:
      CheckpointError: if there is no (good) checkpoint.
      BucketError: the bucket cannot be read.
    """
    path = files.expand(path)
    if path.is_file():
        convert = f"cp2 convert {path} OUTPUT"
        raise CheckpointError(f"{path} is a file; others' checkpoints are converted first: {convert}")
    steps, problems = _steps_at(path), []
    for step in reversed(steps):
        try:
            with bucket_steps.on_disk(step) as folder:
                checksums.verify(folder)
                tree = read_state(folder)
                meta = json.loads((folder / "meta" / "metadata").read_text("utf-8"))
            for problem in problems:
                logging.warning("checkpoint %s cannot be read", problem)
            return tree, meta | ({"config": settings.upgrade(meta["config"])} if "config" in meta else {})
        except BucketError:
            raise
        except Exception as error:
            problems.append(f"{step}: {first_line(error)}")
    if problems and _steps_at(path) != steps:  # a run is saving: what was read was removed, and there is a newer one
        return read(path)
    if problems:
        raise CheckpointError("no readable checkpoint:\n  " + "\n  ".join(problems))
    wanted = "a work directory, a checkpoints directory, a step, or what `cp2 convert FILE FOLDER` made of somebody's"
    raise CheckpointError(f"no checkpoint at {path} (looked for {wanted})")


def _steps_at(path: AnyPath) -> list[AnyPath]:
    """Return the complete steps of what `read` is given, oldest first."""
    steps = bucket_steps.complete(path / "checkpoints") or bucket_steps.complete(path)
    return list(steps.values()) or [path] * (path / "state").is_dir()


def read_variables(path: str | AnyPath) -> tuple[dict, dict]:
    """Return ({'params', 'batch_stats'}, meta): the query encoder of a pretraining state, the model of a finetuning state
    without its auxiliary head, which serves training alone, or a converted model (see `write_variables`).

    Raises:
      CheckpointError: see `read`; also if there are no parameters in it.
    """
    tree, meta = read(path)
    if not tree.get("params"):
        raise CheckpointError(f"{path} holds no parameters, only {', '.join(sorted(tree)) or 'nothing'}")
    trees = {"params": tree["params"], "batch_stats": tree.get("batch_stats") or {}}
    return {k: {part: v for part, v in t.items() if not part.startswith("auxiliary")} for k, t in trees.items()}, meta


def write_variables(path: str | AnyPath, variables: dict, meta: dict) -> None:
    """Write a model that was not trained here (a converted checkpoint) so that `read_variables` reads it.

    Raises:
      CheckpointError: if there is a checkpoint at `path` already, or it cannot be written.
    """
    path = files.expand(path)
    if bucket_steps.complete(path):
        raise CheckpointError(f"{path} holds a checkpoint already: remove it, or write elsewhere")
    with contextlib.ExitStack() as closing:
        in_bucket = isinstance(path, BucketPath)
        folder = closing.enter_context(tempfile.TemporaryDirectory(prefix="cp2_jax_")) if in_bucket else path
        try:
            saver = Checkpoints(folder, keep=1)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
        saver.save(0, {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, meta)
        saver.close()
        if in_bucket:
            bucket_steps.upload(pathlib.Path(folder) / "0", path / "0")


def compare(folder: pathlib.Path, target: Any, path: AnyPath) -> None:
    """Refuse a checkpoint whose arrays have other names or shapes than the target's.

    Args:
      folder: the step on the disk.
      path: what to call it.

    Raises:
      CheckpointError: with the differences.
    """
    saved = _shapes(ocp.PyTreeCheckpointHandler().metadata(folder / "state").tree)
    wanted = _shapes(target)
    differences = [
        f"  {name}: checkpoint {saved.get(name, 'absent')}, this run {wanted.get(name, 'absent')}"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]
    if differences:
        shown = differences[:8] + ([f"  … and {len(differences) - 8} more"] if len(differences) > 8 else [])
        raise CheckpointError(
            f"checkpoint {path} holds another model than the config describes:\n" + "\n".join(shown) + "\n"
            "Use the config it was made with, or another work directory"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {re.sub(r"[\[\].']+", "/", jax.tree_util.keystr(path)).strip("/"): tuple(leaf.shape) for path, leaf in leaves}


def first_line(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
