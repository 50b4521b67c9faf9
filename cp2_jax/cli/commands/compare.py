"""`cp2 compare`: scores of several finetuning runs side by side."""

import argparse
import pathlib

from cp2_jax.cli import command

TEXT = """\
Set the scores of finetuning runs side by side, then say where their pictures
are. Several runs under one name are seeds of the same thing: mean and standard
deviation.

  cp2 compare CP2=runs/a CP2=runs/b scratch=runs/c"""


def _options(made):
    made.add_argument("runs", metavar="NAME=WORKDIR", nargs="+", type=_named, help="a run and what to call it")


def _named(text):
    name, equals, workdir = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text}: give a name and a run, such as CP2={text}")
    return name, pathlib.Path(command.path(workdir))


def _run(arguments):
    from cp2_jax.segmentation.evaluation import read_scores

    runs: dict[str, list[pathlib.Path]] = {}
    for name, workdir in arguments.runs:
        runs.setdefault(name, []).append(workdir)
    width = max(map(len, runs))
    print(f"{'':{width}}  {'mIoU %':>13}  {'pixel acc. %':>13}")
    for name, workdirs in runs.items():
        scores = [read_scores(workdir) for workdir in workdirs]
        print(f"{name:{width}}  " + "  ".join(_cell([s[key] for s in scores]) for key in ("mean_iou", "pixel_accuracy")))
    for name, workdirs in runs.items():
        for picture in sorted((workdirs[0] / "pictures").glob("*.png")):
            print(f"{name:{width}}  {picture}")


def _cell(values):
    import numpy as np

    text = f"{100 * np.mean(values):.2f}" + (f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
    return f"{text:>13}"


COMMAND = command.Command(TEXT, _options, _run)
