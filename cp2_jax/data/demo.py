"""Demo data: small scenes of textured objects on textured backgrounds with exact masks, written as a TFDS data set.

Made so that labels are scarce and pretraining can help: a class is told by its texture and its shape, which take context
to see, and not by tones, which are drawn anew for every surface. Surfaces are hardly coloured: were they, instance
discrimination could tell scenes by their colours and learn nothing else. The textures differ in kind, so that a network of
a few thousand weights can learn them in minutes if it is shown enough of them (docs/results.md). The data set is an
`array_record` one and is read through the same path as an ImageNet that TFDS prepared.
"""

import pathlib

import cv2
import numpy as np
from jaxtyping import UInt8

from cp2_jax.data.errors import SourceError
from cp2_jax.data.prepare.writing import write_dataset

CLASSES = ("background", "striped ellipse", "checked triangle", "dotted rectangle", "speckled star", "banded blob")
NAME = "cp2_demo"
_DRAWING = 2  # raise it when scenes come to look different: data sets of earlier drawings are then made anew
# Part of each scene's seed: append, never renumber.
_SPLITS = {"train": 0, "train_labelled": 1, "validation": 2}


def scene(seed: int, split: str, index: int, size: int = 64) -> tuple[UInt8[np.ndarray, "size size 3"], np.ndarray]:
    """Draw one scene; the same arguments always give the same scene.

    Args:
      seed: at least 0; names the whole data set.
      split: 'train', 'train_labelled' or 'validation'; the splits share no scene.
      index: at least 0; scene `index` is the same however many scenes the split has.
      size: side in pixels; shapes scale with it, textures have their periods in pixels.

    Returns:
      image: uint8 (size, size, 3), RGB.
      mask: uint8 (size, size), index into `CLASSES`. One or two objects cover about 15 to 50% of the image.
    """
    rng = np.random.default_rng([seed, _SPLITS[split], index])
    image = _blend(rng, _noise(rng, size, rng.choice([2, 4, 8])))
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(1, 3)):
        label = int(rng.integers(1, len(CLASSES)))
        shape = _SHAPES[label](rng, size, rng.uniform(0.22, 0.34) * size)
        surface = _blend(rng, _TEXTURES[label](rng, size))
        image = np.where(shape[..., None], surface, image)
        mask[shape] = label
    shade = 1 + 0.25 * (_noise(rng, size, 2)[..., None] - 0.5)
    grain = rng.normal(0, 0.03, image.shape)
    return (np.clip(image * shade + grain, 0, 1) * 255).astype(np.uint8), mask


def _blend(rng, field):
    """Paint a field in [0, 1] with two random greys that can be told apart, each a little tinted."""
    dark, light = sorted(rng.uniform(0.1, 0.9, 2))
    while light - dark < 0.35:
        dark, light = sorted(rng.uniform(0.1, 0.9, 2))
    first, second = rng.permutation([dark, light])[:, None] + rng.uniform(-0.08, 0.08, (2, 3))
    return first + (second - first) * field[..., None]


def _noise(rng, size, cells):
    """Return smooth noise in [0, 1] with about `cells` bumps a side."""
    coarse = rng.random((int(cells) + 2, int(cells) + 2)).astype(np.float32)
    field = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(field, 0, 1)


def _rotated(rng, size):
    """Return pixel coordinates (u, v) under a random rotation and shift."""
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] + rng.uniform(0, size, 2)[:, None, None]
    return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)


def _wave(coordinate, period):
    return (np.sin(2 * np.pi * coordinate / period) > 0).astype(float)


def _stripes(rng, size):
    return _wave(_rotated(rng, size)[0], rng.uniform(5, 8))


def _checks(rng, size):
    u, v = _rotated(rng, size)
    period = rng.uniform(7, 11)
    return np.abs(_wave(u, period) - _wave(v, period))


def _dots(rng, size):
    u, v = _rotated(rng, size)
    period = rng.uniform(6, 9)
    return (np.hypot(u % period - period / 2, v % period - period / 2) < period * 0.32).astype(float)


def _speckles(rng, size):
    return rng.random((size, size))


def _bands(rng, size):
    """Stripes so broad that a surface shows two or three."""
    return _wave(_rotated(rng, size)[0], rng.uniform(0.4, 0.6) * size)


def _place(rng, size, radius):
    """Return a centre that keeps most of the object inside the image."""
    return rng.uniform(0.7 * radius, size - 0.7 * radius, 2)


def _polygon(points, size):
    canvas = np.zeros((size, size), np.uint8)
    return cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], 1) > 0


def _round_polygon(rng, size, radius, radii):
    angles = rng.uniform(0, 2 * np.pi) + np.arange(len(radii)) * 2 * np.pi / len(radii)
    offsets = radius * np.asarray(radii)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _polygon(_place(rng, size, radius) + offsets, size)


def _ellipse(rng, size, radius):
    squeeze, angles = rng.uniform(0.6, 0.8), np.linspace(0, 2 * np.pi, 40, endpoint=False)
    turn = rng.uniform(0, np.pi)
    points = radius * 1.15 * np.stack([np.cos(angles), squeeze * np.sin(angles)], axis=1)
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return _polygon(_place(rng, size, radius) + points @ rotation, size)


def _triangle(rng, size, radius):
    return _round_polygon(rng, size, radius, rng.uniform(1.2, 1.5, 3))


def _rectangle(rng, size, radius):
    half, turn = radius * np.array([1.1, rng.uniform(0.65, 0.95)]), rng.uniform(0, np.pi)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return _polygon(_place(rng, size, radius) + corners @ rotation, size)


def _star(rng, size, radius):
    return _round_polygon(rng, size, radius, np.tile([1.4, 0.7], int(rng.integers(5, 7))))


def _blob(rng, size, radius):
    smooth = cv2.GaussianBlur(np.tile(rng.uniform(0.6, 1.4, 12), 3)[None].astype(np.float32), (7, 1), 1.5)[0, 12:24]
    return _round_polygon(rng, size, radius, np.repeat(smooth, 2))


_SHAPES = (None, _ellipse, _triangle, _rectangle, _star, _blob)
_TEXTURES = (None, _stripes, _checks, _dots, _speckles, _bands)


def _png(array):
    """Encode an RGB image or a mask without loss."""
    encoded = cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1]
    return encoded.tobytes()


def prepare(
    output: str | pathlib.Path,
    size: int = 64,
    train: int = 4000,
    labelled: int = 40,
    validation: int = 200,
    seed: int = 0,
) -> pathlib.Path:
    """Write the data set and return the directory that `TfdsSource` opens.

    Safe to run twice: a complete data set with the same numbers is left alone; a half-written one, or one made with
    other numbers, is replaced. Nothing but `output/cp2_demo` is touched.

    Args:
      output: made if absent; the data set goes into `output/cp2_demo/1.0.0`.
      size: side of the scenes in pixels.
      train, labelled, validation: number of scenes of the splits `train` (meant for pretraining, without its masks),
        `train_labelled` and `validation`.
      seed: see `scene`.

    Raises:
      SourceError: a split without scenes, a size below 32 (where textures are not to be told apart), a negative seed.
    """
    counts = {"train": train, "train_labelled": labelled, "validation": validation}
    for split, count in counts.items():
        if count < 1:
            raise SourceError(f"split {split} would have {count} scenes; ask for 1 or more")
    if size < 32 or seed < 0:
        raise SourceError(f"size is {size} and seed is {seed}; size must be 32 or more, seed 0 or more")
    import tensorflow_datasets as tfds  # here, because it takes a second that a user of `scene` need not wait

    def examples(split):
        for index in range(counts[split]):
            image, mask = scene(seed, split, index, size)
            yield {"image": _png(image), "segmentation_mask": _png(mask)}

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    }
    settings = f"drawing={_DRAWING} size={size} train={train} labelled={labelled} validation={validation} seed={seed}"
    return write_dataset(
        output,
        NAME,
        {split: examples(split) for split in counts},
        features,
        settings,
        "Textured objects on textured backgrounds.",
        counts,
    )


def contact_sheet(
    path: str | pathlib.Path, count: int = 24, columns: int = 8, size: int = 64, seed: int = 0
) -> UInt8[np.ndarray, "height width 3"]:
    """Write a PNG of validation scenes above their masks, for looking at; an unfilled last row ends in black.

    Args:
      path: of the PNG.
      count: number of scenes; columns: side by side.
      size, seed: see `scene`.

    Returns:
      What was written: RGB, ceil(count / columns) * 2 * size high and columns * size wide.
    """
    palette = [[40, 40, 40], [230, 60, 60], [60, 180, 75], [70, 110, 230], [250, 190, 40], [170, 70, 190]]
    colors = np.array(palette, np.uint8)
    sheet = np.zeros((-(-count // columns) * 2 * size, columns * size, 3), np.uint8)
    for index in range(count):
        image, mask = scene(seed, "validation", index, size)
        top, left = index // columns * 2 * size, index % columns * size
        sheet[top : top + 2 * size, left : left + size] = np.concatenate([image, colors[mask]])
    pathlib.Path(path).write_bytes(_png(sheet))
    return sheet
