"""Parquet files as sources: columns of every kind, compressed or not, bounded memory, bad input."""

import os
import pickle
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.packing import IMAGES, everything, png, write_parquet

from cp2_jax.data import parquet
from cp2_jax.data.errors import SourceError, UnreadableImage
from cp2_jax.data.images.sources import ParquetSource

pytestmark = pytest.mark.usefixtures("said")


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("kind", ["struct", pa.binary(), pa.large_binary()], ids=["struct", "binary", "large"])
@pytest.mark.parametrize("use_dictionary", [True, False])
def test_columns_of_every_kind(tmp_path, compression, kind, use_dictionary):
    rows = [*IMAGES.values(), png(1), png(1)]  # one twice
    options = dict(compression=compression, use_dictionary=use_dictionary)
    source = ParquetSource(write_parquet(tmp_path / "x.parquet", rows, kind, **options))
    assert everything(source) == rows and source.name(9) == f"{tmp_path}/x.parquet#9"
    assert everything(pickle.loads(pickle.dumps(source))) == rows
    assert (source._column.offset >= 0).all() == (compression == "none")


def test_several_files_and_what_is_kept_is_bounded(tmp_path, monkeypatch, said):
    for number in range(3):
        write_parquet(tmp_path / f"train-{number}.parquet", [png(10 * number + row) for row in range(5)], group=2)
    kept = parquet._Kept(2500)
    monkeypatch.setattr(parquet, "_kept", kept)
    source = ParquetSource(tmp_path)
    for index in np.random.default_rng(0).permutation(15):
        assert source[index] == png(10 * (index // 5) + index % 5)
        assert len(kept._groups) == 1 or sum(one.nbytes for one in kept._groups.values()) <= 2500
    assert "15 of 15 images" in said.text and "up to 2 are read for each" in said.text


def test_rows_without_an_image_are_unreadable(tmp_path, said):
    for compression in ("none", "snappy"):
        path = write_parquet(
            tmp_path / f"{compression}.parquet", [png(0), None, png(2)], pa.binary(), compression=compression
        )
        source = ParquetSource(path)
        assert f"1 of 3 rows of {path} have nothing in column image" in said.text
        assert source[0] == png(0) and source[2] == png(2)
        assert ("compressed a second time" in said.text) == (compression == "snappy")
        with pytest.raises(UnreadableImage, match=r"\.parquet#1: has nothing in column image"):
            source[1]


def test_a_column_of_paths_alone_is_refused(tmp_path):
    """As Hugging Face writes it where images are not embedded; read, every row would be another unreadable image."""
    rows = pa.array([{"bytes": None, "path": "a.jpg"}] * 3, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    with pytest.raises(SourceError, match=r"column 'image.bytes' of .*x\.parquet has no image in any row; Hugging Face's"):
        ParquetSource(tmp_path / "x.parquet")


def test_bad_parquet_is_named(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", list(IMAGES.values()), compression="none")
    with pytest.raises(
        SourceError, match="x.parquet has no column 'picture'; set data.image_column to one of: label, image"
    ):
        ParquetSource(path, "picture")
    with pytest.raises(SourceError, match="column 'label' of .*x.parquet holds int64, not encoded images"):
        ParquetSource(path, "label")
    with pytest.raises(SourceError, match="no row in .*x.parquet; set data.path"):
        ParquetSource(write_parquet(tmp_path / "empty/x.parquet", []))
    source, data = ParquetSource(path), path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(SourceError, match="x.parquet is no Parquet file, or is cut off"):
        ParquetSource(path)
    with pytest.raises(SourceError, match="x.parquet was changed while it was in use"):
        source[0]


def test_a_damaged_page_is_one_unreadable_image_after_the_other(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", list(IMAGES.values()), group=4, compression="zstd")
    source, data = ParquetSource(path), bytearray(path.read_bytes())
    page = pq.ParquetFile(path).metadata.row_group(0).column(1).dictionary_page_offset
    data[page : page + 8] = b"\xff" * 8
    stamp = os.stat(path).st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(UnreadableImage, match=r"x\.parquet#0: cannot be read: "):
        source[0]
    assert source[7] == IMAGES["b/3.png"]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "x.parquet", [png(0)])
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(SourceError, match=r"needs pyarrow: pip install 'cp2_jax\[parquet\]'"):
        ParquetSource(path)
