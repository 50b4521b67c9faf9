"""Scores of several finetuning runs side by side: python scripts/compare.py NAME=WORKDIR [NAME=WORKDIR ...]

Several directories under one NAME are seeds of the same thing: mean and standard deviation. Then where their pictures are.
"""

import pathlib

import _cli
import numpy as np

from cp2_jax.segmentation.evaluation import read_scores


def main(argv):
    if len(argv) < 2 or any("=" not in argument for argument in argv[1:]):
        _cli.fail("usage: compare.py NAME=WORKDIR [NAME=WORKDIR ...]", 2)
    runs: dict[str, list[pathlib.Path]] = {}
    for argument in argv[1:]:
        name, _, workdir = argument.partition("=")
        runs.setdefault(name, []).append(pathlib.Path(workdir))
    width = max(map(len, runs))
    print(f"{'':{width}}  {'mIoU %':>13}  {'pixel acc. %':>13}")
    for name, workdirs in runs.items():
        scores = [read_scores(workdir) for workdir in workdirs]
        print(f"{name:{width}}  " + "  ".join(_cell([s[key] for s in scores]) for key in ("mean_iou", "pixel_accuracy")))
    for name, workdirs in runs.items():
        for picture in sorted((workdirs[0] / "pictures").glob("*.png")):
            print(f"{name:{width}}  {picture}")


def _cell(values):
    text = f"{100 * np.mean(values):.2f}" + (f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
    return f"{text:>13}"


if __name__ == "__main__":
    _cli.run(main)
