"""Tar shards as sources: patterns, indexes, lists, bad input; and the same samples from every source as from a folder."""

import os
import pickle
import tarfile

import numpy as np
import pytest
from helpers.packing import IMAGES, everything, folder, png, write_parquet, write_tar

from cp2_jax.data import indexes, shards
from cp2_jax.data.errors import SourceError
from cp2_jax.data.images.sources import ImageFolder, ParquetSource, TarSource, Where, open_images, open_source
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.prepare import imagenet

pytestmark = pytest.mark.usefixtures("said")


# Patterns.


@pytest.mark.parametrize(
    "pattern, expected",
    [
        ("x", ["x"]),
        ("x-{8..11}", ["x-8", "x-9", "x-10", "x-11"]),
        ("x-{08..11}", ["x-08", "x-09", "x-10", "x-11"]),
        ("x-{2..0}", ["x-2", "x-1", "x-0"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        ("{name}-{0..1}", ["{name}-0", "{name}-1"]),
    ],
)
def test_braces_are_expanded_as_the_shell_does(pattern, expected):
    assert shards.expand_braces(pattern) == expected


def test_too_many_files_are_refused():
    with pytest.raises(SourceError, match="stands for more than"):
        shards.expand_braces("x-{0..99999999999}")


def test_files_by_pattern_folder_list_and_sequence(tmp_path):
    for name in ("x-0.tar", "x-1.tar", "sub/y.tar", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x-1.tar\n\nsub/*.tar\n")

    def found(path):
        return [file.relative_to(tmp_path).as_posix() for file in shards.find_files(path, ".tar", "tar shards")]

    assert found(tmp_path) == ["sub/y.tar", "x-0.tar", "x-1.tar"]
    assert found(f"{tmp_path}/x-{{0..1}}.tar") == found(f"{tmp_path}/x-*.tar") == ["x-0.tar", "x-1.tar"]
    assert found(f"{tmp_path}/x-1.tar::{tmp_path}/sub") == found([tmp_path / "x-1.tar", tmp_path / "sub"])
    assert found(tmp_path / "notes.txt") == ["x-1.tar", "sub/y.tar"]
    with pytest.raises(SourceError, match=r"no such file: .*x-2\.tar \(and 1 more of 4\); set data.path to the tar shards"):
        found(f"{tmp_path}/x-{{0..3}}.tar")
    with pytest.raises(SourceError, match="no .tar file in .*y-"):
        found(f"{tmp_path}/y-*.tar")


# Tar.


def test_members_of_many_shards_are_one_source(tmp_path, said):
    names = list(IMAGES)
    for shard in range(2):
        part = {f"./{name}": IMAGES[name] for name in names[4 * shard : 4 * shard + 4]}
        write_tar(tmp_path / f"x-{shard}.tar", part | {"0.cls": b"1", ".hidden.png": b"", "__MACOSX/0.png": b""})
    source = TarSource(f"{tmp_path}/x-{{0..1}}.tar")
    assert everything(source) == list(IMAGES.values())
    assert source.name(5) == f"{tmp_path}/x-1.tar/b/1.png"
    assert everything(pickle.loads(pickle.dumps(source))) == list(IMAGES.values())
    assert "2 files passed over: .cls 2" in said.text
    where = Where(f"{tmp_path}/x-{{0..1}}.tar")
    assert len(open_source(type("Data", (), {"source": "tar", **vars(where)}))) == 8


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format(tmp_path, kind):
    name = ("long/" * (15 if kind == tarfile.USTAR_FORMAT else 50)) + "é.png"
    source = TarSource(write_tar(tmp_path / "x.tar", {name: png(1), "b.png": png(2)}, format=kind))
    assert everything(source) == [png(1), png(2)] and source.name(0).endswith(name)


def test_imagenets_tar_of_tars(tmp_path):
    inner = write_tar(tmp_path / "n01.tar", {"n01_1.JPEG": png(1), "n01_2.JPEG": png(2)}).read_bytes()
    source = TarSource(write_tar(tmp_path / "train/all.tar", {"n01.tar": inner, "last.png": png(3)}))
    assert everything(source) == [png(1), png(2), png(3)] and source.name(1).endswith("all.tar/n01.tar/n01_2.JPEG")


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", IMAGES)
    TarSource(path)
    assert indexes.load(path, "tar") is not None and (tmp_path / ".cp2_index").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)  # the archive itself is not gone through again
        source = TarSource(path)
    write_tar(path, {"c.png": png(5)})
    os.utime(path, ns=(1, 1))  # older than its index, as after copying
    with pytest.raises(SourceError, match="x.tar was changed while it was in use"):
        source[0]
    assert everything(TarSource(path)) == [png(5)]


def test_an_index_that_was_cut_off_is_made_anew(tmp_path):
    path = write_tar(tmp_path / "x.tar", IMAGES)
    TarSource(path)
    (kept,) = (tmp_path / ".cp2_index").iterdir()
    whole = kept.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        kept.write_bytes(whole[:size])
        assert everything(TarSource(path)) == list(IMAGES.values())


def test_where_the_folder_may_not_be_written_the_index_is_in_the_cache(tmp_path, monkeypatch, said):
    path = write_tar(tmp_path / "data/x.tar", IMAGES)
    (tmp_path / "data/.cp2_index").write_text("no folder")
    TarSource(path)
    assert list((tmp_path / "cache").rglob("x.tar.tar.npz")) and not said.records
    monkeypatch.setattr(indexes, "places", lambda file, name: [tmp_path / "data/.cp2_index/a.npz"])
    assert everything(TarSource(path)) == list(IMAGES.values())
    assert "can be kept neither beside it nor in the cache" in said.text


@pytest.mark.parametrize("compress, kind", [("gz", "gzip"), ("bz2", "bzip2"), ("xz", "xz")])
def test_compressed_shards_are_refused_with_the_reason(tmp_path, compress, kind):
    path = write_tar(tmp_path / "x.tar", IMAGES, f"w:{compress}")
    with pytest.raises(SourceError, match=rf"x\.tar is compressed \({kind}\): .*Unpack it to a plain \.tar"):
        TarSource(path)


def test_a_truncated_shard_is_named(tmp_path, said):
    data = write_tar(tmp_path / "whole/x.tar", IMAGES).read_bytes()
    (tmp_path / "x.tar").write_bytes(data)
    end = len(data.rstrip(b"\0"))
    for size in (0, 100, 600, 2000, end // 2):
        (tmp_path / "x.tar").write_bytes(data[:size])
        with pytest.raises(SourceError, match=r"tar shard .*x\.tar is cut off or no tar file"):
            TarSource(tmp_path / "x.tar")
    (tmp_path / "x.tar").write_bytes(data[: -(-end // 512) * 512])  # between two members
    assert len(TarSource(tmp_path / "x.tar")) == 8 and "x.tar has no mark at its end" in said.text


def test_a_damaged_header_is_no_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "whole.tar", IMAGES).read_bytes())
    second = 512 + -(-len(IMAGES["a/0.png"]) // 512) * 512
    data[second + 3] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(SourceError, match=f"no header where one should be, at byte {second}"):
        TarSource(tmp_path / "x.tar")


def test_no_tar_and_no_image_are_named(tmp_path):
    (tmp_path / "text.tar").write_text("this is a text file\n" * 100)
    with pytest.raises(SourceError, match="text.tar is cut off or no tar file"):
        TarSource(tmp_path / "text.tar")
    with pytest.raises(SourceError, match=r"no image found in .*labels\.tar; .*1 file passed over: \.cls 1"):
        TarSource(write_tar(tmp_path / "labels.tar", {"a.cls": b"1"}))


# Lists, and the same for all.


def test_lists_of_members_and_rows(tmp_path):
    path = write_tar(tmp_path / "x.tar", IMAGES)
    (tmp_path / "list.txt").write_text("x.tar/b/1.png\na/0.png\n")
    assert everything(TarSource(path, "list.txt")) == [IMAGES["b/1.png"], IMAGES["a/0.png"]]
    write_tar(tmp_path / "y.tar", {"a/0.png": png(0)})
    with pytest.raises(SourceError, match="list.txt names a/0.png, but several files have it"):
        TarSource(tmp_path, "list.txt")
    (tmp_path / "list.txt").write_text("x.tar/c.png\n")
    with pytest.raises(SourceError, match="list.txt names x.tar/c.png, but there is no such image"):
        TarSource(path, "list.txt")
    path = write_parquet(tmp_path / "x.parquet", list(IMAGES.values()))
    (tmp_path / "list.txt").write_text("x.parquet#5\nx.parquet#0\n")
    assert everything(ParquetSource(path, listed="list.txt")) == [IMAGES["b/1.png"], IMAGES["a/0.png"]]
    with pytest.raises(SourceError, match="data.list=list.txt names files; for data.source=tfds"):
        open_source(type("Data", (), {"source": "tfds", "path": str(tmp_path), "list": "list.txt"}))


@pytest.fixture
def packed(tmp_path):
    """The same images in the same order as folder, tar, Parquet and array_record."""
    pytest.importorskip("tensorflow_datasets")
    files = folder(tmp_path / "folder")
    split = len(IMAGES) // 2
    parts = [dict(list(IMAGES.items())[:split]), dict(list(IMAGES.items())[split:])]
    for number, part in enumerate(parts):
        write_tar(tmp_path / f"tar/{number}.tar", part)
        compression = ("none", "snappy")[number]
        write_parquet(tmp_path / f"parquet/{number}.parquet", list(part.values()), compression=compression)
    records, _ = imagenet.prepare_images(tmp_path / "records", {"train": files})
    return {"folder": files, "tar": tmp_path / "tar", "parquet": tmp_path / "parquet", "tfds": records}


@pytest.mark.parametrize("source", ["tar", "parquet", "tfds"])
def test_every_source_gives_the_same_bytes_of_crops(packed, source):
    options = dict(batch_size=4, image_size=8, seed=3)
    expected = pretrain_dataset(ImageFolder(packed["folder"]), **options)
    opened = open_source(type("Data", (), {"source": source, "path": str(packed[source]), "split": "train"}))
    ours, resumed = (pretrain_dataset(opened, **options | more) for more in ({}, {"start_step": 2}))
    for step in range(5):
        want, got = next(expected), next(ours)
        again = next(resumed) if step >= 2 else got
        for key in want:
            np.testing.assert_array_equal(want[key], got[key])
            np.testing.assert_array_equal(want[key], again[key])


@pytest.mark.parametrize("source", ["tar", "parquet"])
def test_worker_processes_read_the_same(packed, source):
    opened = open_source(type("Data", (), {"source": source, "path": str(packed[source])}))
    options = dict(batch_size=4, image_size=8, seed=3)
    here, there = pretrain_dataset(opened, **options), pretrain_dataset(opened, workers=1, **options)
    for _ in range(3):
        np.testing.assert_array_equal(next(here)["foreground"], next(there)["foreground"])
    there.close()


def test_a_member_that_is_no_image_is_replaced_as_in_a_folder(tmp_path):
    path = write_tar(tmp_path / "x.tar", IMAGES | {"a/1.png": b"no image"})
    batches = pretrain_dataset(TarSource(path), batch_size=8, image_size=8, seed=0)
    replaced = next(batches)["unreadable"]
    assert (replaced[:, 0] == 1).sum() == 1 and ((replaced == 1) | (replaced == -1)).all()


def test_a_path_alone_says_what_it_is(tmp_path):
    write_tar(tmp_path / "x-0.tar", IMAGES)
    write_parquet(tmp_path / "y.parquet", list(IMAGES.values()), compression="none")
    folder(tmp_path / "photos")
    for path in (tmp_path / "x-0.tar", f"{tmp_path}/x-{{0..0}}.tar", tmp_path / "y.parquet", tmp_path / "photos"):
        opened = open_images(path)
        assert everything(opened) == list(IMAGES.values())
        assert os.path.relpath(opened.name(1), opened.root) in ("x-0.tar/a/1.png", "y.parquet#1", "a/1.png")
