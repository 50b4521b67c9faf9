"""The section `data` of a pretraining config: where images come from, and how crops are taken from them."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from cp2_jax.data.images.sources import SOURCES
from cp2_jax.options import at_least_0, from_section, interval, is_number, one_of, positive, require, whole

# Where backgrounds come from, and how many streams of images that takes.
BACKGROUNDS = {"independent": 3, "in_batch": 1}


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """The fields of `config.data` of pretraining, checked. A key that an older config does not have gets its default.

    Attributes:
      path: where the images are: a folder, a TFDS data set, tar shards or Parquet files, according to `source`.
      source: a name in `sources.SOURCES`.
      split: of a TFDS data set.
      list: a text file with the images to take, a path or member a line, relative to `path`; empty: all.
      image_column: of Parquet files.
      value_range: the values that become 0 and 255 in images of more than 8 bits; empty: see `pixels.to_rgb`.
      probe_path, probe_split: the images that probes look at; an empty path: those of `path`.
      attention: attention maps of the images, for `augment.mask=attention`.
      crop_scale: smallest and largest share of the image that a crop covers.
      backgrounds: a name in `BACKGROUNDS`.
      workers: processes that decode; 0: threads of the training process.
      prefetch: batches kept ready on the device.

    Raises:
      ConfigError: naming the key, its value and what would work.
    """

    path: str
    source: str = "folder"
    split: str = "train"
    list: str = ""
    image_column: str = "image"
    value_range: tuple[float, ...] = ()
    probe_path: str = ""
    probe_split: str = "train"
    attention: str = ""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    backgrounds: str = "independent"
    workers: int = 8
    prefetch: int = 2

    from_config = from_section("data")

    def __post_init__(self):
        check_where(self.path, self.source, SOURCES)
        check_value_range(self.value_range)
        interval("data.crop_scale", self.crop_scale, "two shares of the image", 1.0)
        one_of("data.backgrounds", self.backgrounds, BACKGROUNDS)
        check_reading(self.workers, self.prefetch)


def check_where(path: str, source: str, sources: Any) -> None:
    """Require a path and a known source; raises `ConfigError`."""
    require(bool(path), "data.path", "''", "say where the images are: --config.data.path=/folder/of/images")
    one_of("data.source", source, sources)


def check_value_range(value_range: tuple[float, ...]) -> None:
    """Require two numbers, low < high, or none; raises `ConfigError`."""
    good = not value_range or len(value_range) == 2 and all(map(is_number, value_range)) and value_range[0] < value_range[1]
    fix = "give the values that become black and white in images of more than 8 bits, e.g. (0, 3000), or none: ()"
    require(good, "data.value_range", value_range, fix)


_MOST_WORKERS = 512


def check_reading(workers: int, prefetch: int) -> None:
    """Require a number of processes and of batches read ahead; raises `ConfigError`."""
    whole("data.workers", workers)
    whole("data.prefetch", prefetch)
    at_least_0("data.workers", workers)
    fix = f"each is a process, at most {_MOST_WORKERS} of them make sense; this machine has {os.cpu_count()} cores"
    require(workers <= _MOST_WORKERS, "data.workers", workers, fix)
    positive("data.prefetch", prefetch)
