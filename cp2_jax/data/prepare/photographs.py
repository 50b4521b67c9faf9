"""Photographs that lie in one NumPy file, as a TFDS `array_record` data set: small images by the ten thousand."""

import os
import zipfile

import numpy as np

from cp2_jax.data import files
from cp2_jax.data.errors import SourceError
from cp2_jax.data.prepare.writing import write_dataset

NAME = "photographs"


def prepare(packed: str | os.PathLike, output: str | os.PathLike, held_out: int = 500) -> os.PathLike:
    """Write the data set and return the folder that `TfdsSource` opens; safe to run twice (see `write_dataset`).

    Args:
      packed: an .npz file with `jpeg`, uint8 [bytes], all images one after the other as they are encoded, and `offset`,
        int [images + 1], where each begins and the last ends.
      output: made if absent; the data set goes into `output/photographs/1.0.0`.
      held_out: images, spread over the file, that become the split `validation`; the others are `train`.

    Raises:
      SourceError: if there is no such file, or one that holds something else.
    """
    path = files.place(packed)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            data, offset = arrays["jpeg"], arrays["offset"].astype(np.int64)
    except FileNotFoundError as error:
        raise SourceError(f"no such file: {path}") from error
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is no .npz file with the arrays 'jpeg' and 'offset' ({error})") from error
    count = len(offset) - 1
    if data.dtype != np.uint8 or count <= held_out or offset[0] or offset[-1] != len(data) or np.any(np.diff(offset) < 1):
        raise SourceError(
            f"{path}: 'offset' must begin with 0, rise, and end with the {len(data)} bytes of 'jpeg', with more than "
            f"{held_out} images between"
        )
    import tensorflow_datasets as tfds  # here, because it takes a second

    # Of classes that lie one after the other each gives some.
    chosen = set(np.linspace(0, count - 1, held_out).round().astype(int).tolist())
    splits = {
        "train": [i for i in range(count) if i not in chosen],
        "validation": [i for i in range(count) if i in chosen],
    }

    def examples(indices):
        for i in indices:
            yield {"image": data[offset[i] : offset[i + 1]].tobytes()}

    return write_dataset(
        output,
        NAME,
        {split: examples(indices) for split, indices in splits.items()},
        {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg")},
        f"file={path.name} bytes={len(data)} held_out={held_out}",
        "Photographs of one NumPy file.",
        {split: len(indices) for split, indices in splits.items()},
    )
