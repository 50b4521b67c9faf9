"""Features of a folder of images as one file: a table of names and vectors, or of names and dense maps."""

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cp2_jax.data import files
from cp2_jax.data.images.decoding import UnreadableImage, decode
from cp2_jax.data.images.sources import SourceError, open_images
from cp2_jax.features import FEATURES, FeatureExtractor, load
from cp2_jax.interface import kinds, overrides, processes, ranges
from cp2_jax.options import ConfigError, at_least_1, one_of
from cp2_jax.paths import AnyPath, at, save_as
from cp2_jax.runs import progress
from cp2_jax.runs.files import written

SUFFIXES = (".npz", ".parquet")


def embed(
    checkpoint: str | os.PathLike,
    images: str | os.PathLike,
    output: str | os.PathLike,
    *,
    features: str | None = None,
    dense: bool = False,
    size: int = 224,
    batch: int = 32,
    dtype: str | type = "float32",
) -> AnyPath:
    """Write the features of a folder of images.

    Example:
      cp2_jax.embed("runs/photos", "photos", "features.npz")
      table = numpy.load("features.npz")
      table["names"], table["features"]  # [images], [images, channels]

    Args:
      checkpoint: a run, one step of it, or a converted checkpoint.
      images: folder, nested or flat.
      output: `.npz` with the arrays `names` (relative paths) and `features`, or `.parquet` with the columns `name`,
        `features` (a list of numbers) and, for dense maps, `height` and `width`. An `.npz` is held in memory as a whole
        first; Parquet is written batch by batch.
      features: see `load`.
      dense: write the whole map of each image, [height, width, channels], instead of its mean over all pixels.
      size: every image is resized to this many pixels square, without cutting anything off. More than 8 bits are scaled
        by the `data.value_range` of the run.
      batch: images that the network sees at once.
      dtype: of the numbers in the file: "float32" or "float16".

    Returns:
      The path of the file.

    Raises:
      CheckpointError: there is no checkpoint, or it has no such features.
      SourceError: there are no images.
      ConfigError: another suffix, dtype or kind of features, several maps of each image ("stages"), or a size that the
        network does not take (a ViT: multiples of its patch).
      WriteError: the file cannot be written.
    """
    output = at(output)
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{output}: write features to a file that ends in {' or '.join(SUFFIXES)}")
    one_map(features)
    for key, value in (("size", size), ("batch", batch)):
        at_least_1(key, value)
    dtype = overrides.dtype_name(dtype)
    one_of("dtype", dtype, ("float32", "float16"))
    kinds.refuse_a_list(images, "load the model (`cp2_jax.load`) and give it arrays")
    kinds.refuse_a_model(images)
    kinds.refuse_images(checkpoint)
    extractor, variables = load(checkpoint, features)
    source = open_images(images)
    read = functools.partial(_pixels, source, size, ranges.of_checkpoint(checkpoint))
    found = _features(extractor, variables, source, read, batch, dense, np.dtype(dtype))
    with written(output), save_as(output, takes_long=True) as file:
        count = (_write_npz if output.suffix == ".npz" else _write_parquet)(file, found)
    print(f"features of {count} images in {processes.relative(output)}")
    return output


def one_map(features: str | None) -> None:
    """Require a kind of features that is one map of each image; None stands for `load`'s choice.

    Raises:
      ConfigError: for other kinds, and for "stages".
    """
    if features == "stages":
        raise ConfigError("features='stages' are several maps of each image; take 'backbone', which is the last of them")
    if features is not None:
        one_of("features", features, [kind for kind in FEATURES if kind != "stages"])


def _pixels(source, size: int, value_range: tuple[float, ...], index: int) -> UInt8[np.ndarray, "size size 3"]:
    image = Image.fromarray(decode(source[index], source.name(index), value_range))
    return np.asarray(image.resize((size, size), Image.BILINEAR))


def _features(extractor: FeatureExtractor, variables: Mapping, source, read, batch, dense, dtype) -> Iterator[tuple]:
    """Yield (names, features of shape [images, …]) batch by batch; what cannot be read is left out and named."""

    @jax.jit
    def compute(variables, images):
        maps = extractor(variables, images)
        return maps if dense else maps.mean(axis=(1, 2))

    names, pixels, unreadable = [], [], []
    for index in progress.track(range(len(source)), "embedding", len(source)):
        try:
            image = read(index)
        except UnreadableImage as error:
            unreadable.append(str(error))
        else:
            names.append(files.relative(source.name(index), source.root))
            pixels.append(image)
        if pixels and (len(pixels) == batch or index == len(source) - 1):
            missing = batch - len(pixels)  # one program for all batches
            filled = np.stack([*pixels, *[pixels[-1]] * missing])
            try:
                found = compute(variables, filled)
            except ValueError as error:  # while it is traced: the network does not take such sides
                raise ConfigError(f"size={filled.shape[1]}: {error}") from error
            yield names, np.asarray(found)[: len(pixels)].astype(dtype)
            names, pixels = [], []
    if unreadable:
        print("\n  ".join([f"{len(unreadable)} images left out:", *unreadable[:20]]))


def _write_npz(path: pathlib.Path, batches: Iterator[tuple]) -> int:
    names, features = [], []
    for some, values in batches:
        names += some
        features.append(values)
    _refuse_nothing(names)
    with path.open("wb") as file:
        np.savez(file, names=np.array(names), features=np.concatenate(features))
    return len(names)


def _write_parquet(path: pathlib.Path, batches: Iterator[tuple]) -> int:
    import pyarrow
    import pyarrow.parquet

    writer, count = None, 0
    try:
        for names, features in batches:
            columns = {"name": names, "features": list(features.reshape(len(names), -1))}
            if features.ndim == 4:
                columns |= {"height": [features.shape[1]] * len(names), "width": [features.shape[2]] * len(names)}
            table = pyarrow.table(columns)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
            count += len(names)
    finally:
        if writer is not None:
            writer.close()
    _refuse_nothing(count)
    return count


def _refuse_nothing(found: list | int) -> None:
    if not found:
        raise SourceError("none of the images could be read, see above")


def read(path: str | AnyPath) -> tuple[list[str], Float[np.ndarray, " images *features"]]:
    """Return (names, features) of a file that `embed` wrote, of either kind, on a disk or in a bucket."""
    if at(path).suffix == ".npz":
        with files.open_binary(at(path)) as file, np.load(file) as table:
            return list(table["names"]), table["features"]
    import pyarrow.parquet

    with files.open_binary(at(path)) as file:
        table = pyarrow.parquet.read_table(file)
    features = np.stack(table["features"].to_numpy())
    if "height" in table.column_names:
        features = features.reshape(len(features), table["height"][0].as_py(), table["width"][0].as_py(), -1)
    return table["name"].to_pylist(), features
