"""Counts of an evaluation, batch by batch, in whichever order the devices of the processes come."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Int32, UInt8

from cp2_jax.data.errors import SegmentationError
from cp2_jax.runs import mesh
from cp2_jax.segmentation import boundaries, confusion
from cp2_jax.segmentation.batching import Batch

Keep = Callable[[int, UInt8[np.ndarray, "height width"]], None]


class Tally:
    """Adds up what is counted, and sees that no labelled pixel gets lost.

    Attributes:
      matrix, boundary, image_miou: see `evaluation.Evaluation`.

    Args:
      images: number of images of the split.
      num_classes: of the labels.
      rows: which rows of a batch this process has, `mesh.local_rows`.
      keep: called as (index, class map) for each image of these rows.
    """

    def __init__(self, images: int, num_classes: int, rows: Sequence[int], keep: Keep | None):
        self.matrix = np.zeros((num_classes, num_classes), np.int64)
        self.boundary = np.zeros((3, num_classes), np.int64)
        self.image_miou = np.full(images, np.nan)
        self._rows, self._keep, self._labelled = rows, keep, 0

    def add(
        self,
        batch: Batch,
        labels: UInt8[np.ndarray, "rows height width"],
        sizes: Int32[np.ndarray, "rows 2"],
        predicted: UInt8[Array, "batch height width"],
        matrices: Int32[Array, "batch classes classes"],
    ) -> None:
        """Take one batch.

        Args:
          labels, sizes: of this process's rows.
          predicted, matrices: of all.

        Raises:
          SegmentationError: if not every labelled pixel was counted.
        """
        matrices, classes = np.asarray(matrices), len(self.matrix)
        for index, one in zip(batch.indices, matrices, strict=True):
            if index >= 0:
                np.add(self.matrix, one, out=self.matrix)
                self.image_miou[index] = confusion.scores(one).mean_iou
        here = zip(self._rows, labels, sizes, mesh.local_part(predicted), strict=True)
        for row, label, (height, width), found in here:
            index, labelled = batch.indices[row], int((label < classes).sum())
            _check_count(int(matrices[row].sum()), labelled, f"image {index}")
            self._labelled += labelled
            if index >= 0:
                found = found[:height, :width]
                self.boundary += boundaries.count(label[:height, :width], found, classes)
                if self._keep:
                    self._keep(index, found)

    def close(self) -> None:
        """Take the other processes' counts; all call it.

        Raises:
          SegmentationError: if not every labelled pixel was counted.
        """
        _check_count(int(self.matrix.sum()), int(mesh.sum_over_processes(np.int64(self._labelled))), "all images")
        self.boundary = mesh.sum_over_processes(self.boundary)


def _check_count(counted: int, labelled: int, what: str) -> None:
    """Refuse a confusion matrix that does not hold every labelled pixel: rows were lost between hosts and devices."""
    if counted != labelled:
        raise SegmentationError(
            f"the confusion matrix holds {counted} pixels of {what}, of which {labelled} are labelled: images were lost or "
            "changed places on their way to the devices. This is a fault of cp2_jax; please report it"
        )
