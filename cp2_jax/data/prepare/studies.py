"""The data of the study of Quick Tuning, small enough to carry about: scenes, photographs, CamVid in 48 x 64 pixels."""

import os
import pathlib

import cv2

from cp2_jax.data import demo, files
from cp2_jax.data.errors import SourceError
from cp2_jax.data.prepare import photographs
from cp2_jax.data.prepare.writing import write_dataset

SIZE = (48, 64)  # of CamVid's frames: height, width
_SPLITS = {"train": "train", "validation": "val"}


def prepare(
    output: str | os.PathLike,
    packed: str | os.PathLike = "",
    camvid: str | os.PathLike = "",
    scenes: int = 1500,
    labelled: int = 400,
) -> dict[str, pathlib.Path]:
    """Write the data sets into `output/scenes`, `/photographs` and `/camvid`; what is complete is left alone.

    Args:
      packed: an .npz file of photographs, see `photographs.prepare`; "": none.
      camvid: CamVid's folder, with images/{train,val} and labels/{train,val}; "": none.
      scenes, labelled: demo scenes of 48 pixels without and with labels; 200 judge.

    Returns:
      name → the folder of the data set.

    Raises:
      SourceError: if an image has no label, or something cannot be read.
    """
    output = files.place(output)
    made = {"scenes": demo.prepare(output / "scenes", size=48, train=scenes, labelled=labelled)}
    if packed:
        made["photographs"] = pathlib.Path(photographs.prepare(packed, output / "photographs"))
    if camvid:
        made["camvid"] = small_camvid(camvid, output / "camvid")
    return made


def small_camvid(folder: str | os.PathLike, output: str | os.PathLike) -> pathlib.Path:
    """Write CamVid's splits `train` and `validation` at `SIZE`: frames averaged, labels by the nearest pixel.

    Raises:
      SourceError: naming a frame without label, or one that cannot be read.
    """
    import tensorflow_datasets as tfds  # here, because it takes a second

    folder = files.place(folder)
    frames = {ours: sorted((folder / "images" / theirs).glob("*")) for ours, theirs in _SPLITS.items()}
    if not all(frames.values()):
        raise SourceError(f"{folder} has no images/train and images/val; give CamVid's folder")

    def read(path: pathlib.Path, flag: int):
        image = cv2.imread(str(path), flag) if path.is_file() else None
        if image is None:
            raise SourceError(f"{path} is not there or cannot be read")
        return image

    def examples(split: str):
        for path in frames[split]:
            image = read(path, cv2.IMREAD_COLOR)
            label = read(folder / "labels" / _SPLITS[split] / f"{path.stem}.png", cv2.IMREAD_GRAYSCALE)
            image = cv2.resize(image, SIZE[::-1], interpolation=cv2.INTER_AREA)
            label = cv2.resize(label, SIZE[::-1], interpolation=cv2.INTER_NEAREST)
            encoded = (cv2.imencode(".png", array)[1].tobytes() for array in (image, label))
            yield dict(zip(("image", "segmentation_mask"), encoded, strict=True))

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
    }
    counts = {split: len(paths) for split, paths in frames.items()}
    splits = {split: examples(split) for split in frames}
    return write_dataset(output, "camvid", splits, features, f"{SIZE} {counts}", "CamVid in small.", counts)
