"""Class maps of a folder of images, written into another folder; what cannot be predicted is named, the rest is."""

import collections
import json
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from cp2_jax import pictures
from cp2_jax.data import files
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.images.decoding import decode, upright_size
from cp2_jax.data.images.sources import SourceError, open_images
from cp2_jax.paths import AnyPath, BucketPath, at, is_bucket
from cp2_jax.runs import out_of_memory
from cp2_jax.segmentation.batching import Batch
from cp2_jax.segmentation.class_maps import class_colors, mask_values, overlay_colors, save_class_map
from cp2_jax.segmentation.predictor import Predictor, make_predictor

KINDS = ("masks", "overlays")
_NOTE = "predictions.json"


def output_names(paths: Sequence[pathlib.PurePath]) -> list[pathlib.PurePath]:
    """Return the file of each image's class map, all different also where capitals do not count.

    `a.jpg` becomes `a.png`. Images of one folder whose names differ only in the extension keep it: `a.jpg.png`.
    Where that is taken, a number is added.
    """
    alike = collections.Counter(_same(path.with_suffix(".png")) for path in paths)
    first = [path.with_suffix(".png") for path in paths]
    names = [short if alike[_same(short)] == 1 else None for short in first]
    taken = {_same(name) for name in names if name}
    for index, path in enumerate(paths):
        if names[index] is None:
            tries = (path.with_name(f"{path.name}{add}.png") for add in ("", *(f"_{n}" for n in range(2, len(paths) + 2))))
            names[index] = next(name for name in tries if _same(name) not in taken)
            taken.add(_same(names[index]))
    return names


def _same(path: pathlib.PurePath) -> str:
    """Return what is equal for paths that some file system takes for the same file."""
    return unicodedata.normalize("NFC", path.as_posix()).casefold()


class Output:
    """A folder for class maps: `masks` and `overlays`, and a note of what wrote them.

    Args:
      root: the folder.
      made_by: what to write into the note, JSON values.
      names: of the class maps that are to be written.

    Raises:
      SegmentationError: it cannot be written, or holds files of these names that no prediction wrote: masks that somebody
        drew are not lost.
    """

    def __init__(self, root: str | AnyPath, made_by: dict, names: Sequence[pathlib.PurePath]):
        self.root = at(root).absolute()
        note = self.root / _NOTE
        if not note.exists():
            if (there := self._first_there(names)) is not None:
                raise SegmentationError(f"{there} is there already and no prediction wrote it: name another output folder")
        try:
            for kind in KINDS:
                (self.root / kind).mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(made_by, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SegmentationError(f"output folder {self.root} cannot be written: {error.strerror or error}") from error

    def _first_there(self, names: Sequence[pathlib.PurePath]) -> AnyPath | None:
        """Return the first of the class maps that is there."""
        known = set(self.root.files()) if isinstance(self.root, BucketPath) else None
        for kind in KINDS:
            for name in names:
                path = self._place(kind, name)
                if path.exists() if known is None else f"{kind}/{name}" in known:
                    return path
        return None

    def _place(self, kind: str, name: pathlib.PurePath) -> AnyPath:
        return self.root / kind / files.as_path(str(name))

    def write(self, kind: str, name: pathlib.PurePath, save: Any) -> None:
        """Call `save(path)` for a file of the folder.

        Raises:
          SegmentationError: it cannot be written, for the disk is full, for example. Nothing half written stays.
        """
        path = self._place(kind, name)
        try:
            save(path)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise SegmentationError(f"{path} cannot be written: {error.strerror or error}") from error


def images_to_predict(images: str | AnyPath, output: str | AnyPath) -> tuple[Any, list[int]]:
    """Return the images of a folder, or of tar shards or Parquet files, and which to predict: not those of the output.

    Raises:
      SourceError: there is no such folder, or no image in it; a work directory or a file is named as what it is.
    """
    images = at(images)
    if images.suffix.lower() not in (".tar", ".parquet") and images.is_file():
        raise SourceError(f"{images} is a file; give the folder that it is in")
    if (images / "checkpoints").is_dir():
        raise SourceError(f"{images} is the work directory of a run, where a folder of images is wanted")
    source = open_images(images)
    written: list[AnyPath] = []  # of a bucket, only packed images are read, and nothing is written among them
    if not is_bucket(source.root) and not is_bucket(output):
        written = [(at(output).absolute() / kind).resolve() for kind in KINDS]
    kept = [
        index
        for index in range(len(source))
        if not any(at(files.as_path(source.name(index))).resolve().is_relative_to(one) for one in written)
    ]
    if not kept:
        raise SourceError(f"{images} holds nothing but predictions of before")
    return source, kept


def predict_folder(
    config: ConfigDict,
    variables: Any,
    images: str | AnyPath,
    output: str | AnyPath,
    own_values: bool = False,
    made_by: dict | None = None,
) -> tuple[int, Iterator[str]]:
    """Write `output/masks` and `output/overlays` of every image of a folder, each at its own size and place.

    Args:
      config, variables: a finetuned model's.
      images: the folder, nested or flat.
      output: may lie inside `images`; what is written is not predicted again.
      own_values: write what the data set's masks have (see `mask_values`), not class indices.
      made_by: what to note in `output/predictions.json`.

    Returns:
      The number of images, and an iterator that predicts: for each image "", or why it was not predicted. The others are
      predicted all the same.

    Raises:
      SourceError: see `images_to_predict`.
      SegmentationError: see `Output`; also while iterating, if a file cannot be written.
    """
    source, kept = images_to_predict(images, output)
    relative = [_relative(source, index) for index in kept]
    names = dict(zip(kept, output_names(relative), strict=True))
    folder = Output(output, {"images": str(source.root)} | (made_by or {}), list(names.values()))
    return len(kept), _predict(config, variables, source, names, folder, own_values)


def _relative(source: Any, index: int) -> pathlib.PurePath:
    """Return the place of an image in its source; never outside of it, as of shards in several buckets."""
    relative = pathlib.PurePosixPath(files.relative(source.name(index), source.root))
    return pathlib.PurePosixPath(*(part for part in relative.parts if part != ".."))


def _predict(config, variables, source, names, folder, own_values) -> Iterator[str]:
    predictor, variables = make_predictor(config), jax.device_put(variables)
    colors, values = class_colors(config.data), mask_values(config.data) if own_values else None
    sizes, readable = [], []
    value_range, turn = tuple(config.data.get("value_range", ())), config.data.get("exif", True)
    for index in names:
        try:
            sizes.append(upright_size(source[index], source.name(index), turn))
            readable.append(index)
        except UnreadableImage as error:
            yield str(error)
    for batch in predictor.plan(sizes, 1, config.evaluation.programs):
        index = readable[batch.indices[0]]
        try:
            image = decode(source[index], source.name(index), value_range, turn)
            predicted = _class_map(predictor, variables, image, batch, source.name(index))
        except UnreadableImage as error:
            yield str(error)
            continue
        name = names[index]
        caption = _relative(source, index).as_posix()
        drawn = pictures.overlay(image, predicted, config.data.class_names, overlay_colors(config.data), caption=caption)
        folder.write("masks", name, lambda path, shown=predicted: save_class_map(path, shown, colors, values))
        folder.write("overlays", name, lambda path, shown=drawn: pictures.save_png(path, shown))
        yield ""


def _class_map(
    predictor: Predictor, variables: Any, image: UInt8[np.ndarray, "height width 3"], batch: Batch, name: str
) -> UInt8[np.ndarray, "height width"]:
    """Return the class map of an image.

    Raises:
      UnreadableImage: the memory is too small for it.
    """
    height, width = image.shape[:2]
    try:
        return np.asarray(predictor.predict(variables, predictor.inputs([image], batch), batch)[0])[:height, :width]
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
        if isinstance(error, MemoryError) or out_of_memory.is_out_of_memory(error):
            raise UnreadableImage(
                name,
                f"the memory is too small for {height} x {width} pixels at once; use sliding windows: "
                "--config.evaluation.window='(512, 512)' --config.evaluation.stride='(341, 341)'",
            ) from error
        raise
