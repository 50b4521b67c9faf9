"""Photographs of one NumPy file become a data set; a file that holds something else is refused."""

import numpy as np
import pytest
from helpers.images import encode
from PIL import Image

from cp2_jax.data.errors import SourceError
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.prepare import photographs


def pack(path, count=6, **changes):
    """Write `count` grey JPEGs of different tones into one file."""
    encoded = [encode(Image.new("RGB", (8, 8), (tone * 20,) * 3), "JPEG") for tone in range(count)]
    offset = np.cumsum([0, *map(len, encoded)])
    arrays = {"jpeg": np.frombuffer(b"".join(encoded), np.uint8), "offset": offset} | changes
    np.savez(path, **arrays)
    return encoded


def test_every_photograph_is_in_one_split(tmp_path):
    encoded = pack(tmp_path / "p.npz")
    folder = photographs.prepare(tmp_path / "p.npz", tmp_path / "out", held_out=2)
    train, held_out = TfdsSource(str(folder), "train"), TfdsSource(str(folder), "validation")
    assert [held_out[i] for i in range(len(held_out))] == [encoded[0], encoded[5]]
    assert [train[i] for i in range(len(train))] == encoded[1:5]
    before = (folder / "complete.txt").stat().st_mtime_ns
    photographs.prepare(tmp_path / "p.npz", tmp_path / "out", held_out=2)
    assert (folder / "complete.txt").stat().st_mtime_ns == before


def test_other_files_are_refused(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        photographs.prepare(tmp_path / "absent.npz", tmp_path)
    (tmp_path / "text.npz").write_text("no zip")
    with pytest.raises(SourceError, match="text.npz is no .npz file with the arrays 'jpeg' and 'offset'"):
        photographs.prepare(tmp_path / "text.npz", tmp_path)
    pack(tmp_path / "short.npz", offset=np.array([0, 100, 90]))
    with pytest.raises(SourceError, match="short.npz: 'offset' must begin with 0, rise"):
        photographs.prepare(tmp_path / "short.npz", tmp_path)
