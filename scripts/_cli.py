"""What every entry point shares: the checkout on the path, flags, and one line instead of a traceback for users' errors."""

import inspect
import os
import pathlib
import re
import runpy
import sys
import traceback

_CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(_CHECKOUT))
# Compiled programs are kept between runs.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path.home() / ".cache" / "cp2_jax"))

import jax  # noqa: E402
from absl import app, flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from cp2_jax.data.images.decoding import UnreadableImage  # noqa: E402
from cp2_jax.data.images.sources import SourceError  # noqa: E402
from cp2_jax.options import ConfigError  # noqa: E402
from cp2_jax.planning.chips import PlanError  # noqa: E402
from cp2_jax.reproduce.chain import StageError  # noqa: E402
from cp2_jax.runs import distributed, out_of_memory, session  # noqa: E402
from cp2_jax.runs.checkpoints import CheckpointError  # noqa: E402
from cp2_jax.runs.loop import NonFiniteLoss, Preempted  # noqa: E402
from cp2_jax.runs.settings import check_override  # noqa: E402

PREEMPTED = session.TRY_AGAIN
_USER_ERRORS = (
    ConfigError, CheckpointError, UnreadableImage, SourceError, NonFiniteLoss, PlanError, distributed.DisagreementError,
    StageError,
)  # fmt: skip


def define_config_flags(default: str | None = None) -> flags.FlagHolder:
    """Define --config (a file with `get_config`; --config.key=value overrides) and --workdir."""
    flags.DEFINE_string("workdir", None, "Where checkpoints, logs and pictures go; resumes what is there.", required=True)
    flags.DEFINE_string("coordinator", None, "host:port of process 0; Slurm, Open MPI, Cloud TPU, GKE need no flags.")
    flags.DEFINE_integer("num_processes", None, "Number of processes, with --coordinator.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this is, from 0 on.", lower_bound=0)
    flags.DEFINE_integer("heartbeat_timeout", 60, "Seconds until a silent process is taken for dead.", lower_bound=5)
    flags.DEFINE_float("stall_timeout", 1800, "Seconds without a finished step until all stop; 0: never.", lower_bound=0)
    return define_config("Config file, see configs/.", default, required=True)


def define_config(text: str, default: str | None = None, required: bool = False) -> flags.FlagHolder:
    """Define --config alone."""
    try:
        config = config_flags.DEFINE_config_file("config", default, text, lock_config=True)
    except Exception as error:  # overrides of a default config are looked at here already
        _explain_override(["", f"--config={default}", *sys.argv[1:]], error)
        raise
    if required:
        flags.mark_flag_as_required("config")
    return config


def _parse_flags(argv):
    """Parse, turning a misspelt or mistyped override into a line that names the nearest key."""
    try:
        rest = flags.FLAGS(argv, known_only=False)
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            flags.FLAGS.config.keys()  # one that could not be loaded raises when it is used first
        return rest
    except Exception as error:
        _explain_override(argv, error)
        fail(" ".join(str(error).split()), 2)


_EXPECTED = {
    "int": "a whole number", "float": "a number", "bool": "True or False", "str": "a text",
    "tuple": "a tuple, such as (0.2, 1.0)", "ConfigDict": "no value itself, but its keys do",
}  # fmt: skip


def _explain_override(argv, error):
    """If an override is at fault, say which and how; otherwise return."""
    path = _config_path(argv)
    overridden = next((a for a in argv if re.match(r"--?config\.", a)), None)
    if not path and overridden:
        fail(f"{overridden}: there is no config to change; give one, --config=configs/….py", 2)
    if not path:
        return
    file, colon, preset = path.partition(":")
    if not os.path.exists(file):
        known = ", ".join(sorted(str(p.name) for p in _CHECKOUT.glob("configs/*.py")))
        fail(f"--config={file}: there is no such file; configs/ has {known}", 2)
    try:
        get_config = runpy.run_path(file)["get_config"]
        if colon and not inspect.signature(get_config).parameters:
            fail(f"--config={path}: {file} has no presets; leave out :{preset}", 2)
        config = get_config(*[preset] * bool(colon))
    except Exception as broken:
        fail(f"--config={path} cannot be loaded: {type(broken).__name__}: {broken}", 2)
    for index, argument in enumerate(argv):
        match = re.match(r"--?config\.([\w.]+)", argument)
        if match:
            try:
                check_override(config, match[1])
            except ConfigError as misspelt:
                fail(str(misspelt), 2)
            if f"config.{match[1]}=" in str(error) or f"config.{match[1]}'" in str(error):
                want = type(_lookup(config, match[1])).__name__
                fail(f"--config.{match[1]}={_value(argv, index)}: {match[1]} takes {_EXPECTED.get(want, want)}", 2)


def _config_path(argv):
    default = flags.FLAGS["config"].default if "config" in flags.FLAGS else None
    return next((_value(argv, i) for i, a in enumerate(argv) if re.match(r"--?config(=|$)", a)), default)


def _value(argv, index):
    return argv[index].partition("=")[2] or (argv[index + 1] if index + 1 < len(argv) else None)


def _lookup(config, name):
    for part in name.split("."):
        config = config[part]
    return config


def join_processes() -> None:
    """Find the other processes of the run, if any.

    Only process 0 prints from then on; errors come from all.
    """
    options = flags.FLAGS
    if "coordinator" not in options:
        return
    distributed.initialize(
        options.coordinator, options.num_processes, options.process_id, heartbeat_timeout=options.heartbeat_timeout
    )
    if jax.process_index():
        sys.stdout = open(os.devnull, "w")
        logging.set_verbosity(logging.ERROR)


def watchdog() -> distributed.Watchdog:
    """Return the hook that stops a run of several processes when one hangs."""
    return session.watchdog(flags.FLAGS.stall_timeout)


def _runtime_error(error: jax.errors.JaxRuntimeError):
    """Explain an error of JAX's runtime, if it is one that the user can do something about; otherwise raise it."""
    if out_of_memory.is_out_of_memory(error) and flags.FLAGS.get_flag_value("config", None):
        fail(out_of_memory.advice(flags.FLAGS.config, error), 1)
    if distributed.several():
        first = str(error).splitlines()[0][:200]
        fail(f"another process of this run is gone ({first}); run again to go on from the last checkpoint", PREEMPTED)
    raise error


def fail(message: str, status: int, prefix: str = "error: "):
    """Print one message and leave."""
    if distributed.several():
        distributed.leave(f"{prefix}{message}", status)
    print(f"{prefix}{message}", file=sys.stderr, flush=True)
    sys.exit(status)


def run(main) -> None:
    """Run `main(argv)` under absl (Grain's workers need its flags); users' errors become one message, status 1."""

    def guarded(argv):
        try:
            join_processes()
            main(argv)
        except Preempted as stopped:  # on all processes alike
            print(stopped, file=sys.stderr, flush=True)
            sys.exit(PREEMPTED)
        except KeyboardInterrupt:
            fail("interrupted", 130, prefix="")
        except _USER_ERRORS as error:
            fail(str(error), 2 if isinstance(error, ConfigError) else 1)
        except jax.errors.JaxRuntimeError as error:
            _runtime_error(error)
        except Exception:
            if distributed.several():
                distributed.leave(traceback.format_exc(), 1)
            raise

    logging.set_verbosity(logging.WARNING)
    app.run(guarded, flags_parser=_parse_flags)
