"""ImageNet from folders and tar files; re-encoding at a bounded shorter side."""

import io
import tarfile

import numpy as np
import pytest
from helpers.images import encode
from PIL import Image

from cp2_jax.data.images.decoding import decode
from cp2_jax.data.images.sources import SourceError, TfdsSource
from cp2_jax.data.prepare import imagenet
from cp2_jax.data.prepare.imagenet import prepare_images, read_images, reencode


def jpeg(seed, size=(30, 40), **options):
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return encode(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC), "JPEG", **{"quality": 95} | options)


def tar(files):
    """Return a tar file's bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


CLASSES = {"n01": {"n01_1.JPEG": jpeg(1), "n01_2.JPEG": jpeg(2)}, "n02": {"n02_7.JPEG": jpeg(3)}}
EXPECTED = [(c, f"{c}/{name}", data) for c, files in CLASSES.items() for name, data in files.items()]


@pytest.fixture
def layouts(tmp_path):
    """The same images in each layout that ILSVRC's come in."""
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(tar({f"{c}.tar": tar(files) for c, files in CLASSES.items()}))
    for name, files in CLASSES.items():
        (tmp_path / "folder" / name).mkdir(parents=True)
        (tmp_path / "tars").mkdir(exist_ok=True)
        (tmp_path / "tars" / f"{name}.tar").write_bytes(tar(files))
        for file, data in files.items():
            (tmp_path / "folder" / name / file).write_bytes(data)
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(tar({"ILSVRC2012_val_1.JPEG": jpeg(8), "._x.JPEG": b"mac"}))
    return tmp_path


@pytest.mark.parametrize("layout", ["folder", "tars", "ILSVRC2012_img_train.tar"])
def test_every_layout_has_the_same_images(layouts, layout):
    assert list(read_images(layouts / layout)) == EXPECTED
    assert imagenet._class_names(layouts / layout) == {"n01", "n02"}


def test_records_hold_bytes_labels_and_names(layouts):
    inputs = {"train": layouts / "ILSVRC2012_img_train.tar", "validation": layouts / "ILSVRC2012_img_val.tar"}
    path, unreadable = prepare_images(layouts / "out", inputs)
    assert unreadable == {"train": [], "validation": []}
    source = TfdsSource(layouts / "out", "train")
    assert [source[i] for i in range(3)] == [data for *_, data in EXPECTED]
    records = [source.records[i] for i in range(3)]
    assert [int(r["label"]) for r in records] == [0, 0, 1]
    assert [r["file_name"].decode() for r in records] == [name for _, name, _ in EXPECTED]
    assert int(TfdsSource(path, "validation").records[0]["label"]) == -1
    # A complete one is left alone, a half-written one replaced.
    before = {f: f.stat().st_mtime_ns for f in path.iterdir()}
    prepare_images(layouts / "out", inputs)
    assert {f: f.stat().st_mtime_ns for f in path.iterdir()} == before
    (path / "complete.txt").unlink()
    for record in path.glob("*train*"):
        record.write_bytes(record.read_bytes()[:60])
    prepare_images(layouts / "out", inputs)
    assert TfdsSource(path, "train")[2] == EXPECTED[2][2]


def test_smaller_images_of_a_bounded_side(layouts):
    (layouts / "folder/n02/broken.JPEG").write_bytes(jpeg(5)[:100])
    (layouts / "folder/n02/large.JPEG").write_bytes(jpeg(5, (90, 60)))
    path, unreadable = prepare_images(layouts / "out", {"train": layouts / "folder"}, shorter_side=32)
    source = TfdsSource(path, "train")
    by_name = {source.records[i]["file_name"].decode(): source[i] for i in range(5)}
    assert by_name["n01/n01_1.JPEG"] == EXPECTED[0][2]  # small enough: byte for byte
    assert decode(by_name["n02/large.JPEG"], "x").shape == (48, 32, 3)
    assert by_name["n02/broken.JPEG"] == jpeg(5)[:100]  # kept, and said
    (problem,) = unreadable["train"]
    assert "n02/broken.JPEG" in problem


def test_reencoding_is_close_upright_and_always_jpeg():
    data = jpeg(1, (200, 300))
    ours = decode(reencode(data, "a", 100), "a").astype(float)
    expected = Image.fromarray(decode(data, "a")).resize((150, 100), Image.Resampling.BICUBIC)
    assert np.abs(ours - np.asarray(expected)).mean() < 2
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    turned = jpeg(1, (200, 300), exif=exif)
    assert decode(reencode(turned, "a", 100), "a").shape == (150, 100, 3)
    png = reencode(encode(Image.fromarray(decode(data, "a")).convert("RGBA")), "a", 500)
    assert png[:2] == b"\xff\xd8" and decode(png, "a").shape == (200, 300, 3)


def test_bad_inputs(layouts):
    with pytest.raises(SourceError, match="no such folder or tar file: .*nowhere"):
        list(read_images(layouts / "nowhere"))
    broken = layouts / "ILSVRC2012_img_train.tar"
    broken.write_bytes(broken.read_bytes()[:1000])
    with pytest.raises(SourceError, match="img_train.tar.* is broken"):
        list(read_images(broken))
    (layouts / "empty.tar").write_bytes(tar({"readme.txt": b"x"}))
    with pytest.raises(SourceError, match="no image found in .*empty.tar"):
        list(read_images(layouts / "empty.tar"))
    with pytest.raises(SourceError, match="shorter side 8"):
        prepare_images(layouts / "out", {"train": layouts / "folder"}, shorter_side=8)
    assert not (layouts / "out").exists()
