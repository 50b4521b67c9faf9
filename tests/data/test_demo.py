"""The demo scenes: the same every time, exact masks, classes that colour does not tell; and the data set of them."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.command_line import cp2
from helpers.paths import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cp2_jax.data import demo
from cp2_jax.data.images.sources import TfdsSource

SMALL = {"train": 6, "labelled": 3, "validation": 2}
SPLITS = {"train": 6, "train_labelled": 3, "validation": 2}


@pytest.fixture(scope="module")
def scenes():
    return [demo.scene(0, "train", index) for index in range(500)]


@given(
    seed=st.integers(0, 2**32),
    split=st.sampled_from(["train", "train_labelled", "validation"]),
    index=st.integers(0, 10**6),
    size=st.integers(32, 100),
)
@settings(max_examples=30, deadline=None)
def test_a_scene_follows_from_its_arguments(seed, split, index, size):
    image, mask = demo.scene(seed, split, index, size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == np.uint8
    labels = set(np.unique(mask).tolist())
    assert labels <= {0, 1, 2, 3, 4, 5} and 0 in labels and 2 <= len(labels) <= 3
    np.random.seed(index % 1000)  # the global generator must play no part
    again = demo.scene(seed, split, index, size)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(mask, again[1])


def test_seed_split_and_index_each_change_the_scene():
    base = demo.scene(0, "train", 1)[0]
    for other in ((1, "train", 1), (0, "validation", 1), (0, "train_labelled", 1), (0, "train", 0)):
        assert not np.array_equal(base, demo.scene(*other)[0]), other


def test_every_class_is_common_and_objects_are_dominant(scenes):
    present = [sum((mask == label).any() for _, mask in scenes) for label in range(6)]
    assert present[0] == len(scenes) and min(present[1:]) > 100
    covered = np.array([(mask > 0).mean() for _, mask in scenes])
    assert 0.13 < np.percentile(covered, 5) and np.percentile(covered, 95) < 0.55
    assert covered.min() > 0.05 and covered.max() < 0.75


def test_all_classes_are_among_the_labelled_scenes():
    labels = np.concatenate([np.unique(demo.scene(0, "train_labelled", index)[1]) for index in range(40)])
    assert np.bincount(labels, minlength=6)[1:].min() >= 5


def mean_colors(scenes):
    """Return (colour [N, 3], label [N]) of each class's surface in each scene."""
    pairs = [(image[mask == label].mean(axis=0), label) for image, mask in scenes for label in np.unique(mask)]
    return np.array([color for color, _ in pairs]), np.array([label for _, label in pairs])


def test_mean_colors_are_the_same_for_all_classes(scenes):
    colors, labels = mean_colors(scenes)
    for label in range(6):
        mine = colors[labels == label]
        # A class's mean over some 140 surfaces with a spread of about 28 wanders by about 2.5.
        np.testing.assert_allclose(mine.mean(axis=0), 127.5, atol=10)
        np.testing.assert_allclose(mine.std(axis=0), 28, atol=8)


def nearest_neighbour(features, labels):
    """Return how often a sample's nearest other sample has its label."""
    distances = ((features[:, None] - features[None]) ** 2).sum(axis=-1)
    np.fill_diagonal(distances, np.inf)
    return (labels[distances.argmin(axis=1)] == labels).mean()


def test_texture_tells_the_class_and_colour_does_not(scenes):
    """Five object classes: a guess is right one time in five."""
    colors, labels = mean_colors(scenes)
    assert nearest_neighbour(colors[labels > 0], labels[labels > 0]) < 0.28

    features, texture_labels = [], []
    for image, mask in scenes[:250]:
        gray = image.mean(axis=2)
        for label in np.unique(mask[mask > 0]):
            inside = mask == label
            if inside.mean() < 0.08:
                continue
            flat = (gray - gray[inside].mean()) / gray[inside].std() * inside
            lags = [(dy, dx) for dy in range(6) for dx in range(-5, 6)]
            shifted = [np.roll(flat, lag, axis=(0, 1)) for lag in lags]
            weights = [(np.roll(inside, lag, axis=(0, 1)) & inside).sum() for lag in lags]
            correlation = [(flat * other).sum() / max(n, 1) for other, n in zip(shifted, weights, strict=True)]
            skew = abs((flat[inside] ** 3).mean())  # dots and lines cover less than half of the surface
            features.append([*(np.sort(correlation) * 0.5), skew])
            texture_labels.append(label)
    assert nearest_neighbour(np.array(features), np.array(texture_labels)) > 0.5


def test_the_mask_is_exact(monkeypatch):
    """Surfaces are painted in plain colours that spell their label in bits, which is then read from the image."""

    def texture(label):
        return lambda rng, size: np.full((size, size), float(label))

    def plain(rng, field):
        label = int(field.flat[0]) if np.ptp(field) == 0 else 0  # a background is noise, never constant
        return np.broadcast_to([0.8 * (label >> bit & 1) for bit in range(3)], (*field.shape, 3))

    monkeypatch.setattr(demo, "_TEXTURES", (None, *(texture(label) for label in range(1, 6))))
    monkeypatch.setattr(demo, "_blend", plain)
    for index in range(40):
        image, mask = demo.scene(3, "train", index)
        np.testing.assert_array_equal((image > 100) @ [1, 2, 4], mask)


def test_an_unknown_split_is_an_error():
    with pytest.raises(KeyError, match="test"):
        demo.scene(0, "test", 0)


def rgb(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_what_is_written_is_what_was_drawn(tmp_path):
    path = demo.prepare(tmp_path, size=40, seed=5, **SMALL)
    assert path.is_dir() and [entry.name for entry in tmp_path.iterdir()] == ["cp2_demo"]
    for split, count in SPLITS.items():
        for place in (path, tmp_path):  # the data set's own folder, or the folder that was asked for
            source = TfdsSource(place, split, ("image", "segmentation_mask"))
            assert len(source) == count
        found = {source[i]["image"]: source[i]["segmentation_mask"] for i in range(count)}
        found = {rgb(image).tobytes(): rgb(mask) for image, mask in found.items()}
        assert len(found) == count
        for index in range(count):  # TFDS stores them in an order of its own
            image, mask = demo.scene(5, split, index, 40)
            np.testing.assert_array_equal(found[image.tobytes()], mask)


def snapshot(path):
    return {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_complete_data_set_is_left_alone(tmp_path):
    path = demo.prepare(tmp_path, **SMALL)
    before = snapshot(tmp_path)
    assert demo.prepare(tmp_path, **SMALL) == path
    assert snapshot(tmp_path) == before


def test_a_data_set_of_an_earlier_drawing_is_made_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_DRAWING", 1)
        blank = np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
        patch.setattr(demo, "scene", lambda *scene: blank)
        demo.prepare(tmp_path, **SMALL)
    assert not rgb(TfdsSource(tmp_path, "train")[0]).any()
    demo.prepare(tmp_path, **SMALL)
    assert rgb(TfdsSource(tmp_path, "train")[0]).any()


def test_half_written_and_other_data_sets_are_replaced(tmp_path):
    path = demo.prepare(tmp_path, **SMALL)
    (tmp_path / "mine.txt").write_text("keep")
    # Stopped while TFDS was writing: a scratch folder; stopped before the end: records cut short, no mark.
    (path.parent / "incomplete.ABC_1.0.0").mkdir()
    (path / "complete.txt").unlink()
    for record in path.glob("*train.array_record*"):
        record.write_bytes(record.read_bytes()[:100])
    demo.prepare(tmp_path, **SMALL)
    assert len(rgb(TfdsSource(path, "train")[5])) == 64
    assert [entry.name for entry in path.parent.iterdir()] == ["1.0.0"]

    demo.prepare(tmp_path, **{**SMALL, "train": 4})
    assert len(TfdsSource(tmp_path, "train")) == 4
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_a_run_that_fails_midway_leaves_nothing_that_passes_for_complete(tmp_path, monkeypatch):
    draw = demo.scene

    def failing(seed, split, index, size):
        if split == "validation":
            raise OSError("no space left on device")
        return draw(seed, split, index, size)

    monkeypatch.setattr(demo, "scene", failing)
    with pytest.raises(OSError, match="no space left"):
        demo.prepare(tmp_path, **SMALL)
    monkeypatch.undo()
    demo.prepare(tmp_path, **SMALL)
    assert {split: len(TfdsSource(tmp_path, split)) for split in SPLITS} == SPLITS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "split train would have 0"),
        ({"labelled": -1}, "split train_labelled would have -1"),
        ({"size": 8}, "size is 8"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_numbers_are_refused_before_anything_is_removed(tmp_path, wrong, message):
    (tmp_path / "cp2_demo").mkdir()
    with pytest.raises(ValueError, match=message):
        demo.prepare(tmp_path, **{**SMALL, **wrong})
    assert (tmp_path / "cp2_demo").is_dir()


def test_contact_sheet_shows_scenes_above_masks(tmp_path):
    path = tmp_path / "sheet.png"
    sheet = demo.contact_sheet(path, count=5, columns=3, size=32)
    assert sheet.shape == (2 * 2 * 32, 3 * 32, 3)
    np.testing.assert_array_equal(rgb(path.read_bytes()), sheet)
    image, mask = demo.scene(0, "validation", 4, 32)  # second row, second column
    np.testing.assert_array_equal(sheet[64:96, 32:64], image)
    shown = sheet[96:128, 32:64]
    for label in np.unique(mask):
        assert len(np.unique(shown[mask == label], axis=0)) == 1
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) == len(np.unique(mask))
    assert not sheet[64:, 64:].any()


def test_the_script_writes_without_tensorflow(tmp_path, capsys):
    """Run from another folder, with a `tensorflow` on the path that fails when it is imported."""
    trap = tmp_path / "trap" / "tensorflow"
    trap.mkdir(parents=True)
    (trap / "__init__.py").write_text("raise RuntimeError('TensorFlow was imported')")
    command = [sys.executable, ROOT / "scripts" / "prepare_data.py", "demo", "--output", "out", "--sheet", "sheet.png"]
    command += ["--train", "4", "--labelled", "3", "--validation", "2", "--size", "32"]
    environment = {**os.environ, "PYTHONPATH": str(trap.parent)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert str(tmp_path / "out" / "cp2_demo" / "1.0.0") in lines
    assert ["train: 4 scenes", "train_labelled: 3 scenes", "validation: 2 scenes"] == lines[-4:-1]
    assert (tmp_path / "sheet.png").is_file()

    status, _, errors = cp2(capsys, "prepare", "demo", "--output", tmp_path / "no", "--train", "0")
    assert status == 1
    assert errors.strip().splitlines() == ["error: split train would have 0 scenes; ask for 1 or more"]
