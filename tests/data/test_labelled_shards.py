"""Pairs of image and mask as members of tar shards and as columns of Parquet files: what a folder gives, and bad input."""

import io
import pickle
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.miniatures import folder_section, write_pair
from ml_collections import ConfigDict

from cp2_jax.data.errors import SegmentationError, SourceError, UnreadableImage
from cp2_jax.data.labelled import check, classes
from cp2_jax.data.labelled.examples import open_examples

pytestmark = pytest.mark.usefixtures("said")


STEMS = ("one", "two", "city/three")


@pytest.fixture
def pairs(tmp_path):
    """{stem: (image, mask)} as encoded, which also lie in a folder."""
    return {
        stem: tuple(path.read_bytes() for path in write_pair(tmp_path / "folder", stem, size=(8 + 2 * number, 12)))
        for number, stem in enumerate(STEMS)
    }


def config(path, source, **changes):
    return folder_section(path, source=source, class_names=tuple("abcd"), **changes)


def write_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def flat(pairs):
    return {f"{stem}.{kind}": data for stem, pair in pairs.items() for kind, data in zip(("jpg", "png"), pair, strict=True)}


def same_as_the_folder(tmp_path, data, split):
    expected = open_examples(config(tmp_path / "folder", "folder"), "train")
    ours = pickle.loads(pickle.dumps(open_examples(data, split)))
    assert len(ours) == len(expected) == 3
    by_size = {ours.size(index): index for index in range(3)}
    for index in range(3):
        other = by_size[expected.size(index)]
        for want, got in zip(expected.load(index), ours.load(other), strict=True):
            np.testing.assert_array_equal(want, got)
    assert len({ours.stem(index) for index in range(3)}) == 3
    found = check.check_split(data, split)
    assert found.images == 3 and not found.problems


LAYOUTS = {
    "flat": ("{stem}.jpg", "{stem}.png", {}),
    "folders": ("images/{stem}.jpg", "labels/{stem}.png", {}),
    "suffixes": ("{stem}.image.png", "{stem}.mask.png", dict(image_suffix=".image", label_suffix=".mask")),
    "one suffix": ("{stem}.png", "{stem}_mask.png", dict(label_suffix="_mask")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_in_tar_shards_are_those_of_the_folder(tmp_path, pairs, layout):
    image, mask, changes = LAYOUTS[layout]
    for number, (stem, (photo, labels)) in enumerate(pairs.items()):
        members = {image.format(stem=stem): photo, mask.format(stem=stem): labels, f"{stem}.json": b"{}"}
        write_tar(tmp_path / f"tar/train-{number % 2}.tar", members) if number < 2 else None
    stem = STEMS[2]
    members = {image.format(stem=stem): pairs[stem][0], mask.format(stem=stem): pairs[stem][1]}
    write_tar(tmp_path / "tar/train-2.tar", members)
    same_as_the_folder(tmp_path, config(tmp_path / "tar", "tar", **changes), "train-{0..2}.tar")
    same_as_the_folder(tmp_path, config(f"{tmp_path}/tar/{{split}}-*.tar", "tar", **changes), "train")


def test_several_pairs_of_one_shard(tmp_path, pairs):
    same_as_the_folder(tmp_path, config(write_tar(tmp_path / "x.tar", flat(pairs)), "tar"), "")


@pytest.mark.parametrize("compression", ["none", "snappy"])
def test_pairs_in_parquet_are_those_of_the_folder(tmp_path, pairs, compression):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = [pa.array([{"bytes": pair[side], "path": stem} for stem, pair in pairs.items()], kind) for side in (0, 1)]
    (tmp_path / "parquet").mkdir()
    table = pa.table({"image": columns[0], "annotation": columns[1]})
    pq.write_table(table, tmp_path / "parquet/train-0.parquet", compression=compression)
    data = config(tmp_path / "parquet", "parquet", image_column="image", mask_column="annotation")
    same_as_the_folder(tmp_path, data, "train-*.parquet")
    with pytest.raises(SourceError, match="has no column 'mask'; set data.mask_column to one of: image, annotation"):
        open_examples(config(tmp_path / "parquet", "parquet"), "train-*.parquet")


def test_bad_pairs_name_the_member(tmp_path, pairs):
    members = flat(pairs)
    del members["two.png"]
    data = config(write_tar(tmp_path / "x.tar", members), "tar")
    with pytest.raises(SegmentationError, match=r"image .*x\.tar/two\.jpg has no mask: there is no member two\.png"):
        open_examples(data, "")
    write_tar(tmp_path / "x.tar", {"a.cls": b"0"})
    with pytest.raises(SegmentationError, match=r"no pair of image and mask in .*x\.tar"):
        open_examples(data, "")
    write_tar(tmp_path / "x.tar", flat(pairs) | {"one.jpg": b"no image"})
    with pytest.raises(UnreadableImage, match=r"x\.tar/one\.jpg: not an image"):
        open_examples(data, "").load(0)
    write_tar(tmp_path / "x.tar", flat(pairs) | {"one.png": b"no image"})
    with pytest.raises(SegmentationError, match=r"mask .*x\.tar/one\.png cannot be read"):
        open_examples(data, "").load(0)


def test_no_pair_counts_twice_and_no_mask_is_left_out_in_silence(tmp_path, pairs, said):
    image, mask = pairs["one"]
    write_tar(tmp_path / "a.tar", {"images/x.jpg": image, "labels/x.png": mask, "labels/y.png": mask})
    write_tar(tmp_path / "b.tar", {"x.jpg": image, "x.png": mask, "y.png": mask})
    table = pa.table({"image": [image], "mask": [mask]})
    pq.write_table(table, tmp_path / "c.parquet")
    assert len(open_examples(config(tmp_path, "tar"), "a.tar")) == 1
    assert f"1 masks of {tmp_path}/a.tar have no image and are not used, such as labels/y.png" in said.text
    with pytest.raises(SegmentationError, match="b.tar/y.png is alone: there is no image, or no mask, of the same name"):
        open_examples(config(tmp_path, "tar"), "b.tar")
    for source, pattern in (("tar", "{a,a}.tar"), ("parquet", "{c,c}.parquet")):
        with pytest.raises(SegmentationError, match=rf"/\w\.{source} is given 2 times; name it once"):
            open_examples(config(tmp_path, source, image_column="image", mask_column="mask"), pattern)


def test_files_of_the_same_name_in_two_folders_have_different_stems(tmp_path, pairs):
    """Class maps are written under these names."""
    image, mask = pairs["one"]
    for part in ("0", "1"):
        write_tar(tmp_path / part / "x.tar", {"a.jpg": image, "a.png": mask})
        pq.write_table(pa.table({"image": [image], "mask": [mask]}), tmp_path / part / "x.parquet")
    found = open_examples(config(tmp_path, "tar"), "*/x.tar")
    assert [found.stem(index) for index in range(2)] == ["0/x/a", "1/x/a"]
    found = open_examples(config(tmp_path, "parquet", image_column="image", mask_column="mask"), "*/x.parquet")
    assert [found.stem(index) for index in range(2)] == ["0/x_000000", "1/x_000000"]


def test_where_a_mask_may_be_is_told(tmp_path, pairs):
    image, mask = pairs["one"]
    for number, (members, words) in enumerate(
        (
            (("a/images/x.jpg", "a/labels/x.png"), r"\(a/labels/x.png is there: set data.images and data.labels\)"),
            (("x.photo.jpg", "x.mask.png"), r"\(x.mask.png is there: set data.image_suffix and data.label_suffix\)"),
            (("x.jpg", "y.png"), r"no member x\.png in this file$"),
        )
    ):
        path = write_tar(tmp_path / f"{number}.tar", dict(zip(members, (image, mask), strict=True)))
        with pytest.raises(SegmentationError, match=f"has no mask: .*{words}"):
            open_examples(config(path, "tar"), "")
    for source in ("folder", "tfds"):
        with pytest.raises(SegmentationError, match="gs://bucket/x: .* read from buckets; pack the pairs as tar shards"):
            classes.resolve(ConfigDict({"data": config("gs://bucket/x", source, classes="classes.txt")}))
    with pytest.raises(SegmentationError, match="no .*/train; with data.source=tar .* such as train-\\*\\.tar"):
        open_examples(config(tmp_path, "tar"), "train")


def test_shards_without_a_pair_are_told(tmp_path, pairs, said):
    write_tar(tmp_path / "a-0.tar", flat(pairs))
    write_tar(tmp_path / "a-1.tar", {"x.json": b"{}"})
    assert len(open_examples(config(tmp_path, "tar"), "a-*.tar")) == 3
    assert f"1 of 2 files have no pair of image and mask and give nothing: {tmp_path}/a-1.tar" in said.text


def test_pairs_in_parquet_have_names_that_a_resumed_run_compares(tmp_path, pairs):
    image, mask = pairs["one"]
    pq.write_table(pa.table({"image": [image, image], "mask": [mask, mask]}), tmp_path / "c.parquet")
    found = open_examples(config(tmp_path, "parquet", image_column="image", mask_column="mask"), "c.parquet")
    assert found.names() == ["c.parquet#0", "c.parquet#1"]


def test_an_unknown_source_is_refused(tmp_path):
    with pytest.raises(SegmentationError, match="'lmdb'; it must be one of folder, tfds, tar, parquet"):
        open_examples(config(tmp_path, "lmdb"), "train")
