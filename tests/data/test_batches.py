"""The thread that makes batches ahead: order, errors, how far it reads, its end."""

import itertools
import threading
import time

import numpy as np
import pytest

from cp2_jax.data.images.stream import Batches


def numbers(count=None):
    for i in itertools.count() if count is None else range(count):
        yield {"x": np.array([i])}


def test_batches_end_and_stay_ended():
    batches = Batches(numbers(3), source=None)
    assert [int(b["x"][0]) for b in batches] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(batches)
    batches.close()


def test_errors_of_iterator_and_place_surface_in_order():
    def failing():
        yield from numbers(2)
        raise OSError("disk gone")

    batches = Batches(failing(), source=None)
    assert [int(next(batches)["x"][0]) for _ in range(2)] == [0, 1]
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            next(batches)

    def place(batch):
        raise ValueError("wrong shape")

    with pytest.raises(ValueError, match="wrong shape"):
        next(Batches(numbers(), source=None, place=place))


def test_reads_ahead_but_no_further_than_asked():
    drawn = []

    def watched():
        for batch in numbers():
            drawn.append(int(batch["x"][0]))
            yield batch

    batches = Batches(watched(), source=None, ahead=3)
    deadline = time.monotonic() + 10
    while len(drawn) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert drawn == [0, 1, 2, 3]  # three ready and one in hand
    next(batches)
    batches.close()
    assert len(drawn) <= 5


def test_waiting_is_measured():
    release = threading.Event()

    def slow():
        yield from numbers(1)
        release.wait(10)
        yield from numbers(1)

    batches = Batches(slow(), source=None)
    next(batches)
    before = batches.wait_seconds
    threading.Timer(0.3, release.set).start()
    next(batches)
    assert 0.2 < batches.wait_seconds - before < 5
    batches.close()


def test_close_ends_thread_and_iterator_and_refuses_more():
    closed = []

    class Source:
        def __iter__(self):
            return self

        def __next__(self):
            return {"x": np.zeros(1)}

        def close(self):
            closed.append(True)

    batches = Batches(Source(), source=None)
    next(batches)
    batches.close()
    batches.close()
    assert closed and not batches._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_shared_memory_is_not_held():
    class Shared(np.ndarray):
        pass

    original = np.arange(3).view(Shared)
    batch = next(Batches(iter([{"x": original, "unreadable": np.array([[-1]])}]), source=None))
    assert type(batch["x"]) is np.ndarray and not np.shares_memory(batch["x"], original)
    np.testing.assert_array_equal(batch["x"], original)
