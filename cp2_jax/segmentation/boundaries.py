"""Boundary IoU (Cheng et al., CVPR 2021): intersection over union of the pixels that lie near a class's own border.

Near is within d pixels, in both directions, of a pixel that is of another class or outside the image; d is 2% of the
image's diagonal. The mean IoU hardly sees a border that is wrong by a few pixels, for large objects are mostly inside.
"""

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int64, UInt8

SHARE = 0.02  # of the diagonal


def near_border(labels: UInt8[np.ndarray, "height width"], distance: int) -> Bool[np.ndarray, "height width"]:
    """Return which pixels have another label, or no image, within `distance` pixels."""
    kernel = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    # Once for all classes: where the largest and the smallest label around a pixel are the same, so are all.
    near = cv2.dilate(labels, kernel) != cv2.erode(labels, kernel)
    near[:distance] = near[-distance:] = True
    near[:, :distance] = near[:, -distance:] = True
    return near


def count(
    truth: UInt8[np.ndarray, "height width"], predicted: UInt8[np.ndarray, "height width"], num_classes: int
) -> Int64[np.ndarray, "3 num_classes"]:
    """Count, for each class, the pixels near its border: in both maps, in the truth, in the prediction.

    Args:
      truth: true labels; pixels outside [0, num_classes), such as 255, are not counted.
      predicted: classes in [0, num_classes).
    """
    distance = max(1, round(SHARE * float(np.hypot(*truth.shape))))
    labelled = truth < num_classes
    true = np.where(labelled & near_border(truth, distance), truth, 255)
    found = np.where(labelled & near_border(predicted, distance), predicted, 255)
    parts = (true[true == found], true, found)
    return np.stack([np.bincount(part.ravel(), minlength=256)[:num_classes] for part in parts]).astype(np.int64)


def iou(counts: Int64[np.ndarray, "3 num_classes"]) -> Float[np.ndarray, " num_classes"]:
    """Return the boundary IoU of each class, from counts of any number of images; nan for a class without a border."""
    both, true, found = counts.astype(np.float64)
    union = true + found - both
    return np.divide(both, union, out=np.full(union.shape, np.nan), where=union > 0)
