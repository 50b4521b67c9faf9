"""Exceptions become one line and an exit status, here and nowhere else.

| status | meaning |
|---|---|
| 0 | done |
| 1 | something that the command needs is wrong, here or in another process of the run: a file, a disk, memory, the loss |
| 2 | what was typed is wrong: an option, a config key, a value |
| 75 | stopped by a signal, or another process or a bucket is gone; what was saved is there: run the same command again |
| 130 | interrupted |

Set `CP2_TRACEBACK=1` to see where an error comes from.
"""

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from cp2_jax.cli import screen

ERROR, USAGE, PREEMPTED, INTERRUPTED = 1, 2, 75, 130
# Seconds that a process gives the others of its run to meet the same error. One that is stopped waits longer: all are, and
# process 0 may have pictures and scores to write.
_PATIENCE = {ERROR: 10, USAGE: 10, PREEMPTED: 10, INTERRUPTED: 2}
_PATIENCE_OF_THE_STOPPED = 600
_NEWS = 2.0  # seconds to wait for word of why another process is gone
# Modules that are no requirements, by the extra of pyproject.toml that brings them.
EXTRAS = {"jax2onnx": "onnx", "onnxruntime": "onnx", "pyarrow": "parquet", "libtpu": "tpu"}
EXTRAS |= {"mlflow": "mlflow", "wandb": "wandb"}

_COMPLETE = "let get_config begin with that of cp2_jax.configs.pretrain or finetune_voc, which have all keys"


class UsageError(Exception):
    """What was typed cannot be taken; the message says what can."""


def guarded(call: Callable[[], None]) -> int:
    """Call a function and return the exit status; of what it raises, print one message on stderr.

    Exceptions that this package defines, and those of the operating system, are the user's to deal with. Any other is a
    mistake of ours and keeps its traceback.
    """
    try:
        call()
        sys.stdout.flush()  # what is left to print finds a closed pipe here, not at the end of Python
        return 0
    except KeyboardInterrupt:
        return _end("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `cp2 … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ERROR
    except Exception as error:
        if os.environ.get("CP2_TRACEBACK"):
            traceback.print_exc()
        message, status = explain(error)
        if message is None:
            return _end(traceback.format_exc(), status)
        stopped = type(error).__name__ == "Preempted"
        return _end(screen.wrapped(message, screen.width(sys.stderr)), status, stopped)


def leave(status: int) -> NoReturn:
    """End this process with a status.

    After an error, nothing is waited for: a save that a full or read-only disk broke off leaves threads of Orbax that wait
    ten minutes for one another, and an orderly end would wait for them.
    """
    waiting = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    if status in (ERROR, INTERRUPTED) and waiting:
        sys.stdout.flush()
        sys.stderr.flush()
        for child in multiprocessing.active_children():  # processes that decode
            child.terminate()
        os._exit(status)
    sys.exit(status)


def explain(error: Exception) -> tuple[str | None, int]:
    """Return the message for a user and the exit status; the message is None for what only a programmer can mend."""
    name = type(error).__name__
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("cp2_jax"):
        return f"error: {missing(error.name)}", ERROR
    from cp2_jax.options import ConfigError

    if name in ("Preempted", "Unreachable"):
        return str(error), PREEMPTED
    if name in ("Stopped", "Lost"):
        return f"error: {error}", error.status
    if any(map(_may_be_of_another_process, (error, error.__cause__))):
        from cp2_jax.runs import distributed

        if distributed.several():
            return _gone(error)
    if isinstance(error, ConfigError | UsageError):
        return f"error: {error}", USAGE
    if type(error).__module__.partition(".")[0] == "cp2_jax":
        return f"error: {error}", ERROR
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return f"error: {what}", ERROR
    if isinstance(error, KeyError | AttributeError) and _of_a_config(error):
        return f"error: the config lacks a key that is needed: {_first_line(error).strip(chr(34))}; {_COMPLETE}", USAGE
    if name == "JaxRuntimeError":
        return _of_the_runtime(error)
    return None, ERROR


def _of_a_config(error: Exception) -> bool:
    """Say whether an error is that of a ConfigDict which was asked for a key that it has not."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_globals.get("__name__", "").startswith("ml_collections.")


def missing(module: str | None) -> str:
    """Return one line on a module that this Python does not have."""
    extra = EXTRAS.get((module or "").partition(".")[0])
    if extra:
        return f"{sys.executable} has no module {module}: pip install 'cp2_jax[{extra}]'"
    return (
        f"{sys.executable} has no module {module}: use the Python into which cp2_jax was installed (in a checkout "
        ".venv/bin/python, which `bash scripts/environment.sh` makes), or `pip install` it"
    )


def _of_the_runtime(error: Exception) -> tuple[str | None, int]:
    """Explain an error of JAX's runtime or compiler, if it is one that a user can do something about."""
    from cp2_jax.runs import distributed, out_of_memory

    if out_of_memory.is_out_of_memory(error):
        config = getattr(error, "config", None)
        advice = f"memory is too small ({_first_line(error)}); {out_of_memory.REMEDIES}"
        return f"error: {out_of_memory.advice(config, error) if config else advice}", ERROR
    if distributed.several():
        return _gone(error)
    return None, ERROR


def _may_be_of_another_process(error: BaseException | None) -> bool:
    """Say whether an error is one that a run of several processes has when one of them is gone.

    Orbax waits in vain for the part that it was to write of a checkpoint. A collective operation that is dispatched then
    fails with a ValueError, of all kinds, that bears the words of the library which carries it.
    """
    words = ("Gloo ", "NCCL", "UNAVAILABLE:", "DEADLINE_EXCEEDED:")
    return isinstance(error, TimeoutError) or (isinstance(error, ValueError) and any(word in str(error) for word in words))


def _gone(error: Exception) -> tuple[str, int]:
    """Explain an error that a process has because another one is gone; which one and why it may hear in a moment."""
    from cp2_jax.runs import leaving

    if (heard := leaving.news(_NEWS)) is not None:
        return f"error: {heard}", heard.status
    again = "run again to go on from the last checkpoint"
    return f"error: another process of this run is gone ({_first_line(error)}); {again}", PREEMPTED


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _end(message: str, status: int, stopped: bool = False) -> int:
    if "jax" in sys.modules:
        from cp2_jax.runs import distributed, leaving

        if distributed.several():
            patience = _PATIENCE_OF_THE_STOPPED if stopped else _PATIENCE.get(status, 0)
            leaving.leave(message.rstrip("\n"), status, patience, together=stopped)
    print(message.rstrip("\n"), file=sys.stderr, flush=True)
    return status
