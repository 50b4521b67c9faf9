"""Pretraining batches: order, resumption, processes, workers, unreadable files, and the thread that reads ahead."""

import itertools
import logging
import threading

import numpy as np
import pytest
from PIL import Image

from cp2_jax.data.errors import SourceError
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import Batches, pretrain_dataset

COUNT = 7
OPTIONS = {"batch_size": 4, "image_size": 6, "seed": 3}


@pytest.fixture
def flat(tmp_path):
    """Images of one colour each, 10 * index, so that a crop tells which image it is from."""
    for i in range(COUNT):
        Image.new("RGB", (9, 8), (10 * i,) * 3).save(tmp_path / f"{i}.png")
    return ImageFolder(tmp_path)


@pytest.fixture
def noisy(tmp_path):
    """Images of noise, so that a crop tells where it was taken."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / f"{i}.png")
    return ImageFolder(tmp_path)


def take(source, count, **options):
    batches = pretrain_dataset(source, **{**OPTIONS, **options})
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def assert_equal(left, right):
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def indices(batches):
    """Which image each crop is from: int [samples, 4] as foreground twice, background twice. Needs `flat`."""
    crops = [np.concatenate([b["foreground"], b["background"]], axis=1) for b in batches]
    colours = np.concatenate(crops)[:, :, 0, 0, 0]
    return colours.astype(int) // 10


def test_shapes_and_types(flat):
    (batch,) = take(flat, 1)
    assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
        "foreground": ((4, 2, 6, 6, 3), np.uint8),
        "background": ((4, 2, 6, 6, 3), np.uint8),
        "unreadable": ((4, 3), np.int64),
    }
    assert (batch["unreadable"] == -1).all()


def test_every_epoch_holds_each_image_once_in_a_new_order(flat):
    found = indices(take(flat, 7))  # 28 samples: four epochs, whose borders fall inside batches
    np.testing.assert_array_equal(found[:, 0], found[:, 1])  # both views show one foreground
    for stream in (0, 2, 3):
        epochs = found[:, stream].reshape(4, COUNT)
        for epoch in epochs:
            assert sorted(epoch) == list(range(COUNT))
        assert len({tuple(epoch) for epoch in epochs}) == 4


def test_streams_are_independent(flat):
    found = indices(take(flat, 70))
    orders = {stream: {tuple(e) for e in found[:, stream].reshape(-1, COUNT)} for stream in (0, 2, 3)}
    # 40 of 5040 orders each: independent streams share one or so, streams with neighbouring seeds all but one.
    for one, other in itertools.combinations(orders.values(), 2):
        assert len(one & other) < 10
    pairs = {(a, b) for a, b in zip(found[:, 0], found[:, 2], strict=True)}
    assert len(pairs) > 45  # all but a few of the 49
    assert len({(a, b) for a, b in zip(found[:, 2], found[:, 3], strict=True)}) > 45


def test_seed_decides(noisy):
    assert_equal(take(noisy, 2), take(noisy, 2))
    one, other = take(noisy, 2), take(noisy, 2, seed=4)
    assert any((a["foreground"] != b["foreground"]).any() for a, b in zip(one, other, strict=True))


def test_crops_of_views_and_epochs_differ(noisy):
    (batch,) = take(noisy, 1, batch_size=2 * COUNT)
    views = batch["foreground"].reshape(4 * COUNT, -1)
    assert len(np.unique(views, axis=0)) == 4 * COUNT


def test_crop_scale_is_used(noisy):
    # With the whole image as the only size and ratio at hand (3:2 falls back), every crop is the central one.
    batches = take(noisy, 4, crop_scale=(1.0, 1.0))
    crops = np.concatenate([b["foreground"] for b in batches]).reshape(-1, 6 * 6 * 3)
    assert len(np.unique(crops, axis=0)) == COUNT


@pytest.mark.parametrize("start", [1, 3])
def test_resuming_equals_running_on(noisy, start):
    assert_equal(take(noisy, 3, start_step=start), take(noisy, 3 + start)[start:])


@pytest.mark.parametrize("rows", [(0, 1), (2, 3), (0, 3), (3, 0), (1,)])
def test_rows_are_those_of_the_whole_batch(noisy, rows):
    """Whichever rows a process has, in any order: they hold what they hold in the batch of a single process."""
    whole = take(noisy, 3, start_step=2)
    assert_equal(take(noisy, 3, rows=rows, start_step=2), [{k: v[list(rows)] for k, v in b.items()} for b in whole])


def test_workers_make_the_same_rows(noisy):
    assert_equal(take(noisy, 3, rows=(0, 3), workers=1), take(noisy, 3, rows=(0, 3)))


@pytest.mark.parametrize("threads", [1, 5])
def test_threads_change_nothing(noisy, threads):
    assert_equal(take(noisy, 4, threads=threads, prefetch=1), take(noisy, 4))


def test_workers_change_nothing(noisy):
    (noisy.root / "0.png").write_bytes(b"")  # and report unreadable files alike
    assert_equal(take(noisy, 5, workers=2, start_step=1), take(noisy, 5, start_step=1))


def spoil(source, **files):
    """Replaces image <i> by the given bytes."""
    for name, data in files.items():
        (source.root / f"{name[1:]}.png").write_bytes(data)


def test_unreadable_images_are_replaced_in_place(flat):
    sound = indices(take(flat, 7))
    spoil(flat, i2=b"", i5=b"text")
    batches = take(flat, 7)
    found = indices(batches)
    unreadable = np.concatenate([b["unreadable"] for b in batches])
    for stream, column in enumerate((0, 2, 3)):
        bad = np.isin(sound[:, column], (2, 5))
        assert bad.sum() == 8  # two of seven in four epochs
        np.testing.assert_array_equal(unreadable[:, stream], np.where(bad, sound[:, column], -1))
        np.testing.assert_array_equal(found[~bad, column], sound[~bad, column])
        assert not np.isin(found[bad, column], (2, 5)).any()
        assert len(set(found[bad, column])) > 1  # substitutes are spread
    assert_equal(take(flat, 2, start_step=5), batches[5:])  # and the same when asked again


def test_one_good_image_is_found_among_bad_ones(flat):
    spoil(flat, **{f"i{i}": b"" for i in range(COUNT) if i != 4})
    assert (indices(take(flat, 2)) == 4).all()


def test_a_vanished_file_counts_as_unreadable(flat):
    (flat.root / "3.png").unlink()
    unreadable = np.concatenate([b["unreadable"] for b in take(flat, 7)])
    assert set(np.unique(unreadable)) == {-1, 3}


@pytest.mark.parametrize("through_thread", [False, True])
def test_nothing_readable_is_an_error(flat, through_thread):
    spoil(flat, **{f"i{i}": b"" for i in range(COUNT)})
    batches = pretrain_dataset(flat, **OPTIONS)
    if through_thread:
        batches = Batches(batches, flat)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"\d\.png: the file is empty\. None of 7 images"):
            next(batches)
    batches.close()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "positive"),
        ({"rows": (3, 4)}, r"rows \(3, 4\) must be different numbers from 0 to 3"),
        ({"rows": (1, 1)}, "must be different"),
        ({"rows": ()}, "at least one"),
        ({"start_step": -1}, "negative"),
        ({"seed": -1}, "negative"),
    ],
)
def test_wrong_sizes_are_refused(flat, options, message):
    with pytest.raises(ValueError, match=message):
        pretrain_dataset(flat, **{**OPTIONS, **options})


def test_one_image_is_enough(tmp_path):
    Image.new("RGB", (1, 1), (40, 40, 40)).save(tmp_path / "a.png")
    assert (indices(take(ImageFolder(tmp_path), 3)) == 4).all()


def test_batches_place_count_and_report_once(flat, caplog):
    spoil(flat, i2=b"", i5=b"text")
    plain = take(flat, 7)
    placed_in = set()

    def place(batch):
        placed_in.add(threading.current_thread())
        return {**batch, "placed": True}

    batches = Batches(pretrain_dataset(flat, **OPTIONS), flat, place)
    counts = []
    with caplog.at_level(logging.WARNING):
        for want in plain:
            batch = next(batches)
            assert batch.keys() == {"foreground", "background", "placed"}
            np.testing.assert_array_equal(batch["background"], want["background"])
            counts.append(batches.unreadable_count)
        batches.close()
    # Counted when handed out, not when read ahead: the same in every run.
    assert counts == list(np.cumsum([(b["unreadable"] >= 0).sum() for b in plain])) and counts[-1] == 24
    assert sum("2.png: the file is empty" in m for m in caplog.messages) == 1
    assert sum("5.png: not an image" in m for m in caplog.messages) == 1
    assert len(caplog.messages) == 2
    assert placed_in and threading.current_thread() not in placed_in
