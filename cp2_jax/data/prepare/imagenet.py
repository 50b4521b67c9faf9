"""ImageNet, or any folder of images, as a TFDS `array_record` data set; re-encoded at a bounded shorter side if wanted."""

from __future__ import annotations

import io
import os
import pathlib
import tarfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import simplejpeg
from PIL import Image

from cp2_jax.data import files, walking
from cp2_jax.data.ahead import ahead
from cp2_jax.data.images import decoding
from cp2_jax.data.images.sources import SUFFIXES, ImageFolder, ParquetSource, SourceError
from cp2_jax.data.prepare.writing import write_dataset

NAME = "images"


def read_images(path: str | os.PathLike) -> Iterator[tuple[str, str, bytes]]:
    """Yield (class, name, encoded bytes) of every image in a folder, a tar file or Parquet files.

    Args:
      path: a folder, with a folder for each class or not; ILSVRC2012_img_train.tar, which holds a tar file for each class;
        ILSVRC2012_img_val.tar, which holds images; a folder of the classes' tar files; or Parquet files (a pattern that
        ends in ".parquet"), column "image". The class is the name of the folder or tar file that the image lies in
        directly; "" where there is none.

    Raises:
      SourceError: if there is no such path, a tar file is broken, or no image is found.
    """
    path = files.place(path)
    images = _read(path)
    first = next(images, None)
    if first is None:
        raise SourceError(f"no image found in {path}")
    yield first
    yield from images


def _read(path: pathlib.Path) -> Iterator[tuple[str, str, bytes]]:
    if path.suffix.lower() == ".parquet":
        rows = ParquetSource(path)
        yield from (("", pathlib.Path(rows.name(index)).name, rows[index]) for index in range(len(rows)))
        return
    if path.is_file():
        yield from _read_tar(path, "")
        return
    if not path.is_dir():
        raise SourceError(f"no such folder or tar file: {path}")
    tars = sorted(path.glob("*.tar"))
    for tar in tars:
        yield from _read_tar(tar, tar.stem)
    if not tars:
        folder = ImageFolder(path)
        for index in range(len(folder)):
            name = pathlib.Path(folder.name(index)).relative_to(path)
            yield name.parent.name, name.as_posix(), folder[index]


def _read_tar(file: pathlib.Path | io.BufferedIOBase, class_name: str, place: str = "") -> Iterator[tuple[str, str, bytes]]:
    place = place or str(file)
    try:
        with tarfile.open(**({"name": file} if isinstance(file, pathlib.Path) else {"fileobj": file})) as archive:
            for member in archive:
                name = pathlib.PurePosixPath(member.name)
                if not member.isfile() or name.name.startswith("."):
                    continue
                if name.suffix == ".tar":
                    yield from _read_tar(archive.extractfile(member), name.stem, f"{place}:{member.name}")
                elif name.suffix.lower() in SUFFIXES:
                    label = class_name or name.parent.name
                    yield label, f"{label}/{name.name}" if label else name.name, archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(f"tar file {place} is broken ({error}); download it again") from error


def reencode(data: bytes, name: str, shorter_side: int, quality: int = 95) -> bytes:
    """Return a JPEG whose shorter side is at most `shorter_side` pixels.

    Images that are no larger stay as they are, byte for byte, if they are JPEGs. Others are made smaller by Pillow's
    antialiased bicubic filter, upright, and encoded with chroma at half resolution, as most JPEGs are.

    Args:
      quality: libjpeg's.

    Raises:
      UnreadableImage: naming the image.
    """
    pixels = decoding.decode(data, name)
    height, width = pixels.shape[:2]
    scale = min(1.0, shorter_side / min(height, width))
    if scale == 1 and data[:2] == b"\xff\xd8":
        return data
    size = max(1, round(width * scale)), max(1, round(height * scale))
    smaller = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC) if scale < 1 else Image.fromarray(pixels)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(smaller), quality, "RGB", "420")


def prepare_images(
    output: str | os.PathLike,
    inputs: Mapping[str, str | os.PathLike],
    shorter_side: int = 0,
    quality: int = 95,
) -> tuple[pathlib.Path, dict[str, list[str]]]:
    """Write images as TFDS features `image`, `label` and `file_name`, as TFDS's own imagenet2012 has them.

    Args:
      inputs: split → where its images are, see `read_images`.
      shorter_side, quality: see `reencode`; 0 keeps every image byte for byte.

    Returns:
      The folder to give to `data.path`, and for each split the images that could not be read: they are kept as they
      are, for training to treat them as it would in their folder. An image without a class has label -1.

    Raises:
      SourceError: see `read_images`; also for a side below 32 or a quality outside 1-100.
    """
    import tensorflow_datasets as tfds

    if shorter_side and shorter_side < 32 or not 1 <= quality <= 100:
        raise SourceError(f"shorter side {shorter_side} and quality {quality}: at least 32 (or 0), and 1-100")
    unreadable: dict[str, list[str]] = {split: [] for split in inputs}
    classes = sorted({label for path in inputs.values() for label in _class_names(path)} - {""})

    def record(split, label, name, data):
        if shorter_side:
            try:
                data = reencode(data, name, shorter_side, quality)
            except decoding.UnreadableImage as error:
                unreadable[split].append(str(error))
        return {"image": data, "label": label if label in classes else -1, "file_name": name}

    def records(split, path):
        count = os.cpu_count() or 1
        with ThreadPoolExecutor(count) as pool:
            yield from ahead(pool, ((record, split, *image) for image in read_images(path)), 4 * count)

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=classes) if classes else tfds.features.ClassLabel(num_classes=1),
        "file_name": tfds.features.Text(),
    }
    sources = " ".join(f"{split}={pathlib.Path(path).absolute()}" for split, path in inputs.items())
    settings = f"{sources} shorter_side={shorter_side} quality={quality}"
    written = {split: records(split, path) for split, path in inputs.items()}
    return write_dataset(output, NAME, written, features, settings, "Images."), unreadable


def _class_names(path: str | os.PathLike) -> set[str]:
    """Return the classes in a folder or tar file without reading the images."""
    path = files.place(path)
    if path.suffix.lower() == ".parquet":
        return set()
    if path.is_dir():
        tars = {tar.stem for tar in path.glob("*.tar")}
        if tars:
            return tars
        inside = {os.path.dirname(name) for name in walking.walk(path, SUFFIXES).files} - {""}
        return {os.path.basename(folder) for folder in inside}
    if not path.is_file():
        raise SourceError(f"no such folder or tar file: {path}")
    try:
        with tarfile.open(path) as archive:
            inside = [pathlib.PurePosixPath(member.name) for member in archive if member.isfile()]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(f"tar file {path} is broken ({error}); download it again") from error
    return {name.stem if name.suffix == ".tar" else name.parent.name for name in inside}
