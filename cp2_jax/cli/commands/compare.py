"""`cp2 compare`: scores of several finetuning runs side by side."""

import argparse

from cp2_jax.cli import command
from cp2_jax.paths import AnyPath, at

TEXT = """\
Set the scores of finetuning runs side by side, then say where their pictures
are. Several runs under one name are seeds of the same thing: mean and standard
deviation. Scores of different images are not compared. Of a second split that
was evaluated, name the file.

  cp2 compare CP2=runs/a CP2=runs/b scratch=runs/c
  cp2 compare a=runs/a/scores_test.json b=runs/b/scores_test.json"""


def _options(made):
    made.add_argument("runs", metavar="NAME=WORKDIR", nargs="+", type=_named, help="a run or file of scores, and its name")


def _named(text):
    name, equals, workdir = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: give a name and a run, such as CP2={text}")
    return name, at(command.path(workdir))


def _run(arguments):
    from cp2_jax.segmentation import reports

    runs: dict[str, list[AnyPath]] = {}
    for name, workdir in arguments.runs:
        runs.setdefault(name, []).append(workdir)
    print(reports.compare(runs))
    width = max(map(len, runs))
    for name, places in runs.items():
        workdir = places[0].parent if places[0].suffix == ".json" else places[0]
        for picture in sorted((workdir / "pictures").glob("*.png")):
            print(f"{name:{width}}  {picture}")


COMMAND = command.Command(TEXT, _options, _run)
