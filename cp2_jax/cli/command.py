"""What a command is, and how its arguments are read: options by argparse, config keys by `--config.KEY=VALUE`."""

import argparse
import dataclasses
import difflib
import os
import re
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from cp2_jax import config_files, paths
from cp2_jax.cli.errors import UsageError
from cp2_jax.interface import overrides
from cp2_jax.lines import WIDTH, wrap
from cp2_jax.options import ConfigError


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of the command line.

    Attributes:
      text: what `--help` says about it, in lines of at most 80 columns.
      options: adds its arguments to a parser.
      run: does it, given the parsed arguments. Of a command with a config, `arguments.config` is the name that was typed
        (or None) and `arguments.changes` the pairs (key, text) of all `--config.KEY=VALUE`.
      config: the config whose keys `--help` shows where none is typed; "": the command takes no config.
      sections: of the config, if only these may be changed.
    """

    text: str
    options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    config: str = ""
    sections: tuple[str, ...] = ()


def parser(**keywords) -> argparse.ArgumentParser:
    """Return a parser that raises UsageError, keeps to 80 columns and takes no shortened options."""
    made = argparse.ArgumentParser(
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=WIDTH),
        allow_abbrev=False,
        **keywords,
    )

    def refuse(message: str):
        raise UsageError(f"{message}; `{made.prog} --help` shows what there is")

    made.error = refuse
    return made


def path(text: str) -> str:
    """Return a path as it was typed, with the home directory in place of `~`; the type of every option that is a path."""
    return os.path.expanduser(text)


def local(text: str) -> str:
    """As `path`, of what is read or written on the disk only.

    Raises:
      ConfigError: it is in a bucket.
    """
    return str(paths.local(text))


def place(
    made: argparse.ArgumentParser, name: str, help: str, required: bool = True, kind: Callable[[str], str] = path
) -> None:
    """Add a path that is typed by itself or as an option: `cp2 predict runs/mine …` or `--checkpoint runs/mine`.

    Args:
      name: of the option, and of the value in the parsed arguments.
      required: refuse its absence.
      kind: `path` or `local`.
    """
    made.add_argument(f"{name}_place", metavar=name.upper(), nargs="?", type=kind, help=help)
    made.add_argument(f"--{name}", metavar="PATH", type=kind, help=argparse.SUPPRESS)
    made.set_defaults(places=[*(made.get_default("places") or ()), (name, required)])


def switch(made: argparse.ArgumentParser, name: str, default: bool, help: str) -> None:
    """Add an option that is on or off: `--name` and `--no-name` (also `--noname` and `--name=False`, as absl has them)."""
    on_or_off = "on" if default else "off"
    made.add_argument(name, action=argparse.BooleanOptionalAction, default=default, help=f"{help} ({on_or_off})")


def whole(lowest: int) -> Callable[[str], int]:
    """Return the type of an option that is a whole number, at least `lowest`."""

    def convert(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
        return int(text)

    convert.__name__ = "whole number"
    return convert


def read(command: Command, program: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Return a command's arguments.

    Args:
      program: how the command is called, such as "cp2 pretrain".
      arguments: what was typed after it.

    Raises:
      UsageError: an option that there is not, or a value that it does not take; with the nearest option or config key.
      SystemExit: after `--help`.
    """
    rest, changes = _without_changes(arguments)
    made = parser(prog=program, description=command.text)
    command.options(made)
    rest = _spelled(rest, made)
    if command.config:
        example = "a path, or a name such as pretrain:vit,fcn" if command.config.startswith("pretrain") else "path or name"
        made.add_argument("--config", metavar="NAME", type=path, help=f"the experiment's settings: {example}")
        if {"-h", "--help"} & set(rest):
            made.epilog = keys(_value(rest, "--config") or command.config, command.sections)
    elif changes:
        raise UsageError(f"{program} takes no --config.{changes[0][0]}: it has no config")
    intermixed = not any(action.nargs == argparse.PARSER for action in made._actions)
    found, unknown = (made.parse_known_intermixed_args if intermixed else made.parse_known_args)(rest)
    if unknown:
        raise UsageError(_unknown(unknown, made, getattr(found, "config", None) or command.config))
    _settle_places(found, program)
    found.changes = [(name, _switch(text)) for name, text in changes]
    return found


def typed_config(arguments: argparse.Namespace) -> ConfigDict:
    """Return the config that was typed, changed as typed.

    Raises:
      UsageError: none was typed.
      ConfigError: there is no such config or key, or a value does not fit.
    """
    if not arguments.config:
        raise UsageError(f"--config is missing: a path or one of {', '.join(config_files.names())}")
    return changed(arguments.config, arguments.changes)


def changed(name: str, changes: Sequence[tuple[str, str]]) -> ConfigDict:
    """Return the config of a name, with what was typed on the command line changed.

    Raises:
      ConfigError: there is no such config or key, or a value does not fit.
    """
    config = config_files.load(name)
    overrides.parse(config, changes)
    return config


def keys(name: str, sections: Sequence[str] = ()) -> str:
    """Return a config's keys with values and comments, as `--help` shows them in 80 columns.

    Args:
      name: of the config.
      sections: those to show, such as "data"; all by default.
    """
    lines, before = [f"keys of the config {name}, each changed by --config.KEY=VALUE:"], None
    for key in config_files.keys_with_comments(name):
        section = key.name.rpartition(".")[0]
        if sections and section.partition(".")[0] not in sections:
            continue
        if section != before:
            lines.append("")
        before = section
        lines += wrap(key.heading, first="  # ", further="  # ")
        value = repr(key.default)
        room = WIDTH - 5 - len(key.name)
        line = f"  {key.name} = {value if len(value) <= room else value[: room - 1] + '…'}"
        if key.comment and len(line) + len(key.comment) + 4 <= WIDTH:
            line += f"  # {key.comment}"
        lines.append(line)
        if key.comment and "  # " not in line:
            lines += wrap(key.comment, first="      # ", further="      # ")
    return "\n".join(lines)


def _spelled(arguments: Sequence[str], made: argparse.ArgumentParser) -> list[str]:
    """Return options in one spelling; earlier versions took `-flag`, `--some_flag`, `--noflag` and `--flag=False`."""
    options = {option for action in made._actions for option in action.option_strings}
    switches = {option[5:] for option in options if option.startswith("--no-")}
    found = []
    for argument in arguments:
        match = re.match(r"--?([a-zA-Z][\w-]+)(=.*)?$", argument, re.DOTALL)
        if match:
            name, value = match[1].replace("_", "-"), match[2] or ""
            if name.removeprefix("no") in switches and name not in switches:
                name = f"no-{name.removeprefix('no')}"
            if name in switches and value.lower() in ("=true", "=1", "=false", "=0"):
                name, value = name if value.lower() in ("=true", "=1") else f"no-{name}", ""
            known = f"--{name}" in options
            argument = f"--{name}{value}" if known else argument
        found.append(argument)
    return found


def _without_changes(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Split arguments into those of argparse and the pairs (key, text) of `--config.KEY=VALUE` or `--config.KEY VALUE`."""
    rest, changes, waiting = [], [], False
    for argument in arguments:
        match = re.match(r"--?config\.([^=]+)(?:=(.*))?$", argument, re.DOTALL)
        if match:
            changes.append((match[1], match[2]))
            waiting = match[2] is None
        elif waiting and not argument.startswith("--"):
            changes[-1], waiting = (changes[-1][0], argument), False
        else:
            rest.append(argument)
            waiting = False
    return rest, changes


def _switch(text: str | None) -> str:
    return "True" if text is None else text  # `--config.remat` alone


def _unknown(unknown: Sequence[str], made: argparse.ArgumentParser, config: str) -> str:
    """Return a line on the first argument that there is not."""
    first = next((argument for argument in unknown if argument.startswith("-")), unknown[0])
    name = first.partition("=")[0]
    end = f"; `{made.prog} --help` shows what there is"
    if not name.startswith("-"):
        meant = re.match(r"([\w.]+)=", first)
        return f"unexpected argument {first!r}" + (f": config keys are typed --config.{first}" if meant else end)
    options = [option for action in made._actions for option in action.option_strings]
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.75)
    if close:
        return f"{name}: there is no such option (did you mean {close[0]}?)"
    try:
        known = [key.name for key in config_files.keys_with_comments(config)] if config else []
    except ConfigError:
        known = []
    key = overrides.likely(name.lstrip("-").replace("-", "_"), known)
    if key:
        return f"{name}: there is no such option; the config has the key {key}: type --config.{key}=VALUE"
    return f"{name}: there is no such option{end}"


def _settle_places(found: argparse.Namespace, program: str) -> None:
    """Give each `place` its value: those that were not typed as options, in the order in which paths were typed."""
    places = getattr(found, "places", ())
    typed = [value for name, _ in places if (value := getattr(found, f"{name}_place")) is not None]
    for name, _ in places:
        if getattr(found, name) is None and typed:
            setattr(found, name, typed.pop(0))
    missing = [name.upper() for name, required in places if required and getattr(found, name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        whole = " ".join([program, *(name.upper() for name, _ in places)])
        raise UsageError(f"{' and '.join(missing)} {verb} missing: {whole}; `{program} --help` shows what there is")
    if typed:
        raise UsageError(f"unexpected argument {typed[0]!r}; `{program} --help` shows what there is")


def _value(arguments: Sequence[str], option: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None
