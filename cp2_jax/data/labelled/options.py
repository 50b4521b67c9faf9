"""The section `data` of a finetuning config: images and masks, what labels mean, the training transforms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from cp2_jax.data.errors import SegmentationError
from cp2_jax.data.images.options import check_reading, check_value_range, check_where
from cp2_jax.data.labelled.sources import SOURCES
from cp2_jax.options import at_least_0, from_section, interval, is_number, require, share, sides, true_or_false, whole


@dataclasses.dataclass(frozen=True)
class LabelledOptions:
    """The fields of `config.data` of finetuning, checked. A key that an older config does not have gets its default.

    Attributes:
      path: the data set's folder, or TFDS data set, tar shards or Parquet files, according to `source`.
      source: a name in `sources.SOURCES`.
      images, labels, image_suffix, label_suffix: see `pairs.match_pairs`.
      split, eval_split: for training and for evaluation.
      image_column, mask_column: of Parquet files.
      value_range: the values that become 0 and 255 in images of more than 8 bits; empty: see `pixels.to_rgb`.
      exif: turn photos as their EXIF orientation asks; False where masks were drawn on the photos as stored.
      classes: a file with a class a line, instead of the next three; see `classes.resolve`.
      num_classes, class_names, class_colors: of the classes.
      ignore_label: the label that is neither trained nor scored.
      label_map: pairs (value in the mask, label), see `examples.label_table`.
      limit: of training images: 0 all, up to 1 that share, else that number.
      limit_seed: which ones.
      resize, scale_range, crop_size, crop_max_ratio, flip, photometric: see `transforms.training_sample`.
      workers: processes that make samples; 0: threads of the training process.
      prefetch: batches kept ready on the device.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    path: str
    source: str = "folder"
    images: str = "images"
    labels: str = "labels"
    image_suffix: str = ""
    label_suffix: str = ""
    split: str = "train"
    eval_split: str = "val"
    image_column: str = "image"
    mask_column: str = "mask"
    value_range: tuple[float, ...] = ()
    exif: bool = True
    classes: str = ""
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    class_colors: tuple[tuple[int, int, int], ...] = ()
    ignore_label: int = 255
    label_map: tuple[tuple[int, int], ...] = ()
    limit: float = 0.0
    limit_seed: int = 0
    resize: tuple[int, ...] = (2048, 512)
    scale_range: tuple[float, float] = (0.5, 2.0)
    crop_size: tuple[int, int] = (512, 512)
    crop_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: bool = True
    workers: int = 4
    prefetch: int = 2

    from_config = from_section("data")

    def __post_init__(self):
        check_where(self.path, self.source, SOURCES)
        check_value_range(self.value_range)
        check_reading(self.workers, self.prefetch)
        true_or_false("data.exif", self.exif)
        check_limit("data.limit", self.limit)
        self._check_classes()
        self._check_transforms()

    def _check_classes(self):
        whole("data.num_classes", self.num_classes)
        whole("data.ignore_label", self.ignore_label)
        count = self.num_classes
        fix = f"must lie above the {count} classes, in 8 bits"
        require(count <= self.ignore_label <= 255, "data.ignore_label", self.ignore_label, fix)
        require(count > 1, "data.num_classes", count, "must be 2 or more, background included")
        fix = f"give data.num_classes={count} names, not {len(self.class_names)}"
        require(len(self.class_names) == count, "data.class_names", self.class_names, fix)
        good = all(len(color) == 3 and all(map(_is_level, color)) for color in self.class_colors)
        fix = f"give {count} triples of whole numbers from 0 to 255, or none"
        require(good and len(self.class_colors) in (0, count), "data.class_colors", self.class_colors, fix)

    def _check_transforms(self):
        sides("data.resize", self.resize)
        interval("data.scale_range", self.scale_range, "two factors", math.inf)
        crop = tuple(self.crop_size)
        good = len(crop) == 2 and all(isinstance(side, int) and side > 0 for side in crop)
        require(good, "data.crop_size", crop, "give height and width in pixels, e.g. (512, 512)")
        share("data.flip", self.flip)
        share("data.crop_max_ratio", self.crop_max_ratio)


def _is_level(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 255


def check_limit(key: str, limit: float) -> None:
    """Require a share or a whole number of images; raises `ConfigError`."""
    at_least_0(key, limit)
    good = is_number(limit) and (limit <= 1 or float(limit).is_integer())
    require(good, key, limit, "give 0 for all images, a share up to 1, or a whole number of images above 1")


def limited(limit: float, length: int, split: str) -> int:
    """Return how many of a split's images a limit asks for: 0 and 1 mean all, what lies between is a share (one at least).

    Raises:
      ConfigError: if the limit is neither a share nor a whole number.
      SegmentationError: if it asks for more images than there are.
    """
    check_limit("data.limit", limit)
    if not limit:
        return length
    count = max(1, round(limit * length)) if limit <= 1 else int(limit)
    if count > length:
        raise SegmentationError(f"data.limit asks for {count} images, but {split} has {length}; 0 takes all")
    return count
