"""What a path is: a run, a converted checkpoint, images, labelled data. For messages that say which one was given."""

import json
import os
from collections.abc import Mapping

from ml_collections import ConfigDict

from cp2_jax.data.images.sources import SUFFIXES, SourceError
from cp2_jax.options import ConfigError
from cp2_jax.paths import AnyPath, BucketPath, at, is_bucket

# Folders of photographs and of masks, as they lie side by side in labelled data sets.
_PHOTOS = ("images", "JPEGImages", "img_dir", "leftImg8bit", "image", "imgs", "img")
_MASKS = (
    *("labels", "masks", "annotations", "SegmentationClass", "SegmentationClassAug", "SegmentationClassPNG"),
    *("ann_dir", "gtFine", "mask", "label"),
)


def kind_of(path: str | os.PathLike) -> str:
    """Return in a few words what a path is, such as "a pretraining run" or "a folder of images"."""
    path = at(path)
    if not path.exists():
        return "a path at which there is nothing"
    if path.is_file():
        return "an image" if path.suffix.lower() in SUFFIXES else "a file"
    if (path / "checkpoints").is_dir():
        return {"pretrain": "a pretraining run", "finetune": "a finetuning run"}.get(_job(path), "a run")
    if (path / "state").is_dir() or any(child.name.isdecimal() and (child / "state").is_dir() for child in _children(path)):
        return "a checkpoint"
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return "a folder of labelled images"
    if any(child.suffix.lower() in SUFFIXES for child in _children(path)):
        return "a folder of images"
    return "a folder"


def is_model(path: str | os.PathLike) -> bool:
    """Say whether a path is a run or a checkpoint of ours."""
    return kind_of(path).endswith(("run", "checkpoint"))


def is_tfds(path: str | os.PathLike) -> bool:
    """Say whether a folder is a TFDS data set, or holds one as TFDS lays it out: `NAME/VERSION/dataset_info.json`."""
    path = at(path)
    return any(next(path.glob(f"{'*/' * depth}dataset_info.json"), None) for depth in range(3))


def is_given(checkpoint: str | os.PathLike | None) -> bool:
    """Say whether there is a checkpoint to start from: neither None nor an empty text.

    Raises:
      ConfigError: for what is no path.
    """
    return checkpoint is not None and (checkpoint != "" if isinstance(checkpoint, str) else bool(at(checkpoint)))


def refuse_types(model: object, config: object) -> None:
    """Refuse what is neither variants nor keys of a model, or no config: it would be passed over in silence.

    Raises:
      ConfigError: saying what was given and what to give.
    """
    if model is not None and not isinstance(model, str | Mapping):
        raise ConfigError(
            f"model is a {type(model).__name__}: give variants of the config as a text, such as 'vit,fcn', or a dict of "
            "keys of config.model"
        )
    if config is not None and not isinstance(config, str | os.PathLike | ConfigDict):
        raise ConfigError(
            f"config is a {type(config).__name__}: give the name or path of a config, or a config itself; single keys are "
            "changed with changes={…}"
        )


def refuse_no_name(out: str | os.PathLike) -> None:
    """Refuse an empty text as a work directory: it would be the current directory.

    Raises:
      ConfigError: saying so.
    """
    if out == "":
        raise ConfigError("out is an empty text, which would be the current directory: name a work directory")


def refuse_a_list(images: object, instead: str) -> None:
    """Refuse several images where a folder of them is wanted.

    Args:
      instead: what to do with a list, in words that follow "to take some images, ".

    Raises:
      SourceError: saying what was given and what to do.
    """
    if images is not None and not isinstance(images, str | os.PathLike):
        raise SourceError(
            f"a {type(images).__name__} was given, where a folder of images is wanted; to take some images, {instead}"
        )


def refuse_a_model(path: str | os.PathLike | None, wanted: str = "a folder of images") -> None:
    """Refuse a run or a checkpoint where images are wanted.

    Raises:
      SourceError: saying which it is.
    """
    if path is not None and not isinstance(path, str | os.PathLike):
        raise SourceError(
            f"a {type(path).__name__} was given, where {wanted} is wanted; to take some of its files, name them in a text "
            "file, a path on each line, and set data.list"
        )
    if path and is_model(path):
        raise SourceError(f"{path} is {kind_of(path)}, where {wanted} is wanted")


def refuse_masks(images: str | os.PathLike) -> None:
    """Refuse a folder of labelled images where images are wanted: its masks would be taken for photographs.

    Raises:
      SourceError: naming the folder of the masks, and the one to give instead.
    """
    if not images or is_bucket(images) or not at(images).is_dir():
        return
    inside = {child.name: child for child in _children(at(images)) if child.is_dir()}
    photos = [name for name in _PHOTOS if name in inside]
    for masks in (name for name in _MASKS if photos and name in inside):
        if any(file.suffix.lower() in SUFFIXES for file in inside[masks].rglob("*")):
            raise SourceError(
                f"{images} is a folder of labelled images: the masks in {masks} would be taken for photographs; give "
                f"{inside[photos[0]]}"
            )


def refuse_images(path: str | os.PathLike | None) -> None:
    """Refuse images, with or without masks, where a run or a checkpoint is wanted.

    Raises:
      CheckpointError: saying which it is.
    """
    if path and (kind := kind_of(path)).endswith("images"):
        from cp2_jax.runs.checkpoints import CheckpointError  # here, because it imports JAX

        raise CheckpointError(f"{path} is {kind}, where a run or a checkpoint is wanted")


def refuse_inside(images: str | os.PathLike, out: str | os.PathLike, inside: bool = True) -> None:
    """Refuse to write into a folder that images are read from: what is written there would be taken for images.

    Args:
      images: a folder, or something else, which may contain nothing.
      out: the folder to write to.
      inside: refuse a folder below `images` as well.

    Raises:
      ConfigError: naming both.
    """
    images_at, out_at = (at(path).resolve() for path in (images or os.devnull, out))
    if isinstance(images_at, BucketPath) != isinstance(out_at, BucketPath):
        return
    if out_at == images_at or (inside and out_at.is_relative_to(images_at)):
        where = "is" if out_at == images_at else "lies in"
        raise ConfigError(f"{out} {where} the folder of the images, {images}: name another place to write to")


def _children(path: AnyPath) -> list[AnyPath]:
    return list(path.iterdir())


def _job(path: AnyPath) -> str:
    from cp2_jax.runs.settings import upgrade  # here, because it imports JAX

    try:
        return upgrade(json.loads((path / "config.json").read_text("utf-8"))).get("kind", "")
    except (OSError, ValueError, AttributeError):
        return ""
