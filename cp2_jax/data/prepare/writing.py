"""Data sets written as TFDS `array_record`, without TensorFlow: images go in as the encoded bytes that they are."""

from __future__ import annotations

import contextlib
import io
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from cp2_jax.data import files
from cp2_jax.data.ahead import ahead
from cp2_jax.data.labelled.examples import Examples
from cp2_jax.runs import progress

VERSION = "1.0.0"
_COMPLETE = "complete.txt"
_THREADS = 4  # that decode


def is_complete(output: str | os.PathLike, name: str, settings: str) -> pathlib.Path | None:
    """Return the folder of the data set if `write_dataset` finished it with the same settings, else None."""
    result = files.place(output) / name / VERSION
    complete = result / _COMPLETE
    return result if complete.exists() and complete.read_text("utf-8") == settings else None


def write_dataset(
    output: str | os.PathLike,
    name: str,
    splits: Mapping[str, Iterable[dict]],
    features: Mapping[str, object],
    settings: str,
    description: str,
    totals: Mapping[str, int] | None = None,
) -> pathlib.Path:
    """Write a TFDS data set in array_record format, in the order of the examples.

    Safe to run twice: a complete one with the same settings is left alone; a half-written one, or one made with others, is
    replaced. Nothing but `output/name` is touched.

    Args:
      output: made if absent; the data set goes into `output/name/1.0.0`.
      splits: name → examples, dicts of encoded images (bytes), texts and numbers; read only if they are needed.
      features: name → `tfds.features` feature.
      settings: what the result depends on, as text.
      totals: name → number of examples where it is known, for the progress bar.

    Returns:
      The folder that `sources.TfdsSource` opens.
    """
    import tensorflow_datasets as tfds  # here, because it takes a second

    if done := is_complete(output, name, settings):
        return done
    folder = files.place(output)
    if (folder / name).exists():
        shutil.rmtree(folder / name)
    totals = totals or {}
    tracked = {split: progress.track(splits[split], f"{name} {split}", totals.get(split)) for split in splits}
    builder_class = _builder(name, tracked, features, description)
    # TFDS makes a folder for downloads, though there are none, and says that it downloads.
    tfds.disable_progress_bar()
    with tempfile.TemporaryDirectory() as nothing, contextlib.redirect_stdout(io.StringIO()):
        builder = builder_class(data_dir=str(folder), file_format="array_record")
        builder.download_and_prepare(download_dir=nothing)
    result = folder / name / VERSION
    # Written last: without this file the data set counts as half-written.
    (result / _COMPLETE).write_text(settings, encoding="utf-8")
    return result


def _builder(name: str, splits: Mapping[str, Iterable[dict]], features: Mapping[str, object], description: str) -> type:
    """Return a TFDS builder of examples that are there already."""
    import tensorflow_datasets as tfds

    # Not registered: TFDS refuses a second class of the same name, and this one is made at each call.
    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        __doc__ = description
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(dict(features)), disable_shuffling=True
            )

        def _split_generators(self, _dl_manager):
            return {split: iter(enumerate(examples)) for split, examples in splits.items()}

        def _generate_examples(self):
            raise AssertionError("splits are given as generators")

    Builder.name = name
    return Builder


def write_pairs(
    output: str | os.PathLike,
    name: str,
    splits: Mapping[str, Examples],
    names: Sequence[str],
    colors: Sequence[Sequence[int]] = (),
) -> pathlib.Path:
    """Write labelled splits; images and masks stay byte for byte as they are, so that the same config reads them.

    Each image is decoded and held against its mask on the way.

    Args:
      splits: name → pairs.
      names, colors: of the classes; they go into `classes.txt`, see `classes.read_classes`.

    Raises:
      What `Examples.load` raises; nothing that counts as complete is left behind then.
    """
    import tensorflow_datasets as tfds

    def record(examples: Examples, index: int) -> dict:
        examples.load(index)
        image, mask = examples.encoded(index)
        return {"image": image, "segmentation_mask": mask, "name": examples.stem(index)}

    def records(examples: Examples):
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from ahead(pool, ((record, examples, index) for index in range(len(examples))), 2 * _THREADS)

    features = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        "name": tfds.features.Text(),
    }
    lines = [" ".join([n, *map(str, colors[i])] if colors else [n]) for i, n in enumerate(names)]
    settings = "\n".join([*lines, *(f"{split}: {_fingerprint(examples)}" for split, examples in splits.items())])
    totals = {split: len(examples) for split, examples in splits.items()}
    written = {split: records(examples) for split, examples in splits.items()}
    path = write_dataset(output, name, written, features, settings, f"Labelled images: {name}.", totals)
    (path / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _fingerprint(examples: Examples) -> str:
    """Return number, names and sizes of the files in brief: other files, another data set."""
    checksum = 0
    for index in range(len(examples)):
        image, mask = (os.path.getsize(place) for place in examples.places(index))
        checksum = zlib.crc32(f"{examples.stem(index)} {image} {mask}".encode(), checksum)
    return f"{len(examples)} {checksum:08x}"
