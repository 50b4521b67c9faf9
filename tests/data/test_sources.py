"""Sources of encoded images: folders, and a TFDS data set written here in a few records."""

import os
import pickle
import shutil
import subprocess
import sys

import ml_collections
import numpy as np
import pytest
from helpers.images import encode
from PIL import Image

from cp2_jax.data.errors import UnreadableImage
from cp2_jax.data.images import sources


def png(value: int, size=(5, 4)) -> bytes:
    return encode(Image.new("RGB", size, (value, value, value)))


def write_tfds(directory, file_format="array_record", count=5):
    """A data set 'tiny' with features image, mask and label; returns its version folder."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                "label": tfds.features.Scalar(np.int64),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, download_manager):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            for i in range(count):
                yield i, {"image": png(10 * i), "mask": png(i), "label": i}

    builder = Tiny(data_dir=str(directory), file_format=file_format)
    builder.download_and_prepare()
    return builder.data_dir


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"))


def test_folder_is_recursive_sorted_and_knows_suffixes(tmp_path):
    names = ["b/2.JPG", "a.png", "b/1.jpeg", "b/c/0.TIFF", "z.webp", "b-x/0.bmp"]
    for name in [*names, "notes.txt", ".hidden.png", ".cache/a.png", "noending"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    source = sources.ImageFolder(tmp_path)
    want = ["a.png", "b/1.jpeg", "b/2.JPG", "b/c/0.TIFF", "b-x/0.bmp", "z.webp"]
    assert [source[i] for i in range(len(source))] == [name.encode() for name in want]
    assert source.name(3) == str(tmp_path / "b/c/0.TIFF")
    assert pickle.loads(pickle.dumps(source))[4] == b"b-x/0.bmp"


def test_folder_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").write_bytes(b"a")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "link")
    os.symlink(tmp_path / "data", tmp_path / "data" / "circle")
    source = sources.ImageFolder(tmp_path / "data")
    assert len(source) == 1 and source[0] == b"a"


def test_folder_missing_or_empty_says_where_it_looked(tmp_path):
    with pytest.raises(sources.SourceError, match=f"{tmp_path}/absent does not exist"):
        sources.ImageFolder(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(sources.SourceError, match=f"no image found in {tmp_path}.*\\.jpeg"):
        sources.ImageFolder(tmp_path)


def test_tfds_gives_the_bytes_that_were_stored(tiny):
    source = sources.TfdsSource(tiny, "train")
    # TFDS stores examples in an order of its own, the same for all features.
    both = sources.TfdsSource(tiny, "train", keys=("image", "mask"))
    assert len(source) == len(both) == 5
    assert {source[i] for i in range(5)} == {png(10 * i) for i in range(5)}
    pairs = {(png(10 * i), png(i)) for i in range(5)}
    assert {(both[i]["image"], both[i]["mask"]) for i in range(5)} == pairs
    assert [both[np.int64(i)]["image"] for i in range(5)] == [source[i] for i in range(5)]
    assert str(tiny) in source.name(2) and "train[2]" in source.name(2)


def test_tfds_pickles_reopens_and_slices(tiny):
    source = sources.TfdsSource(tiny, "train")
    first = source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again._records is None  # not opened before it is used
    assert again[0] == first and len(again) == 5
    assert len(sources.TfdsSource(tiny, "train[:60%]")) == 3


def test_tfds_finds_the_single_version_below(tiny):
    above = os.path.dirname(os.path.dirname(str(tiny)))
    assert len(sources.TfdsSource(above, "validation")) == 5


def test_tfds_files_that_are_missing_or_damaged_are_named(tiny, tmp_path):
    folder = shutil.copytree(str(tiny), tmp_path / "1.0.0")
    (shard,) = folder.glob("*train*")
    source, data = sources.TfdsSource(folder), shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImage, match=r"1\.0\.0:train\[1\]: has nothing in feature image: is its file damaged"):
        source[1]
    shard.write_bytes(b"1")
    with pytest.raises(UnreadableImage, match=r"1\.0\.0:train\[1\]: cannot be read: "):
        sources.TfdsSource(folder)[1]
    shard.unlink()
    for split in ("train", "train[:50%]"):
        with pytest.raises(sources.SourceError, match=f"no such file: {shard}; split .* needs it: put it back"):
            sources.TfdsSource(folder, split)
    for name in ("features.json", "dataset_info.json"):
        (folder / name).write_text("{")
        with pytest.raises(sources.SourceError, match=r"1\.0\.0 cannot be opened as a TFDS data set \(.*\); make it again"):
            sources.TfdsSource(folder)


def test_tfds_errors_name_the_remedy(tiny, tmp_path):
    with pytest.raises(sources.SourceError, match="no split 'test'; it has: train, validation"):
        sources.TfdsSource(tiny, "test")
    with pytest.raises(sources.SourceError, match="no feature 'picture'; it has: .*image"):
        sources.TfdsSource(tiny, "train", keys=("picture",))
    with pytest.raises(sources.SourceError, match="'label' .* is no image"):
        sources.TfdsSource(tiny, "train", keys=("label",))
    with pytest.raises(sources.SourceError, match="no such TFDS data set: .*absent"):
        sources.TfdsSource(tmp_path / "absent")
    with pytest.raises(sources.SourceError, match="no TFDS data set in"):
        sources.TfdsSource(tmp_path)


def test_tfds_with_several_versions_asks_for_one(tiny, tmp_path):
    for version in ("1.0.0", "1.1.0"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "dataset_info.json").write_text("{}")
    with pytest.raises(sources.SourceError, match=r"several.*1\.0\.0.*1\.1\.0"):
        sources.TfdsSource(tmp_path)


def test_tfds_in_another_format_says_how_to_prepare(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "1.0.0")
    info = tmp_path / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(sources.SourceError, match="stored as tfrecord.*file_format='array_record'"):
        sources.TfdsSource(tmp_path)


def test_tensorflow_stays_out(tiny):
    code = (
        "import sys\n"
        "from cp2_jax.data.images import sources, stream\n"
        f"source = sources.TfdsSource({str(tiny)!r})\n"
        "batches = stream.pretrain_dataset(source, batch_size=2, image_size=4, seed=0)\n"
        "assert next(batches)['foreground'].shape == (2, 2, 4, 4, 3)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_open_source(tiny, tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    config = ml_collections.ConfigDict({"source": "folder", "path": str(tmp_path), "split": "train"})
    assert isinstance(sources.open_source(config), sources.ImageFolder)
    config.source, config.path, config.split = "tfds", str(tiny), "validation"
    source = sources.open_source(config)
    assert isinstance(source, sources.TfdsSource) and source.split == "validation"
    config.source = "lmdb"
    with pytest.raises(sources.SourceError, match="'lmdb'; it must be one of folder, tfds"):
        sources.open_source(config)
    config.path = ""
    with pytest.raises(sources.SourceError, match="data.path is empty"):
        sources.open_source(config)
