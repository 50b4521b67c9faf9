"""What training needs of the process that it is called in: a notebook, a plain script, the command line."""

import contextlib
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator

import jax
from absl import flags

from cp2_jax import paths
from cp2_jax.runs import no_tpu


@contextlib.contextmanager
def ready() -> Iterator[None]:
    """Make this process ready for a job, and leave it as it was.

    Compiled programs are kept in `~/.cache/cp2_jax` between runs, if it can be written and JAX was not told another place.
    Grain's worker processes find absl's flags parsed. And they do not run the program again that called us: Python would
    import the main module in each of them, which a script without `if __name__ == "__main__":` does not survive; nothing
    that our workers do needs it.
    """
    if not jax.config.jax_compilation_cache_dir and (folder := paths.cache()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    no_tpu.settle()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        vars(main).pop("__file__", None)
        main.__spec__ = None
        yield
    finally:
        vars(main).update(hidden)


def relative(path: str | os.PathLike) -> str:
    """Return a path as short as it can be typed from here."""
    if paths.is_bucket(path):
        return str(path)
    path = pathlib.Path(path).absolute()
    return str(path.relative_to(pathlib.Path.cwd())) if path.is_relative_to(pathlib.Path.cwd()) else str(path)


def quoted(path: str) -> str:
    """Return a path as a shell takes it for one word."""
    return shlex.quote(path)
