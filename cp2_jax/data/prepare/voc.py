"""PASCAL VOC's training masks, augmented by those of the Semantic Boundaries Dataset (SBD): 10,582 training images."""

from __future__ import annotations

import os
import pathlib
import shutil

import numpy as np
import scipy.io
from jaxtyping import UInt8
from PIL import Image

from cp2_jax.data import files, text
from cp2_jax.data.errors import SegmentationError
from cp2_jax.pictures import class_colors
from cp2_jax.runs import progress

FOLDER, LIST = "SegmentationClassAug", "ImageSets/Segmentation/train_aug.txt"


def read_sbd_mask(path: str | os.PathLike) -> UInt8[np.ndarray, "height width"]:
    """Return the classes, 0-20, of one of SBD's `cls/*.mat` files.

    Raises:
      SegmentationError: naming the file, if it cannot be read or is no such file.
    """
    try:
        mask = scipy.io.loadmat(path)["GTcls"][0]["Segmentation"][0]
    except Exception as error:  # SciPy raises OSError, ValueError, KeyError, MatReadError and more
        raise SegmentationError(f"{path} is no mask file of SBD: {type(error).__name__}: {error}") from error
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise SegmentationError(f"{path} is no mask file of SBD: GTcls.Segmentation is {mask.dtype} {mask.shape}")
    return mask


def augment_voc(voc: str | os.PathLike, sbd: str | os.PathLike) -> int:
    """Make `SegmentationClassAug` and `ImageSets/Segmentation/train_aug.txt` in VOC's folder, as MMSegmentation does.

    The list has VOC's own training images, then those of SBD (its train and val lists) that are neither in VOC's training
    nor in its validation list. Masks of VOC's own images are VOC's, whose borders are ignored; SBD's have no borders.
    The folder appears when it is complete, the list last; if both are there, nothing is done.

    Args:
      voc: VOCdevkit/VOC2012.
      sbd: benchmark_RELEASE/dataset, which holds cls, train.txt and val.txt.

    Returns:
      Number of images in the list; 10,582 for the whole data sets.

    Raises:
      SegmentationError: naming what is missing or broken.
    """
    voc, sbd = files.place(voc), files.place(sbd)
    folder, list_path = voc / FOLDER, voc / LIST
    if folder.is_dir() and list_path.is_file():
        return len(text.read_lines(list_path, SegmentationError))
    sbd = sbd / "dataset" if (sbd / "dataset").is_dir() else sbd
    own_train, own_val = (_names(voc / f"ImageSets/Segmentation/{split}.txt") for split in ("train", "val"))
    boundaries = dict.fromkeys(_names(sbd / "train.txt") + _names(sbd / "val.txt"))
    added = [name for name in boundaries if name not in {*own_train, *own_val}]

    if folder.is_dir():
        # Complete if it is of here, for it is renamed when it is; often it was downloaded ready-made.
        missing = [name for name in own_train + own_val + added if not (folder / f"{name}.png").is_file()]
        if missing:
            raise SegmentationError(f"{folder} is there but lacks {missing[0]}.png ({len(missing)} in all); move it away")
    else:
        _write_masks(voc, sbd, own_train + own_val, added)
    temporary = list_path.with_suffix(".incomplete")
    temporary.write_text("".join(f"{name}\n" for name in own_train + added), encoding="utf-8")
    temporary.replace(list_path)
    return len(own_train) + len(added)


def _write_masks(voc: pathlib.Path, sbd: pathlib.Path, own: list[str], added: list[str]) -> None:
    unfinished = voc / f"{FOLDER}.incomplete"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    for name in progress.track(own, "VOC's masks"):
        source = voc / f"SegmentationClass/{name}.png"
        if not source.is_file():
            raise SegmentationError(f"mask {source} is missing, but VOC's lists name {name}")
        shutil.copyfile(source, unfinished / f"{name}.png")
    palette = class_colors(256).tobytes()
    for name in progress.track(added, "SBD's masks"):
        picture = Image.fromarray(read_sbd_mask(sbd / f"cls/{name}.mat"))
        picture.putpalette(palette)
        picture.save(unfinished / f"{name}.png")
    unfinished.rename(voc / FOLDER)


def _names(path: pathlib.Path) -> list[str]:
    if not path.is_file():
        raise SegmentationError(f"{path} is missing")
    return [line.split()[0] for line in text.read_lines(path, SegmentationError) if line.strip()]
