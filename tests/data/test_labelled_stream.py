"""The stream of labelled images: its order, its rows, its worker processes."""

import numpy as np
import pytest
from helpers.miniatures import folder_section, write_pair

from cp2_jax.data.labelled.examples import SegmentationError, open_examples
from cp2_jax.data.labelled.stream import training_dataset

OPTIONS = dict(crop_size=(8, 8), bounds=None, ratio=(0.5, 2.0))


@pytest.fixture
def examples(tmp_path):
    for number in range(5):
        write_pair(tmp_path, f"{number}", size=(12, 12), mask=np.full((12, 12), number, np.uint8))
    return open_examples(folder_section(tmp_path, num_classes=5), "train")


def take(count, examples, **options):
    iterator = iter(training_dataset(examples, options=OPTIONS, **dict(batch_size=4, seed=0) | options))
    return [next(iterator) for _ in range(count)]


def same(a, b):
    return all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x) and len(a) == len(b)


def test_position_follows_from_the_step(examples):
    whole = take(6, examples)
    assert same(whole[3:], take(3, examples, start_step=3))
    assert not same(whole[:3], whole[3:])
    assert not same(whole[:1], take(1, examples, seed=1))


@pytest.mark.parametrize("rows", [(0, 1), (2, 3), (1, 3)])
def test_rows_are_those_of_one_global_batch(examples, rows):
    part = take(4, examples, rows=rows)
    assert same(part, [{k: v[list(rows)] for k, v in batch.items()} for batch in take(4, examples)])


def test_rows_beyond_the_batch_are_refused(examples):
    with pytest.raises(ValueError, match="from 0 to 3"):
        take(1, examples, rows=(2, 4))


def test_worker_processes_change_nothing(examples):
    assert same(take(3, examples), take(3, examples, workers=2))


def test_every_epoch_shows_every_image_once_in_another_order(examples):
    shown = [int(label[0, 0]) for batch in take(10, examples) for label in batch["label"]]
    epochs = [shown[i : i + 5] for i in range(0, 40, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 4


def test_an_unreadable_image_ends_the_stream(examples):
    examples.pairs.masks[2].write_bytes(b"broken")
    with pytest.raises(SegmentationError, match="2.png"):
        take(5, examples)
