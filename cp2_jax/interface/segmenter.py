"""A finetuned model as an object: images in, class maps and probabilities out."""

import dataclasses
import itertools
import os
import pathlib
import sys
import tempfile
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageShow

from cp2_jax import paths, pictures
from cp2_jax.data import files
from cp2_jax.data.images.formats import SUFFIXES
from cp2_jax.interface import given, kinds
from cp2_jax.options import ConfigError
from cp2_jax.segmentation import class_maps, predictor, saved


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about one image.

    Attributes:
      image: as it was predicted.
      probabilities: of each class, at the image's own size; they sum to 1.
      class_names: in the order of the labels.
      name: where the image came from, "" for an array.
    """

    image: UInt8[np.ndarray, "height width 3"] = dataclasses.field(repr=False)
    probabilities: Float[np.ndarray, "height width classes"] = dataclasses.field(repr=False)
    class_names: tuple[str, ...]
    name: str = ""
    _data: ConfigDict | None = dataclasses.field(default=None, repr=False)  # `config.data`, which has the colours

    @property
    def labels(self) -> UInt8[np.ndarray, "height width"]:
        """The most probable class of each pixel."""
        return self.probabilities.argmax(-1).astype(np.uint8)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the image's pixels that each class has, largest first; classes without a pixel are left out."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.class_names))
        order = [index for index in np.argsort(-counts) if counts[index]]
        return {self.class_names[index]: float(counts[index]) / self.labels.size for index in order}

    def overlay(self) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
        """Return a picture of the image with its classes coloured, outlined and named."""
        colors = class_maps.overlay_colors(self._data)
        return pictures.overlay(
            self.image, self.labels, self.class_names, colors, caption=files.as_text(pathlib.Path(self.name).name)
        )

    def save(self, path: str | os.PathLike) -> pathlib.Path:
        """Write the class map as a palette PNG of class indices, and beside it, as `…_overlay.png`, the overlay.

        Args:
          path: file to write; of a folder, the file gets the image's name: `IMG_1.png`, or `IMG_1_2.png` where `IMG_1.png`
            is of another image (cameras use names again), or is no prediction. Arrays have no name: theirs are
            `prediction.png`, `prediction_2.png` and so on.

        Returns:
          The path of the class map.

        Raises:
          ConfigError: the file's suffix is another image format's, or it is in a bucket.
        """
        path = paths.local(path)
        if path.suffix.lower() in SUFFIXES - {".png"} and not path.is_dir():
            raise ConfigError(f"{path}: class maps are written as PNG; name a .png file or a folder")
        if path.suffix.lower() != ".png":
            path = _free(path, self.name)
        colors = class_maps.class_colors(self._data)
        class_maps.save_class_map(path, self.labels, colors, source=_source(self.name))
        pictures.save_png(path.with_name(f"{path.stem}_overlay.png"), self.overlay())
        return path

    def show(self) -> None:
        """Show the overlay: in a notebook below the cell, elsewhere in the system's image viewer.

        Without display or viewer it is written to a file, whose path is printed.
        """
        picture = Image.fromarray(self.overlay())
        try:
            from IPython import display, get_ipython
        except ImportError:
            get_ipython = bool
        if get_ipython():
            display.display(picture)
        elif not (_has_display() and ImageShow.show(picture, title=self.name)):
            folder = pathlib.Path(tempfile.mkdtemp(prefix="cp2_jax_"))
            picture.save(path := folder / f"{pathlib.Path(self.name).stem or 'prediction'}_overlay.png")
            print(f"no display, or no program that shows pictures; see {path}")


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
    """A finetuned model, ready to predict; made by `load_segmenter`.

    Attributes:
      class_names: in the order of the labels.
      config: of its finetuning; `config.evaluation` says how images are tested.
    """

    class_names: tuple[str, ...]
    config: ConfigDict = dataclasses.field(repr=False)
    _predictor: predictor.Predictor = dataclasses.field(repr=False)
    _variables: Any = dataclasses.field(repr=False)

    def predict(self, images: Any) -> Prediction | list[Prediction]:
        """Predict one image, or each of a list.

        Images of one size share a compiled program; each new size compiles once. All results of a list are held in memory,
        4 bytes for each pixel and class; `cp2_jax.predict` writes those of a folder one by one.

        Args:
          images: a path, or the bytes of a file; an array, [height, width, 3] of uint8, uint16 or float in [0, 1], RGB; a
            PIL image; or several of these, as a list or as what a `glob` gives. Files are turned as their EXIF orientation
            asks (unless the run has `data.exif=False`), PIL images are taken as they are. `data.value_range` of the run
            says how more than 8 bits are scaled.

        Raises:
          UnreadableImage: a file or array that is no image, with the reason.
        """
        listed, data = given.several(images), self.config.data
        value_range, turn = tuple(data.get("value_range", ())), data.get("exif", True)
        named = [given.read(image, value_range, turn) for image in ([images] if listed is None else listed)]
        found: list[Prediction | None] = [None] * len(named)
        sizes = [image.shape[:2] for _, image in named]
        for batch in self._predictor.plan(sizes, 1, self.config.evaluation.programs):
            name, image = named[batch.indices[0]]
            probabilities = self._probabilities(image, batch)
            found[batch.indices[0]] = Prediction(image, probabilities, self.class_names, name, self.config.data)
        return found[0] if listed is None else found

    def _probabilities(self, image, batch) -> Float[np.ndarray, "height width classes"]:
        inputs = self._predictor.inputs([image], batch)
        total = self._predictor.probabilities(self._variables, inputs, batch)
        total = np.asarray(total[0], np.float32)[: image.shape[0], : image.shape[1]]
        return total / total.sum(axis=-1, keepdims=True)


def load_segmenter(run: str | os.PathLike, checkpoint: str | os.PathLike | None = None) -> Segmenter:
    """Load a finetuned model.

    Example:
      segmenter = cp2_jax.load_segmenter("runs/mine")
      result = segmenter.predict("photo.jpg")
      result.shares, result.labels.shape  # {"road": 0.4, …}, (480, 640)
      result.show()

    Args:
      run: the work directory of a finetuning, or one of its checkpoints.
      checkpoint: which one of the work directory: "newest" (the default), "best", or the number of a step.

    Raises:
      CheckpointError: there is no checkpoint, it cannot be read, or it is of another kind, such as a pretraining.
      ConfigError: it has no config of its own, as a converted model.
    """
    kinds.refuse_images(run)
    model = saved.open_saved(run, checkpoint)
    names = tuple(model.config.data.class_names)
    return Segmenter(names, model.config, predictor.make_predictor(model.config), jax.device_put(model.variables))


def _free(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the first file in a folder that is not there, or that an earlier prediction of the image was written to."""
    stem = pathlib.Path(name).stem or "prediction"
    for number in itertools.count(1):
        path = folder / (f"{stem}_{number}.png" if number > 1 else f"{stem}.png")
        if not path.exists() or (name and class_maps.source_of(path) == _source(name)):
            return path


def _source(name: str) -> str:
    """Return what a class map notes of where its image came from; bytes of a name that are no text as `\\xe9`."""
    return files.as_text(os.path.abspath(name)) if name else ""


def _has_display() -> bool:
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))
