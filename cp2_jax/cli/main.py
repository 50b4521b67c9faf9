"""The entry point of `cp2` and of the scripts: finds the command, reads its arguments, runs it, returns the status."""

import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from cp2_jax.cli import errors

# Each stands in a module of the same name in `cp2_jax.cli.commands`.
COMMANDS = {
    "pretrain": "pretrain a segmentation model on images without labels",
    "finetune": "train it further on images with masks",
    "evaluate": "score a finetuned model on a data set",
    "predict": "class maps of a folder of images",
    "embed": "features of a folder of images, as a table",
    "probe": "what frozen features know, without finetuning",
    "preview": "pictures of what a run will see, or has learned",
    "prepare": "make, check and pack data sets",
    "convert": "read somebody else's checkpoint",
    "export": "write a model for PyTorch and other programs",
    "plan": "memory and time that a run needs, before it is started",
    "compare": "scores of several runs side by side",
    "reproduce": "the paper's tables, cell by cell",
    "study": "the paper's ablations in small",
    "attention-maps": "masks for pretraining from a ViT's attention",
}


def main() -> None:
    """Run `cp2 COMMAND …` and leave with its status; the console script of the package."""
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if name == "help" and arguments:  # `cp2 help pretrain`
        name, arguments = arguments[0], ["--help"]
    errors.leave(run(name, arguments, f"cp2 {name}"))


def run(name: str, arguments: Sequence[str], program: str) -> int:
    """Run one command and return its exit status.

    Args:
      name: of `COMMANDS`, or `--help` or `--version`.
      arguments: what was typed after it.
      program: how the command was called, for messages, such as "cp2 pretrain" or "pretrain.py".
    """

    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may have letters that the locale has not
        sys.stdout.reconfigure(errors="backslashreplace")

    def command():
        if name in ("-h", "--help", "help"):
            print(_help())
        elif name in ("-V", "--version", "version"):
            print(f"cp2_jax {sys.modules['cp2_jax'].__version__}")
        elif name.replace("_", "-") not in COMMANDS:
            raise errors.UsageError(_no_command(name))
        else:
            set_up()
            module = importlib.import_module(f"cp2_jax.cli.commands.{name.replace('-', '_')}")
            start(module.COMMAND, program, arguments)

    return errors.guarded(command)


def start(command, program: str, arguments: Sequence[str]) -> None:
    """Read a command's arguments and run it.

    Args:
      command: a `cp2_jax.cli.command.Command`.
      program, arguments: as for `run`.
    """
    from cp2_jax.cli.command import read

    command.run(read(command, program, arguments))


def set_up() -> None:
    """Prepare this process: compiled programs are kept between runs, warnings are lines, Grain finds parsed flags."""
    from cp2_jax import paths

    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR") or paths.cache()
    if kept:  # before JAX is imported
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(kept)
    import logging

    from absl import flags
    from absl import logging as absl_logging

    from cp2_jax.cli import screen
    from cp2_jax.runs import no_tpu

    said = logging.StreamHandler()
    said.setFormatter(screen.Lines(said.stream))
    logging.basicConfig(handlers=[said], level=logging.WARNING)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home directory that cannot be written
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # of values inside a program, whose types nobody asks for
    if not kept:
        logging.warning(
            "compiled programs are not kept, for there is no home directory that can be written: set "
            "JAX_COMPILATION_CACHE_DIR to a folder of yours"
        )
    no_tpu.settle()
    absl_logging.set_verbosity(absl_logging.WARNING)
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read them


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cp2 COMMAND …",
            "",
            "CP2: copy-paste contrastive pretraining for semantic segmentation, in JAX.",
            "",
            *lines,
            "",
            "cp2 COMMAND --help shows all options of one. Start with:",
            "",
            "  cp2 pretrain photos runs/photos",
            "  cp2 finetune my_data runs/mine --checkpoint runs/photos",
            "  cp2 evaluate runs/mine",
            "  cp2 predict runs/mine photos predicted",
        ]
    )


def _no_command(name: str) -> str:
    if name.startswith("-"):
        return f"cp2 {name}: an option stands behind a command, as in cp2 pretrain {name}; cp2 --help shows all commands"
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
    return f"cp2 {name}: there is no such command; {hint}"
