"""What the scripts share: they are the commands of `cp2` under the names that they have always had."""

import pathlib
import sys


def run(command: str) -> None:
    """Run one command of `cp2` with this program's arguments, and leave with its status."""
    try:
        from cp2_jax.cli import errors, main
    except ModuleNotFoundError as error:
        print(
            f"error: {sys.executable} has no module {error.name}: use .venv/bin/python, which "
            "`bash scripts/environment.sh` makes, or `pip install .` into this one",
            file=sys.stderr,
        )
        sys.exit(1)
    errors.leave(main.run(command, sys.argv[1:], pathlib.Path(sys.argv[0]).name))
