"""The file of features against Pillow and NumPy: every image once, with the mean of its map or the map itself."""

import numpy as np
import pytest
from PIL import Image

import cp2_jax
from cp2_jax.interface import embedding


def extractor(variables, images):
    """A network at stride 4 that shows its input: the corner pixels of each cell, weighed."""
    return images[:, ::4, ::4] * variables["weights"]


@pytest.mark.parametrize("suffix, dense", [(".npz", False), (".npz", True), (".parquet", False), (".parquet", True)])
def test_features_of_a_folder(tmp_path, monkeypatch, capsys, suffix, dense):
    """Five images in batches of two: the last one is filled up, and what fills it is not written."""
    variables, rng = {"weights": np.array([1.0, 2.0, -0.5], np.float32)}, np.random.default_rng(0)
    monkeypatch.setattr(embedding, "load", lambda checkpoint, features: (extractor, variables))
    monkeypatch.setattr(embedding.ranges, "of_checkpoint", lambda checkpoint: ())
    (tmp_path / "photos/more").mkdir(parents=True)
    sizes, expected = {"a.png": (9, 14), "b.png": (8, 12), "more/c.png": (30, 20), "d.png": (12, 8), "e.png": (5, 5)}, {}
    for name, size in sizes.items():
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))
        image.save(tmp_path / "photos" / name)
        small = np.asarray(image.resize((12, 12), Image.BILINEAR), np.float32)
        expected[name] = small[::4, ::4] * variables["weights"]
    (tmp_path / "photos/broken.png").write_bytes(b"no image")
    out = cp2_jax.embed(tmp_path / "run", tmp_path / "photos", tmp_path / f"f{suffix}", size=12, batch=2, dense=dense)
    names, features = embedding.read(out)
    assert sorted(names) == sorted(expected)
    for name, one in zip(names, features, strict=True):
        np.testing.assert_allclose(one, expected[name] if dense else expected[name].mean((0, 1)), rtol=1e-5)
    printed = capsys.readouterr().out
    assert "1 images left out" in printed and "broken.png" in printed and "features of 5 images" in printed
