"""Damaged images, masks and text files: only the documented errors may come out, in bounded time and memory.

    python benchmarks/fuzz_images.py [--count 140000] [--seed 0] [--json fuzz.json]

Small valid files of every kind (fuzz_seeds.py) are cut at every length, then changed at random: bits flipped, bytes set to
extreme values, pieces cut out, doubled, and put in from other files. Input number i of a kind follows from `--seed` and i
alone, so that a failure can be repeated: `--only image:1234` runs one input and raises what it raises. Workers are
processes: one that is killed (by a fault in a library, or for lack of memory) is a failure with the number of its input.
Status 1 if anything but the documented error came out, or a bound was exceeded.
"""

import sys

import fuzz_seeds
import fuzzing
import numpy as np
from fuzzing import Kind

from cp2_jax.data import text
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.images import crops, decoding
from cp2_jax.data.labelled import classes, masks

SHARES = {"image": 0.7, "mask": 0.2, "text": 0.1}


def read_image(data: bytes, name: str) -> None:
    """Read an image in all the ways that there are."""
    for read in (decoding.upright_size, decoding.decode, lambda *a: decoding.decode(*a, (0, 3000), False), _crops):
        read(data, name)


def _crops(data, name):
    assert crops.random_crops(data, name, np.random.default_rng(0), 8, 2).shape == (2, 8, 8, 3)


def read_mask(data: bytes, name: str) -> None:
    """Read a mask; its size comes from the header first."""
    masks.header_size(data, name)
    masks.read_mask(data, name)


def read_text(data: bytes, name: str) -> None:
    """Read the lines of a text file, and the classes that they name."""
    classes.parse_classes(text.lines_of(data, name, SegmentationError), name)


def kinds() -> dict[str, Kind]:
    """Return the kinds of input by name."""
    return {
        "image": Kind(fuzz_seeds.images(), read_image, UnreadableImage),
        "mask": Kind(fuzz_seeds.masks(), read_mask, SegmentationError),
        "text": Kind(fuzz_seeds.texts(), read_text, SegmentationError),
    }


if __name__ == "__main__":
    sys.exit(fuzzing.main("fuzz_images", SHARES, 140_000, __doc__.splitlines()[0]))
