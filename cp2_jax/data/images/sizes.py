"""Whether batch and queue make sense for the number of images."""

from __future__ import annotations

from cp2_jax.options import require

_ABSURD = 100


def warnings(images: int, batch_size: int, queue_size: int = 0, multiple: int = 1) -> list[str]:
    """Return a line for each size that is larger than the data set, with the largest one that would fit.

    A batch that holds an image several times learns to tell it from itself. So does a queue (MoCo's negatives) that is
    longer than the data set, for then every key has keys of its own image among its negatives.

    Args:
      images: number of images in the data set.
      batch_size: global number of images in a step.
      queue_size: keys in the queue; 0: there is no queue.
      multiple: what a batch size has to be divisible by (batch-norm groups, devices).

    Raises:
      ConfigError: for a batch of more than 100 times the images: it would be decoded for minutes, or fill the memory.
    """
    lines = []
    batch = min(batch_size, max(multiple, images // multiple * multiple))
    fix = f"each of the {images} images would be in a batch {_times(batch_size, images)}; use {batch} or less"
    require(batch_size <= _ABSURD * images, "batch_size", batch_size, fix)
    if batch_size > images:
        lines.append(
            f"batch_size={batch_size} is more than the {images} images there are: each would be in a batch "
            f"{_times(batch_size, images)}. Use batch_size={batch} or less"
        )
    if queue_size > images:
        # Half of the images at most in a batch, so that a queue has room for others.
        small = min(batch, max(multiple, images // 2 // multiple * multiple))
        fitting = max(small, images // small * small)
        with_batch = f"loss.queue_size={fitting} (a multiple of batch_size={small})"
        if images // batch_size:
            with_batch = f"loss.queue_size={images // batch_size * batch_size}"
        lines.append(
            f"loss.queue_size={queue_size} is more than the {images} images there are: the queue would hold each "
            f"{_times(queue_size, images)}, so that images are their own negatives. Use {with_batch} or less"
        )
    return lines


def _times(size: int, images: int) -> str:
    return f"{size / images:.0f} times" if size >= 2 * images else "once or twice"
