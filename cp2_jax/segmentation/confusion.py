"""Confusion matrices, in integers on the device, and the scores that follow from one matrix over a whole split."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int64, Integer

from cp2_jax.segmentation import boundaries


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

    Attributes:
      iou: per class, intersection over union; nan for a class with neither a true nor a predicted pixel.
      accuracy: per class, share of its true pixels that were found (recall); nan for a class without true pixels.
      dice: per class, twice the intersection over the sum of true and predicted pixels (F1); nan as `iou`.
      boundary_iou: per class, see `boundaries`; nan for a class without a border; None if it was not counted.
      mean_iou, mean_accuracy, mean_dice, mean_boundary_iou: means over the classes that are not nan, as MMSegmentation's.
      pixel_accuracy: share of all labelled pixels that are right.
      class_names: in the order of the above; empty where they are not known.
    """

    iou: Float[np.ndarray, " num_classes"]
    accuracy: Float[np.ndarray, " num_classes"]
    dice: Float[np.ndarray, " num_classes"]
    boundary_iou: Float[np.ndarray, " num_classes"] | None
    mean_iou: float
    mean_accuracy: float
    mean_dice: float
    mean_boundary_iou: float
    pixel_accuracy: float
    class_names: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the table that `cp2 evaluate` prints."""
        return table(self, self._names())

    def as_dict(self) -> dict:
        """Return plain values, for JSON for example: those per class by name; None where nan."""
        return as_dict(self, self._names())

    def _names(self) -> Sequence[str]:
        return self.class_names or [str(number) for number in range(len(self.iou))]


def scores(
    matrix: Integer[np.ndarray, "num_classes num_classes"], boundary: Int64[np.ndarray, "3 num_classes"] | None = None
) -> Scores:
    """Return the scores of a confusion matrix.

    Args:
      matrix: of integers, rows = truth, columns = prediction.
      boundary: counts of `boundaries.count`, summed over the images.

    Raises:
      ValueError: if the matrix is not square or not of integers (sums in floating point lose pixels).
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(f"a square matrix of integers is needed, not {matrix.dtype} {matrix.shape}")
    matrix = matrix.astype(np.int64)
    right = np.diag(matrix)
    true, predicted = matrix.sum(1), matrix.sum(0)
    iou, accuracy = _ratio(right, true + predicted - right), _ratio(right, true)
    dice = _ratio(2 * right, true + predicted)
    boundary_iou = None if boundary is None else boundaries.iou(boundary)
    return Scores(
        iou=iou,
        accuracy=accuracy,
        dice=dice,
        boundary_iou=boundary_iou,
        mean_iou=_mean(iou),
        mean_accuracy=_mean(accuracy),
        mean_dice=_mean(dice),
        mean_boundary_iou=float("nan") if boundary_iou is None else _mean(boundary_iou),
        pixel_accuracy=float(_ratio(right.sum(), true.sum())),
    )


def _ratio(part, whole) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    """Mean without the nan; nan if nothing else is there (`np.nanmean` would warn)."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")


# The scores of each class, and what the table calls them.
_PER_CLASS = {"iou": "IoU %", "accuracy": "acc %", "dice": "Dice %", "boundary_iou": "border %"}


def as_dict(result: Scores, class_names: Sequence[str]) -> dict:
    """Return the scores as plain values for JSON, per class by name; None where nan."""
    found = {"mean_iou": _plain(result.mean_iou), "mean_accuracy": _plain(result.mean_accuracy)}
    found |= {"mean_dice": _plain(result.mean_dice), "mean_boundary_iou": _plain(result.mean_boundary_iou)}
    found["pixel_accuracy"] = _plain(result.pixel_accuracy)
    for kind in _PER_CLASS:
        if (values := getattr(result, kind)) is not None:
            found[kind] = {name: _plain(value) for name, value in zip(class_names, values, strict=True)}
    return found


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def table(result: Scores, class_names: Sequence[str]) -> str:
    """Return a table of all scores in percent, a line a class; '-' for a class that the split does not have."""
    kinds = {kind: title for kind, title in _PER_CLASS.items() if getattr(result, kind) is not None}
    width = max(14, *(len(name) for name in class_names))
    lines = [" ".join([f"{'class':{width}}", *(f"{title:>8}" for title in kinds.values())])]
    for name, *values in zip(class_names, *(getattr(result, kind) for kind in kinds), strict=True):
        lines.append(" ".join([f"{name:{width}}", *map(_shown, values)]))
    lines.append(" ".join([f"{'mean':{width}}", *(_shown(getattr(result, f"mean_{kind}")) for kind in kinds)]))
    lines.append(f"{'pixel accuracy':{width}} {'':8} {_shown(result.pixel_accuracy)}")
    return "\n".join(lines)


def _shown(value: float) -> str:
    return f"{'-':>8}" if np.isnan(value) else f"{100 * value:8.2f}"
