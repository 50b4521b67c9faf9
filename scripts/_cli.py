"""What every entry point shares: the checkout on the path, flags, and one line instead of a traceback for users' errors."""

import os
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
# Compiled programs are kept between runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "cp2_jax"))

from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from cp2_jax.checkpoints import CheckpointError  # noqa: E402
from cp2_jax.data.decode import UnreadableImage  # noqa: E402
from cp2_jax.data.sources import SourceError  # noqa: E402
from cp2_jax.loop import NonFiniteLoss, Preempted  # noqa: E402
from cp2_jax.settings import ConfigError, check_override  # noqa: E402

PREEMPTED = 75  # EX_TEMPFAIL: "try again", which launchers do
_USER_ERRORS = (ConfigError, CheckpointError, UnreadableImage, SourceError, NonFiniteLoss)


def define_config_flags(default: str | None = None) -> flags.FlagHolder:
    """Define --config (a file with `get_config`; --config.key=value overrides) and --workdir."""
    flags.DEFINE_string("workdir", None, "Where checkpoints, logs and pictures go; resumes what is there.", required=True)
    return config_flags.DEFINE_config_file("config", default, "Config file, see configs/.", lock_config=True)


def _parse_flags(argv):
    """Parse, turning a misspelt or mistyped override into a line that names the nearest key."""
    try:
        return flags.FLAGS(argv, known_only=False)
    except Exception as error:
        _explain_override(argv, error)
        fail(" ".join(str(error).split()), 2)


def _explain_override(argv, error):
    """If an override is at fault, say which and how; otherwise return."""
    path = next((_value(argv, i) for i, a in enumerate(argv) if re.match(r"--?config(=|$)", a)), None)
    if not path or not os.path.exists(path):
        return
    config = config_flags.config_flags._LoadConfigModule("config", path).get_config()
    for argument in argv:
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match:
            try:
                check_override(config, match[1])
            except ConfigError as misspelt:
                fail(str(misspelt), 2)
            if match[1] in str(error):
                want = type(_lookup(config, match[1])).__name__
                fail(f"{argument}: {match[1]} takes a {want} ({' '.join(str(error).split())[:160]})", 2)


def _value(argv, index):
    return argv[index].partition("=")[2] or (argv[index + 1] if index + 1 < len(argv) else None)


def _lookup(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def fail(message: str, status: int):
    """Print one message and leave."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(status)


def run(main) -> None:
    """Run `main(argv)` under absl (Grain's workers need its flags); users' errors become one message, status 1."""

    def guarded(argv):
        try:
            main(argv)
        except Preempted as stopped:
            fail(str(stopped), PREEMPTED)
        except _USER_ERRORS as error:
            fail(str(error), 2 if isinstance(error, ConfigError) else 1)

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse_flags)
