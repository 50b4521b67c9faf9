"""A labelled split held against its config: every pair is decoded, and all that is wrong is listed."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from ml_collections import ConfigDict

from cp2_jax.data.ahead import ahead
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.labelled import survey
from cp2_jax.data.labelled.examples import Examples, layout, open_examples
from cp2_jax.data.labelled.pairs import match_pairs
from cp2_jax.lines import wrap
from cp2_jax.runs import progress

_THREADS = 4  # that decode


@dataclasses.dataclass(frozen=True)
class Check:
    """What is in a split.

    Attributes:
      split: its name.
      images: number of good pairs.
      sizes: (height, width) → number of images.
      pixels: int64 [256], of each label after mapping.
      present: int64 [256], images in which it occurs.
      problems: a line each.
      whole: the split itself.
    """

    split: str
    images: int
    sizes: collections.Counter
    pixels: np.ndarray
    present: np.ndarray
    problems: list[str]
    whole: Examples | None = None


def check_split(data: ConfigDict, split: str) -> Check:
    """Decode every pair of a split.

    Args:
      data: a finetuning config's `data`, with classes resolved.

    Raises:
      SegmentationError: if there is no split at all (a missing folder or list); all else is a problem in the result.
    """
    if data.source == "folder":
        pairs, problems = match_pairs(data.path, split, **layout(data))
        whole = open_examples(data, split, pairs=pairs)
    else:
        whole, problems = open_examples(data, split), []
    sizes, pixels, present = collections.Counter(), np.zeros(256, np.int64), np.zeros(256, np.int64)
    palettes = survey.Palettes()
    with ThreadPoolExecutor(_THREADS) as pool:
        work = ((_look, whole, index) for index in range(len(whole)))
        looked = progress.track(ahead(pool, work, 2 * _THREADS), f"checking {split}", len(whole))
        for index, (problem, size, count, colors) in enumerate(looked):
            place = whole.places(index)[1]
            if problem := problem or palettes.conflict(colors, place):
                problems.append(problem)
                continue
            palettes.add(colors, place)
            survey.remark_on_other_order(colors, whole.table, data.class_names, whole.colors, place)
            sizes[size] += 1
            pixels += count
            present += count > 0
    which = f"all {sizes.total()} masks"
    if alone := survey.only_one_class(pixels, data.class_names, data.ignore_label, split, which):
        problems.append(alone)
    return Check(split, sizes.total(), sizes, pixels, present, problems, whole)


def first_problem(examples: Examples, indices: Sequence[int]) -> Exception | None:
    """Decode some pairs and return the error of the first that cannot be used, or None.

    Args:
      indices: which pairs.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        read = ahead(pool, ((examples.read, index) for index in indices), 2 * _THREADS)
        try:
            collections.deque(progress.track(read, "looking at the images to evaluate", len(indices)), maxlen=0)
        except (SegmentationError, UnreadableImage) as error:
            return error
    return None


def _look(examples: Examples, index: int):
    """Return a problem or "", size, number of pixels of each label, and the mask's colours."""
    try:
        _, mask, values = examples.read(index)
    except (SegmentationError, UnreadableImage) as error:
        return str(error), None, None, {}
    labels = np.zeros(256, np.int64)
    known = examples.table >= 0
    np.add.at(labels, examples.table[known], values[known])
    return "", mask.values.shape, labels, survey.used_colors(mask, np.flatnonzero(values))


def report(checks: Sequence[Check], names: Sequence[str], ignore_label: int = 255, limit: int = 20) -> str:
    """Return tables of images and sizes and of labels (share of the labelled pixels, images), and the problems.

    Args:
      limit: of problems shown for each split.
    """
    names_of = max(len("split"), *(len(check.split) for check in checks))
    lines = [f"{'split':{names_of}} {'images':>8} {'sizes':>6}  smallest to largest"]
    for check in checks:
        extent = "-"
        if check.sizes:
            ordered = sorted(check.sizes, key=lambda size: size[0] * size[1])
            extent = " to ".join(dict.fromkeys(f"{w}x{h}" for h, w in (ordered[0], ordered[-1])))
        lines.append(f"{check.split:{names_of}} {check.images:8,d} {len(check.sizes):6d}  {extent}")
    width = max(8, *(len(name) for name in names))
    title = "".join(f" {check.split.split('/')[-1][:20]:>20}" for check in checks)
    lines += ["", "% of the labelled pixels, and number of images", f"{'label':>5} {'class':{width}}{title}"]
    for label in [*range(len(names)), ignore_label]:
        cells = ""
        for check in checks:
            labelled = max(int(check.pixels[: len(names)].sum()), 1)
            of = labelled if label < len(names) else max(int(check.pixels.sum()), 1)
            cells += f" {100 * check.pixels[label] / of:12.3f} {check.present[label]:7,d}"
        name = names[label] if label < len(names) else "(ignored; % of all pixels)"
        lines.append(f"{label:5d} {name:{width}}{cells}")
    for check in checks:
        absent = [name for label, name in enumerate(names) if not check.present[label]]
        if absent and check.images:
            text = f"{check.split}: no pixel of {len(absent)} of {len(names)} classes: {', '.join(absent)}"
            lines += wrap(text, further="  ", most=3, rest=" … (0 images above)")
        if check.problems:
            lines += ["", f"{check.split}: {len(check.problems)} problems"]
            lines += [f"  {problem}" for problem in check.problems[:limit]]
            lines += [f"  … and {len(check.problems) - limit} more"] if len(check.problems) > limit else []
    if (
        len(checks) == 2
        and all(check.whole for check in checks)
        and (shared := survey.shared_images(*(check.whole for check in checks), *(c.split for c in checks)))
    ):
        lines += ["", f"mind: {shared}"]
    return "\n".join(lines)
