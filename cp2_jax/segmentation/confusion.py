"""Confusion matrices, in integers on the device, and the scores that follow from one matrix over a whole split."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


def confusion_matrix(
    label: Int[Array, "batch height width"], prediction: Int[Array, "batch height width"], num_classes: int
) -> Int[Array, "batch num_classes num_classes"]:
    """Count, for each image, the pixels of each true class (row) that were given each class (column).

    Args:
      label: true classes, any integer type; pixels outside [0, num_classes), such as 255, are not counted.
      prediction: classes in [0, num_classes).
      num_classes: static.

    Returns:
      int32, one matrix an image: exact up to 2^31 pixels. Add the matrices of a split up in int64 on the host.
    """
    batch = label.shape[0]
    truth = label.reshape(batch, -1).astype(jnp.int32)
    guess = prediction.reshape(batch, -1).astype(jnp.int32)
    counted = (truth >= 0) & (truth < num_classes)
    cell = jnp.where(counted, truth * num_classes + guess, num_classes * num_classes)
    # One spare cell takes what is not counted. Images are kept apart so that the batch may be split over devices.
    count = jax.vmap(lambda c: jnp.zeros(num_classes * num_classes + 1, jnp.int32).at[c].add(1))(cell)
    return count[:, :-1].reshape(batch, num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix; all in [0, 1], nan where nothing can be said.

    iou: per class, intersection over union; nan for a class with neither a true nor a predicted pixel.
    accuracy: per class, share of its true pixels that were found (recall); nan for a class without true pixels.
    mean_iou, mean_accuracy: means over the classes that are not nan, as MMSegmentation's.
    pixel_accuracy: share of all labelled pixels that are right.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    mean_iou: float
    mean_accuracy: float
    pixel_accuracy: float


def scores(matrix: np.ndarray) -> Scores:
    """Return the scores of an integer matrix [num_classes, num_classes], rows = truth, columns = prediction.

    Raises:
      ValueError: if the matrix is not square or not of integers (sums in floating point lose pixels).
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(f"a square matrix of integers is needed, not {matrix.dtype} {matrix.shape}")
    matrix = matrix.astype(np.int64)
    right = np.diag(matrix)
    true, predicted = matrix.sum(1), matrix.sum(0)
    return Scores(
        iou=_ratio(right, true + predicted - right),
        accuracy=_ratio(right, true),
        mean_iou=_mean(_ratio(right, true + predicted - right)),
        mean_accuracy=_mean(_ratio(right, true)),
        pixel_accuracy=float(_ratio(right.sum(), true.sum())),
    )


def _ratio(part, whole) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Mean without the nan; nan if nothing else is there (`np.nanmean` would warn)."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


def as_dict(result: Scores, class_names: Sequence[str]) -> dict:
    """Return the scores as plain values for JSON, per class by name; None where nan."""
    plain = lambda value: None if np.isnan(value) else float(value)  # noqa: E731
    return {
        "mean_iou": plain(result.mean_iou),
        "mean_accuracy": plain(result.mean_accuracy),
        "pixel_accuracy": plain(result.pixel_accuracy),
        "iou": {name: plain(value) for name, value in zip(class_names, result.iou, strict=True)},
        "accuracy": {name: plain(value) for name, value in zip(class_names, result.accuracy, strict=True)},
    }


def table(result: Scores, class_names: Sequence[str]) -> str:
    """Return a table of all scores in percent, a line a class; '-' for a class that the split does not have."""
    show = lambda value: f"{'-':>8}" if np.isnan(value) else f"{100 * value:8.2f}"  # noqa: E731
    width = max(14, *(len(name) for name in class_names))
    lines = [f"{'class':{width}} {'IoU %':>8} {'acc %':>8}"]
    for name, iou, accuracy in zip(class_names, result.iou, result.accuracy, strict=True):
        lines.append(f"{name:{width}} {show(iou)} {show(accuracy)}")
    lines.append(f"{'mean':{width}} {show(result.mean_iou)} {show(result.mean_accuracy)}")
    lines.append(f"{'pixel accuracy':{width}} {'':8} {show(result.pixel_accuracy)}")
    return "\n".join(lines)
