"""The commands on the pages, as they are typed there: each is one that the command line takes."""

import importlib
import pathlib
import re
import shlex

import pytest
from helpers.paths import ROOT

from cp2_jax.cli import command
from cp2_jax.cli.main import COMMANDS


def commands(path: pathlib.Path) -> list[str]:
    """Return the lines of a file that begin with `cp2 `, in code blocks and docstrings, continued lines joined."""
    text = re.sub(r"\\+\n\s*", "", path.read_text())
    lines = [line.strip().removesuffix('"""') for line in text.splitlines() if re.match(r"( {2,})?cp2 [a-z]", line)]
    return [line for line in lines if "…" not in line]  # "and so on"


PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("configs/*.py"))]
PAGES += sorted(ROOT.glob("cp2_jax/cli/commands/*.py"))


def check(line: str) -> None:
    """Read a command line as `cp2` does, its config too."""
    typed = re.sub(r"\[--[^]]*\]", "", line)  # what a page marks as optional
    _, name, *arguments = shlex.split(typed, comments=True)
    made = importlib.import_module(f"cp2_jax.cli.commands.{name.replace('-', '_')}").COMMAND
    found = command.read(made, f"cp2 {name}", arguments)
    if made.config and (found.config or found.changes):
        command.changed(found.config or made.config, found.changes)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_on_a_page_are_understood(page):
    for line in commands(page):
        assert line.split()[1] in COMMANDS, line
        try:
            check(line)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{page.name}: {line}: {error}") from error


def test_there_are_many_and_wrong_ones_are_found():
    assert sum(len(commands(page)) for page in PAGES) > 60
    for wrong in ("cp2 pretrain photos runs/photos --trackers=mlflow", "cp2 finetune a b --config.batchsize=4"):
        with pytest.raises(Exception, match="trackers|batch_size"):
            check(wrong)
