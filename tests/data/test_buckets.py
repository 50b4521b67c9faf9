"""Images and labelled pairs in tar shards and Parquet files in buckets, on servers of both kinds."""

import io
import tarfile

import numpy as np
import pytest
from helpers import packing, servers
from ml_collections import ConfigDict

from cp2_jax.data import files, indexes, ranges, tar
from cp2_jax.data.errors import SegmentationError, SourceError
from cp2_jax.data.images.sources import ImageFolder, ParquetSource, TarSource, open_images, open_source
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.labelled.sources import open_pairs
from cp2_jax.data.shards import common_folder, find_files, short_names
from cp2_jax.paths import BucketError, at
from cp2_jax.segmentation import folders


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """Where indexes are kept that cannot be beside their shards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def put(path, local):
    path.write_bytes(local.read_bytes())
    return path


@pytest.fixture
def shards(bucket, tmp_path):
    """Eight images in two tar shards and in two Parquet files."""
    items = list(packing.IMAGES.items())
    for number, part in enumerate((items[:3], items[3:])):
        put(bucket / "data" / f"x-{number}.tar", packing.write_tar(tmp_path / f"x-{number}.tar", dict(part)))
        images = [data for _, data in part]
        put(
            bucket / "data" / f"x-{number}.parquet",
            packing.write_parquet(tmp_path / f"x-{number}.parquet", images, compression="none"),
        )
    return bucket / "data"


def test_all_sources_hold_the_same_images(shards, tmp_path):
    expected = packing.everything(ImageFolder(packing.folder(tmp_path / "folder")))
    for where in (f"{shards}/x-{{0..1}}.tar", f"{shards}/x-*.tar", f"{shards}", f"{shards}/x-0.tar::{shards}/x-1.tar"):
        assert packing.everything(TarSource(where)) == expected, where
    assert packing.everything(ParquetSource(f"{shards}/x-?.parquet")) == expected
    (shards / "files.txt").write_text("x-0.tar\nx-1.tar\n")
    source = TarSource(f"{shards}/files.txt")
    assert packing.everything(source) == expected and source.name(3) == f"{shards}/x-1.tar/{list(packing.IMAGES)[3]}"
    (shards / "list.txt").write_text("x-1.tar/b/2.png\na/1.png\n")
    assert packing.everything(TarSource(f"{shards}/x-*.tar", "list.txt")) == [
        packing.IMAGES["b/2.png"],
        packing.IMAGES["a/1.png"],
    ]
    assert packing.everything(open_images(f"{shards}/x-0.tar")) == expected[:3]


def test_the_index_is_kept_beside_or_in_the_cache(shards, proxy):
    TarSource(f"{shards}/x-0.tar")
    kept = shards / indexes.FOLDER / "x-0.tar.tar.npz"
    assert kept.is_file()
    before = proxy.requests
    assert len(TarSource(f"{shards}/x-0.tar")) == 3 and proxy.requests - before < 12
    proxy.fault = lambda method, path: "403" * (method not in ("GET", "HEAD"))
    source = TarSource(f"{shards}/x-1.tar")
    assert len(source) == 5 and not (shards / indexes.FOLDER / "x-1.tar.tar.npz").is_file()
    assert indexes.load(shards / "x-1.tar", "tar") is not None


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_a_folder(shards, proxy, tmp_path, workers):
    """Read ahead in threads and in worker processes, also from the middle."""
    if workers and proxy.scheme == "s3":
        pytest.skip("processes take long to start; what they do is the same for both kinds")
    options = {"batch_size": 4, "image_size": 16, "seed": 3, "start_step": 5, "workers": workers}
    folder = ImageFolder(packing.folder(tmp_path / "folder"))
    ours, theirs = (pretrain_dataset(source, **options) for source in (TarSource(f"{shards}/x-*.tar"), folder))
    for _ in range(6):
        mine, other = next(ours), next(theirs)
        for key in other:
            np.testing.assert_array_equal(mine[key], other[key])
    ours.close() if hasattr(ours, "close") else None
    theirs.close() if hasattr(theirs, "close") else None


def test_what_is_expected_is_on_its_way(shards, proxy):
    source = TarSource(f"{shards}/x-*.tar")
    for index in range(len(source)):
        source.expect(index)
        source.expect(index)
    before = proxy.requests
    assert packing.everything(source) == list(packing.IMAGES.values()) and proxy.requests - before <= len(source)
    proxy.fault = lambda method, path: "503"
    source.expect(0)
    proxy.fault = servers.nothing
    assert source[0] == packing.IMAGES["a/0.png"]


def test_a_shard_that_changes_or_goes_is_named(shards, tmp_path):
    source, column = TarSource(f"{shards}/x-0.tar"), ParquetSource(f"{shards}/x-0.parquet")
    put(shards / "x-0.tar", packing.write_tar(tmp_path / "other.tar", {"a/0.png": packing.png(99)}))
    with pytest.raises(SourceError, match=f"tar shard {shards}/x-0.tar was changed while it was in use; start again"):
        source[0]
    assert packing.everything(TarSource(f"{shards}/x-0.tar")) == [packing.png(99)]  # the index is made anew
    (shards / "x-0.parquet").unlink()
    with pytest.raises(SourceError, match=f"{shards}/x-0.parquet is gone from its bucket"):
        column[0]


def test_bad_input_is_one_line(shards, proxy):
    for call, words in (
        (
            lambda: TarSource(f"{shards}/x-{{0..2}}.tar"),
            f"no such file, or no such bucket: {shards}/x-2.tar; set data.path",
        ),
        (lambda: TarSource(f"{shards}/y-*.tar"), "no .tar file in"),
        (lambda: TarSource(f"{proxy.scheme}://no-such-bucket/x.tar"), "no such bucket: .*no-such-bucket/x.tar"),
        (lambda: ParquetSource(f"{shards}/x-0.parquet", "photo"), "has no column 'photo'; set data.image_column to one of"),
        (lambda: open_images(f"{shards}"), "single images are not read from buckets; pack them"),
        (
            lambda: open_source(ConfigDict({"source": "tfds", "path": str(shards)})),
            "array_record's library reads no buckets",
        ),
    ):
        with pytest.raises(SourceError, match=words):
            call()
    with pytest.raises(SegmentationError, match="single images are not read from buckets; pack the pairs"):
        open_pairs(ConfigDict({"source": "folder", "path": str(shards)}), "train")
    (shards / "broken.tar").write_bytes((shards / "x-0.tar").read_bytes()[:2000])
    with pytest.raises(SourceError, match="broken.tar is cut off or no tar file"):
        TarSource(f"{shards}/broken.tar")
    proxy.fault = lambda method, path: "403"
    with pytest.raises(BucketError, match="this account may not"):
        TarSource(f"{shards}/x-0.tar")


def test_patterns_in_folders_are_those_of_a_disk(bucket, tmp_path):
    for name in ("a/x-0.tar", "b/x-1.tar", "b/c/x-2.tar", "b/.cp2_index/x.tar", "b/notes.txt"):
        (bucket / name).write_bytes(b"1")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    for pattern in ("*/x-*.tar", "b/*.tar", "**/*.tar", "**/x-2.tar", "{a,b}/**/x-?.tar"):
        ours = [str(file).removeprefix(f"{bucket}/") for file in find_files(f"{bucket}/{pattern}", ".tar", "tar shards")]
        local = [file.relative_to(tmp_path) for file in find_files(f"{tmp_path}/{pattern}", ".tar", "tar shards")]
        assert ours == [file.as_posix() for file in local], pattern
    mixed = find_files(f"{bucket}/a/x-0.tar::{tmp_path}/b/x-1.tar", ".tar", "tar shards")
    assert common_folder(mixed) == bucket / "a" and short_names(mixed, bucket / "a") == ["x-0.tar", f"{tmp_path}/b/x-1.tar"]
    (bucket / "b/x-3.tar.gz").write_bytes(b"1")
    with pytest.raises(SourceError, match="b/x-3.tar.gz is compressed"):
        find_files(f"{bucket}/b", ".tar", "tar shards")


def test_pairs_and_predictions(bucket, tmp_path):
    members = {f"{name}.{kind}": packing.png(index) for index, name in enumerate("ab") for kind in ("jpg", "png")}
    put(bucket / "train.tar", packing.write_tar(tmp_path / "train.tar", members))
    data = {"source": "tar", "path": f"{bucket}/{{split}}.tar", "images": "images", "labels": "labels"}
    pairs = open_pairs(ConfigDict(data | {"image_suffix": "", "label_suffix": ""}), "train")
    pairs.expect(1)
    assert len(pairs) == 2 and pairs[1] == (members["b.jpg"], members["b.png"])
    output = folders.Output(bucket / "predicted", {"step": 1}, [at("a.png")])
    output.write("masks", at("a.png"), lambda path: path.write_bytes(b"1"))
    (bucket / "predicted" / "predictions.json").unlink()
    with pytest.raises(SegmentationError, match="masks/a.png is there already and no prediction wrote it"):
        folders.Output(bucket / "predicted", {"step": 1}, [at("a.png")])


def test_an_object_as_a_file_that_can_seek(bucket, monkeypatch):
    monkeypatch.setattr(ranges, "BLOCK", 1000)
    data = np.random.default_rng(0).integers(0, 256, 10_500, np.uint8).tobytes()
    (bucket / "x").write_bytes(data)
    file = files.open_binary(bucket / "x")
    assert file.read(1500) + file.read(7) + file.read() == data and file.read(1) == b""
    assert file.seek(-5, io.SEEK_END) == len(data) - 5 and file.read(100) == data[-5:]
    assert file.seek(999) == 999 and file.read(2) == data[999:1001] and file.tell() == 1001
    buffer = bytearray(10)
    assert file.readinto(buffer) == 10 and bytes(buffer) == data[1001:1011]


def test_a_tar_inside_a_tar(bucket, tmp_path):
    inner = packing.write_tar(tmp_path / "n01.tar", {"a.png": packing.png(1)}).read_bytes()
    put(bucket / "all.tar", packing.write_tar(tmp_path / "all.tar", {"n01.tar": inner}, format=tarfile.PAX_FORMAT))
    members = tar.open_members(f"{bucket}/all.tar")
    assert members.all_names() == ["n01.tar/a.png"] and members.read(0) == packing.png(1)
