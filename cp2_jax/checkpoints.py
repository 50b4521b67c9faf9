"""Checkpoints (Orbax): a training state and its metadata in one atomic step; newest good one found by itself.

Layout: `<directory>/<step>/{state,meta}`, and `<directory>/checksums/<step>.json` written once a step is complete. A save
that was killed leaves a directory with a temporary name, which the next start removes.
"""

import json
import pathlib
import re
import shutil
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or of another model; the message names it and says what to do."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: made if absent.
      keep: how many of the newest to keep.
    """

    def __init__(self, directory: str | pathlib.Path, keep: int = 3):
        self.directory = pathlib.Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_names=("state", "meta"),
        )
        self._seal()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Save in the background; a failure of the save before surfaces here.

        Args:
          step: number of finished steps.
          state: pytree of arrays; it may be donated as soon as this returns.
          meta: JSON values saved in the same atomic step: config, iterator position, kind of state.

        Raises:
          CheckpointError: if the previous save failed.
        """
        self.wait()
        if jax.default_backend() == "cpu":
            # Elsewhere Orbax copies to the host before it returns; on a CPU it may read the very buffers that the next
            # step is given to overwrite.
            state = jax.tree.map(jnp.copy, state)
        self._manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=_json(meta)))

    def wait(self) -> None:
        """Wait until the last save is complete on disk.

        Raises:
          CheckpointError: if it failed.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise CheckpointError(f"saving to {self.directory} failed: {error}") from error
        self._seal()

    def close(self) -> None:
        """Wait, then release Orbax's threads."""
        self.wait()
        self._manager.close()

    def latest_step(self) -> int | None:
        """Return the newest complete step, or None."""
        return self._manager.latest_step()

    def restore(self, like: Any) -> tuple[Any, dict] | None:
        """Return (state, meta) of the newest good checkpoint, or None if there is none at all.

        A damaged one is named in the log, moved aside to `<step>.damaged`, and the one before it is used.

        Args:
          like: a state, or `jax.ShapeDtypeStruct`s with shardings, that says what to restore and where to put it;
            the topology may differ from the one that saved.

        Raises:
          CheckpointError: if a checkpoint holds another model (with the differences), or if all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        for step in steps:
            path = self.directory / str(step)
            try:
                _verify(path)
                _compare(path, target)
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(target), meta=ocp.args.JsonRestore()),
                )
                return restored.state, restored.meta
            except CheckpointError:
                raise
            except Exception as error:
                self._set_aside(path, error)
        if steps:
            raise CheckpointError(
                f"all checkpoints in {self.directory} are damaged; they are kept as *.damaged. "
                "Start anew in another work directory, or put back a copy"
            )
        return None

    def _set_aside(self, path: pathlib.Path, error: Exception) -> None:
        aside = path.with_name(path.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        first_line = (str(error).splitlines() or [""])[0][:200]
        logging.warning("checkpoint %s is damaged (%s: %s); moved to %s", path, type(error).__name__, first_line, aside)
        path.rename(aside)
        self._manager.reload()

    def _seal(self) -> None:
        """Write checksums of complete steps that have none, and drop those of steps that are gone."""
        folder = self.directory / "checksums"
        folder.mkdir(exist_ok=True)
        steps = {str(step) for step in self._manager.all_steps()}
        for old in folder.glob("*.json"):
            if old.stem not in steps:
                old.unlink()
        for step in steps:
            if not (folder / f"{step}.json").exists():
                _write_atomically(folder / f"{step}.json", json.dumps(_checksums(self.directory / step)))


def read(path: str | pathlib.Path) -> tuple[dict, dict]:
    """Return (tree of NumPy arrays, meta) of a checkpoint; needs none of the classes that saved it.

    Args:
      path: a work directory, its `checkpoints` directory, or one step's directory; of several steps, the newest that is
        not damaged.

    Raises:
      CheckpointError: if there is no (good) checkpoint.
    """
    path = pathlib.Path(path).absolute()
    for root in (path / "checkpoints", path):
        steps = sorted((p for p in root.glob("*") if p.name.isdigit() and p.is_dir()), key=lambda p: -int(p.name))
        if steps:
            break
    else:
        steps = [path] if (path / "state").is_dir() else []
    problems = []
    for step in steps:
        try:
            _verify(step)
            handler = ocp.PyTreeCheckpointHandler()
            as_numpy = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(step / "state").tree
            )
            tree = handler.restore(step / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
            return tree, json.loads((step / "meta" / "metadata").read_text())
        except Exception as error:
            problems.append(f"{step}: {(str(error).splitlines() or [''])[0][:200]}")
            logging.warning("checkpoint %s cannot be read, trying the one before it", problems[-1])
    if problems:
        raise CheckpointError("no readable checkpoint:\n  " + "\n  ".join(problems))
    raise CheckpointError(f"no checkpoint at {path} (looked for a work directory, a checkpoints directory, or a step)")


def read_variables(path: str | pathlib.Path) -> tuple[dict, dict]:
    """Return ({'params', 'batch_stats'}, meta): the query encoder of a pretraining state, the model of a finetuning state,
    or a converted model (see `write_variables`).

    Raises:
      CheckpointError: see `read`; also if there are no parameters in it.
    """
    tree, meta = read(path)
    if not tree.get("params"):
        raise CheckpointError(f"{path} holds no parameters, only {', '.join(sorted(tree)) or 'nothing'}")
    return {"params": tree["params"], "batch_stats": tree.get("batch_stats") or {}}, meta


def write_variables(path: str | pathlib.Path, variables: dict, meta: dict) -> None:
    """Write a model that was not trained here (a converted checkpoint) so that `read_variables` reads it."""
    saver = Checkpoints(path, keep=1)
    saver.save(0, {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}, meta)
    saver.close()


def _json(meta: dict):
    # Through JSON once, so that what is saved equals what is read back (tuples become lists).
    return ocp.args.JsonSave(json.loads(json.dumps(meta)))


def _checksums(step: pathlib.Path) -> dict[str, int]:
    return {str(p.relative_to(step)): zlib.crc32(p.read_bytes()) for p in sorted(step.rglob("*")) if p.is_file()}


def _verify(step: pathlib.Path) -> None:
    """Compare a step's files with their recorded checksums, if they were recorded."""
    recorded = step.parent / "checksums" / f"{step.name}.json"
    if not recorded.exists():
        return
    expected, found = json.loads(recorded.read_text()), _checksums(step)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            state = "missing" if name not in found else "changed" if name in expected else "unexpected"
            raise ValueError(f"file {name} is {state}")


def _compare(path: pathlib.Path, target: Any) -> None:
    """Refuse a checkpoint whose arrays have other names or shapes than the target's."""
    saved = _shapes(ocp.PyTreeCheckpointHandler().metadata(path / "state").tree)
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


def _write_atomically(path: pathlib.Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
