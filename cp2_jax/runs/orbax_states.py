"""What Orbax has written on a disk, read without knowing what it is."""

import contextlib
import pathlib
import re
import tempfile
from collections.abc import Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp


@contextlib.contextmanager
def without_wildcards(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a directory under a name that Orbax, which looks for its files by wildcards, does not take for a pattern."""
    if not re.search(r"[\[\]*?]", str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="cp2_jax_") as folder:
        link = pathlib.Path(folder) / directory.name.translate(str.maketrans("[]*?", "____"))
        link.symlink_to(directory)
        yield link


def read_state(step: pathlib.Path) -> dict:
    """Return the state of a step on the disk as a tree of NumPy arrays, as it was saved."""
    handler = ocp.PyTreeCheckpointHandler()
    with without_wildcards(step) as plain:
        abstract = handler.metadata(plain / "state").tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), abstract)
        return handler.restore(plain / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))
