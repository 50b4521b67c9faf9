"""What an evaluation comes to, as text and as files; scores of several runs side by side."""

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cp2_jax.options import ConfigError, flatten
from cp2_jax.paths import AnyPath, at, save_json
from cp2_jax.segmentation import confusion


@dataclasses.dataclass(frozen=True)
class Split:
    """Which images were scored.

    Attributes:
      name: as the config has it, such as "val" or "ImageSets/Segmentation/val.txt".
      digest: of the names of the images, which are the same wherever the data set lies.
    """

    name: str
    digest: str

    def as_dict(self) -> dict[str, str]:
        """Return what scores say about their split."""
        return {"split": self.name, "split_digest": self.digest}


def report(result: Any, class_names: Sequence[str]) -> str:
    """Return the table of scores of an `evaluation.Evaluation` and a line on how they came about."""
    images = len(result.image_miou)
    return (
        f"{confusion.table(result.scores, class_names)}\n"
        f"{images} images in {result.seconds:.1f} s ({images / result.seconds:.2f} a second, {result.waited:.1f} s "
        f"waiting for input), {result.compilations} program{'s' * (result.compilations != 1)} compiled"
    )


def write_json(path: str | AnyPath, result: Any, class_names: Sequence[str], extra: dict) -> None:
    """Write scores, confusion matrix and `extra` (split, checkpoint, step, protocol) as JSON."""
    values = extra | confusion.as_dict(result.scores, class_names)
    values |= {"images": len(result.image_miou), "matrix": result.matrix.tolist()}
    save_json(path, values)


def scores_path(workdir: str | AnyPath, split: Split, own: bool) -> AnyPath:
    """Return where the scores of a split belong, so that no other split's are overwritten.

    Args:
      own: whether the run itself is evaluated on this split: then `scores.json`. Otherwise `scores_SPLIT.json`, with a
        part of the digest where this name is taken by other images.
    """
    workdir = at(workdir)
    if own:
        return workdir / "scores.json"
    name = re.sub(r"[^\w.-]+", "_", pathlib.PurePath(split.name).stem) or "split"
    names = [f"scores_{name}.json", f"scores_{name}_{split.digest[:6]}.json"]
    return next((path for path in (workdir / name for name in names) if is_free(path, split)), workdir / names[-1])


def is_free(path: AnyPath, split: Split) -> bool:
    """Say whether a file of scores may be written for a split: it is not there, or holds scores of the same images."""
    try:
        return json.loads(path.read_text("utf-8")).get("split_digest", split.digest) == split.digest
    except (OSError, ValueError, AttributeError):  # absent, half written by an older version, or something else
        return True


def read_scores(place: str | AnyPath) -> dict:
    """Return the scores of a run.

    Args:
      place: a work directory, whose `scores.json` is read, or a file of scores.

    Raises:
      ConfigError: if there are none, or the file is no JSON: the run is not finished, or is no finetuning.
    """
    path = at(place)
    path = path if path.suffix == ".json" else path / "scores.json"
    try:
        scores = json.loads(path.read_text("utf-8"))
        _ = scores["mean_iou"], scores["pixel_accuracy"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        config, job = path.parent / "config.json", ""
        if path.name == "scores.json" and config.is_file():
            with contextlib.suppress(OSError, ValueError, AttributeError):
                job = json.loads(config.read_text("utf-8")).get("kind", "")
        if job == "pretrain":
            raise ConfigError(f"{place} is a pretraining run, which has no scores: finetune it first") from error
        reason = "there is none" if isinstance(error, FileNotFoundError) else str(error)
        raise ConfigError(f"no scores of a finished finetuning in {path}: {reason}") from error
    return scores


def compare(runs: Mapping[str, Sequence[str | AnyPath]]) -> str:
    """Return a table of the scores of several runs; of several seeds under one name, mean and standard deviation.

    Args:
      runs: name → work directories or files of scores.

    Raises:
      ConfigError: if scores cannot be read, or are of different images.
    """
    scores = {place: read_scores(place) for places in runs.values() for place in places}
    _same_split(scores)
    width = max(map(len, runs))
    lines = [f"{'':{width}}  {'mIoU %':>13}  {'pixel acc. %':>13}"]
    for name, places in runs.items():
        cells = [_cell([scores[place][key] for place in places]) for key in ("mean_iou", "pixel_accuracy")]
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    return "\n".join([*lines, *_other_protocols(scores)])


def _same_split(scores: Mapping[Any, Mapping]) -> None:
    """Refuse to compare scores of different images. Older files say only how many images there were."""
    (first, one), *others = scores.items()
    for place, other in others:
        digests = {one.get("split_digest"), other.get("split_digest")} - {None}
        if len(digests) > 1 or one.get("images") != other.get("images"):
            said = [
                f"{where}: {found.get('images', '?')} images of split {found.get('split', '(not recorded)')}"
                for where, found in ((first, one), (place, other))
            ]
            raise ConfigError(
                f"these scores are of different images and cannot be compared: {'; '.join(said)}. Evaluate both on the "
                "same split: cp2 evaluate RUN --config.data.eval_split=SPLIT, then name the file RUN/scores_SPLIT.json"
            )


def _other_protocols(scores: Mapping[Any, Mapping]) -> list[str]:
    """Return a line for each scores that were made by another protocol than the first."""
    ignored = ("batch_size", "programs", "limit")
    flat = {place: flatten(found.get("protocol") or {}) for place, found in scores.items()}
    (first, one), *others = flat.items()
    lines = []
    for place, other in others:
        keys = sorted(key for key in one.keys() & other.keys() if key not in ignored and one[key] != other[key])
        if keys:
            said = ", ".join(f"{key}={other[key]} ({first}: {one[key]})" for key in keys)
            lines.append(f"mind: {place} was tested in another way: {said}")
    return lines


def _cell(values: Sequence[float]) -> str:
    values = [np.nan if value is None else value for value in values]
    text = f"{100 * np.mean(values):.2f}" + (f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
    return f"{text:>13}"
