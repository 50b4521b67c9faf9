"""Which images are predicted together, and on which canvas. Decided on the host, from nothing but their sizes."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cp2_jax.segmentation.options import EvaluationOptions


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are predicted together.

    Attributes:
      indices: of the images; -1 fills up the last batch of a group.
      views: (height, width) of the canvas of each view.
      shape: (height, width) of the canvas of labels and result.
      padded: whether images may be smaller than their canvas.
    """

    indices: tuple[int, ...]
    views: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    padded: bool


def plan(
    sizes: Sequence[tuple[int, int]], options: EvaluationOptions, batch_size: int, programs: int = 0, canvas: int = 0
) -> list[Batch]:
    """Return batches that hold every image once.

    Images of one size share a canvas of that size, without padding. If there are more sizes than `programs`, and the
    network can be masked and sees whole images, similar sizes share a larger canvas. Every batch is full, if need be with
    rows of no image, so that all images of a group run in the same program.

    Args:
      sizes: (height, width) of each image.
      batch_size: images of a batch.
      programs: the largest number of canvases; 0: one for each size.
      canvas: the number that the sides of a canvas are multiples of, for a network that can be masked; 0 for any other.
    """
    members: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        members.setdefault(tuple(size), []).append(index)
    distinct = sorted(members)
    first_views = [options.sizes(size)[0] for size in distinct]
    counts = [len(members[size]) for size in distinct]
    maskable = canvas and not options.window
    batches = []
    for joined in map(sorted, group(first_views, counts, programs if maskable else 0, max(canvas, 1))):
        shape = _largest([distinct[i] for i in joined])
        views = [_largest(view) for view in zip(*(options.sizes(distinct[i]) for i in joined), strict=True)]
        mixed = len(joined) > 1
        if mixed:
            views = [round_up(view, canvas) for view in views]
        indices = [index for i in joined for index in members[distinct[i]]]
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            batch += [-1] * (batch_size - len(batch))
            batches.append(Batch(tuple(batch), tuple(views), shape, mixed))
    return batches


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return tuple(np.max(sizes, axis=0).tolist())


def round_up(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Return the size made a multiple of a number."""
    return tuple(-(-side // multiple) * multiple for side in size)


def group(sizes: Sequence[tuple[int, int]], counts: Sequence[int], groups: int, multiple: int) -> list[list[int]]:
    """Put sizes into at most `groups` groups that share a canvas, with little padding.

    Those two are merged, again and again, whose common canvas adds the fewest pixels over all images.

    Args:
      sizes: (height, width), all different.
      counts: number of images of each.
      groups: 0 leaves each by itself.
      multiple: that canvases are rounded up to.

    Returns:
      Indices of `sizes`, a list for each group.
    """
    members = [[index] for index in range(len(sizes))]
    if not groups or len(sizes) <= groups:
        return members

    def area(size):
        return np.prod(-(-size // multiple) * multiple, axis=-1)

    extent, number = np.array(sizes, np.int64).reshape(-1, 2), np.array(counts, np.int64)
    while len(members) > groups:
        joint = np.maximum(extent[:, None], extent[None])
        alone = number * area(extent)
        added = area(joint) * (number[:, None] + number[None]) - alone[:, None] - alone[None]
        added[np.tril_indices(len(members))] = np.iinfo(np.int64).max
        first, second = np.unravel_index(np.argmin(added), added.shape)
        members[first] += members.pop(second)
        extent[first], number[first] = joint[first, second], number[first] + number[second]
        extent, number = np.delete(extent, second, axis=0), np.delete(number, second)
    return members
