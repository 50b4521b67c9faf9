"""A finetuned model scored on labelled images, and its class maps of a folder: `cp2 evaluate` and `cp2 predict`."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from cp2_jax.interface import kinds, overrides, processes
from cp2_jax.options import flatten
from cp2_jax.paths import at
from cp2_jax.segmentation import run as segmentation
from cp2_jax.segmentation import saved
from cp2_jax.segmentation.confusion import Scores
from cp2_jax.segmentation.run import Predicted, Scored


def evaluate(
    run: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    *,
    predictions: str | os.PathLike | None = None,
    changes: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Scores:
    """Score a finetuned model on its validation images, or on others; the table is printed and kept in `scores.json`.

    Example:
      scores = cp2_jax.evaluate("runs/mine")
      scores.mean_iou, scores.as_dict()["iou"]  # 0.49, {"road": 0.77, …}, values that JSON can write
      cp2_jax.evaluate("runs/mine", "best", data={"eval_split": "test"}, evaluation={"flip": True})

    Args:
      run: the work directory of a finetuning.
      checkpoint: which one of it: "newest" (the default), "best", or the number of a step.
      predictions: folder for the class map of every image, with the values that the data set's masks have.
      changes, keys: values of the sections `data` and `evaluation` of the run's config, as for `pretrain`.

    Returns:
      The scores; `scores.iou` has the classes in the order of `scores.class_names`, and `print(scores)` shows the table.

    Raises:
      CheckpointError: there is no checkpoint, or it is of a pretraining.
      ConfigError: a key or value that cannot be, or that would make another network.
      SegmentationError, SourceError: the images or masks cannot be opened.
    """
    return run_evaluation(run, checkpoint, adapt=_adapt(changes, keys), predictions=predictions, python=True).scores


def predict(
    run: str | os.PathLike,
    images: str | os.PathLike,
    output: str | os.PathLike,
    checkpoint: str | os.PathLike | None = None,
    *,
    mask_values: bool = False,
    changes: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Predicted:
    """Write the class maps of a folder of images into `output/masks`, and pictures of them into `output/overlays`.

    For single images in memory see `load_segmenter`.

    Example:
      cp2_jax.predict("runs/mine", "photos", "predicted").problems

    Args:
      run, checkpoint: see `evaluate`.
      images: folder, nested or flat.
      output: may lie inside `images`.
      mask_values: write the values of the data set's own masks, not class indices.
      changes, keys: see `evaluate`; such as `evaluation={"window": (512, 512), "stride": (341, 341)}`.

    Returns:
      How many images were predicted, and a line for each that was not.

    Raises:
      CheckpointError, ConfigError, SourceError: see `evaluate`.
      SegmentationError: the folder holds masks that no prediction wrote, or cannot be written.
    """
    return run_prediction(run, images, output, checkpoint, adapt=_adapt(changes, keys), own_values=mask_values)


def run_evaluation(run, checkpoint=None, *, config=None, adapt=None, predictions=None, python: bool = False) -> Scored:
    """Evaluate, and say where the scores are and what to do next; for the arguments see `segmentation.run.evaluate`.

    Args:
      python: say it as a line of Python instead of one of the command line.

    Raises:
      CheckpointError, ConfigError, SegmentationError, SourceError: see `evaluate`.
    """
    kinds.refuse_images(run)
    with processes.ready():
        found = segmentation.evaluate(
            at(run), checkpoint=_which(checkpoint), config=config, adapt=adapt, predictions=predictions
        )
    run_at = processes.relative(run)
    typed = (
        f'cp2_jax.predict("{run_at}", IMAGES, OUTPUT)'
        if python
        else f"cp2 predict {processes.quoted(run_at)} IMAGES OUTPUT"
    )
    print(f"scores in {processes.relative(found.path)}\nnext: {typed}")
    return found


def run_prediction(run, images, output, checkpoint=None, *, config=None, adapt=None, own_values: bool = False) -> Predicted:
    """Predict, and say what was written; for the arguments see `segmentation.run.predict`.

    Raises:
      CheckpointError, ConfigError, SegmentationError, SourceError: see `predict`.
    """
    kinds.refuse_images(run)
    kinds.refuse_a_list(images, "use cp2_jax.load_segmenter(run).predict(images)")
    kinds.refuse_a_model(images)
    with processes.ready():
        done = segmentation.predict(
            run, images, output, checkpoint=_which(checkpoint), config=config, adapt=adapt, own_values=own_values
        )
    left = f", {len(done.problems)} not predicted" if done.problems else ""
    print(f"{done.count} images{left}; masks and overlays in {done.output}")
    return done


def _which(checkpoint: str | int | os.PathLike | None) -> str | None:
    return None if checkpoint is None else str(checkpoint)


def _adapt(changes: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> Callable[[ConfigDict], None]:
    given = overrides.merged(changes, keys)
    saved.refuse_training(flatten(given))
    return lambda config: overrides.update(config, given)


def typed(changes: Sequence[tuple[str, str]]) -> Callable[[ConfigDict], None]:
    """Return `adapt` of `run_evaluation` and `run_prediction` for changes that were typed.

    Args:
      changes: pairs (key, text), see `overrides.parse`.

    Raises:
      ConfigError: a key that changes nothing of a test.
    """
    saved.refuse_training(name for name, _ in changes)
    return lambda config: overrides.parse(config, changes)
