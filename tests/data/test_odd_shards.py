"""Shards that are not what was meant: empty, compressed, with masks or links among their images, listed wrongly."""

import tarfile

import pytest
from helpers.packing import IMAGES, everything, png, write_parquet, write_tar

from cp2_jax.data import notices
from cp2_jax.data.errors import SourceError
from cp2_jax.data.images.sources import ImageFolder, ParquetSource, TarSource

pytestmark = pytest.mark.usefixtures("said")


def test_shards_that_give_nothing_are_told(tmp_path, said):
    write_tar(tmp_path / "x-0.tar", IMAGES)
    write_tar(tmp_path / "x-1.tar", {"a.cls": b"1"})
    write_tar(tmp_path / "x-2.tar", {})
    assert len(TarSource(tmp_path)) == 8
    assert f"2 of 3 files have no image and give nothing: {tmp_path}/x-1.tar, {tmp_path}/x-2.tar" in said.text
    with pytest.raises(
        SourceError, match=r"no image found in any of 2 files, .*x-1\.tar the first; .*\.cls 1; set data.path"
    ):
        TarSource(f"{tmp_path}/x-{{1,2}}.tar")
    write_parquet(tmp_path / "y-0.parquet", [])
    write_parquet(tmp_path / "y-1.parquet", [png(0)])
    assert everything(ParquetSource(tmp_path)) == [png(0)]
    assert f"1 of 2 files have no row and give nothing: {tmp_path}/y-0.parquet" in said.text


def test_masks_among_the_images_are_told(tmp_path, said):
    """Shards of labelled images, given for pretraining or prediction."""
    write_tar(tmp_path / "x.tar", {"images/a.jpg": b"1", "labels/a.png": b"2", "images/b.JPEG": b"3", "labels/b.png": b"4"})
    (tmp_path / "list.txt").write_text("x.tar/images/a.jpg\nx.tar/images/b.JPEG\n")
    assert everything(TarSource(tmp_path / "x.tar", "list.txt")) == [b"1", b"3"] and not said.records
    assert len(TarSource(tmp_path / "x.tar")) == 4
    assert f"such as {tmp_path}/x.tar/labels/a.png: they look like masks, and are taken for photographs" in said.text
    said.clear()
    write_tar(tmp_path / "y.tar", {"a.jpg": b"1", "b.png": b"2"})
    write_tar(tmp_path / "z.tar", {"a.png": b"1", "b.jpg": b"2"})
    assert len(TarSource(f"{tmp_path}/{{y,z}}.tar")) == 4 and not said.records


def test_links_and_names_that_are_there_twice_are_told(tmp_path, said):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (
            ("a.png", tarfile.REGTYPE),
            ("a.png", tarfile.REGTYPE),
            ("b.png", tarfile.SYMTYPE),
            ("c.png", tarfile.LNKTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.png" * (kind != tarfile.REGTYPE)
            archive.addfile(info)
    for _ in range(2):  # also with an index that is there
        notices._said.clear()
        said.clear()
        assert TarSource(tmp_path / "x.tar").names() == ["x.tar/a.png"] * 2
        assert f"2 links in {tmp_path}/x.tar are not followed" in said.text
        assert f"1 names are there again in the same file of {tmp_path}/x.tar" in said.text


def test_a_folder_of_shards_is_no_folder_of_images(tmp_path):
    write_tar(tmp_path / "x.tar", IMAGES)
    with pytest.raises(SourceError, match=r"\.tar 1; set data\.source=tar for these, or a path that ends in \.tar"):
        ImageFolder(tmp_path)


def test_compressed_shards_in_a_folder_are_not_passed_over(tmp_path):
    write_tar(tmp_path / "x-0.tar", IMAGES)
    (tmp_path / "x-0.tar.gz").touch()  # there twice, which loses nothing
    (tmp_path / "labels.csv.gz").touch()
    assert len(TarSource(tmp_path)) == 8
    (tmp_path / "sub").mkdir()
    for name in ("sub/x-1.tar.zst", "x-2.tgz"):
        (tmp_path / name).touch()
    with pytest.raises(SourceError, match=r"/sub/x-1\.tar\.zst \(and 1 more\) is compressed.*unpack it to a plain \.tar"):
        TarSource(tmp_path)


def test_names_are_those_within_the_data_set(tmp_path):
    """So that a resumed run sees shards that were renamed, and not that all were moved."""
    for number, names in enumerate((("a", "b"), ("c",))):
        members = {f"{name}.png": png(number) for name in names}
        write_tar(tmp_path / f"part{number}/x.tar", members | {"0.cls": b"1"})
        write_parquet(tmp_path / f"part{number}/x.parquet", list(members.values()))
    source = TarSource(f"{tmp_path}/part0/x.tar::{tmp_path}/part1/x.tar")
    assert source.names() == ["part0/x.tar/a.png", "part0/x.tar/b.png", "part1/x.tar/c.png"] and source.root == tmp_path
    (tmp_path / "list.txt").write_text("part1/x.tar/c.png\n")
    assert TarSource(tmp_path, "list.txt").names() == ["part1/x.tar/c.png"]
    (tmp_path / "list.txt").write_text("deep/part0/x.tar/b.png\npart1/x.tar/c.png\n")
    (tmp_path / "deep").mkdir()
    for number in range(2):
        (tmp_path / f"part{number}").rename(tmp_path / f"deep/part{number}")
    assert TarSource(tmp_path, "list.txt").names() == [
        "part0/x.tar/b.png",
        "part1/x.tar/c.png",
    ]  # below data.path, or nearer
    tmp_path = tmp_path / "deep"
    rows = ParquetSource(f"{tmp_path}/part{{0,1}}/x.parquet")
    assert rows.names() == ["part0/x.parquet#0", "part0/x.parquet#1", "part1/x.parquet#0"]
    assert TarSource(tmp_path / "part1/x.tar").names() == ["x.tar/c.png"]


def test_a_list_of_images_is_no_list_of_shards(tmp_path):
    write_tar(tmp_path / "x-0.tar", IMAGES)
    (tmp_path / "train.txt").write_text("a/0.png\nb/1.png\n")
    with pytest.raises(SourceError, match=r"/a/0\.png \(and 1 more of 2\); .*train\.txt is to name tar shards, one a line"):
        TarSource(tmp_path / "train.txt")
