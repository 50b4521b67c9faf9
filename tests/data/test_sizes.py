"""Sizes that make no sense for the data set are warned of, with what would fit."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cp2_jax.data.images import sizes
from cp2_jax.options import ConfigError


def test_sizes_that_fit_say_nothing():
    assert sizes.warnings(1_281_167, 256, 65536, 4) == []
    assert sizes.warnings(64, 64, 64, 4) == []


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ((60, 6_000), ["batch_size=6000 .* the 60 images .* 100 times. Use batch_size=60 or less"]),
        ((60, 6_000, 0, 8), ["Use batch_size=56 or less"]),
        ((500, 64, 16384), ["loss.queue_size=16384 .* each 33 times, .* own negatives. Use loss.queue_size=448 or less"]),
        ((60, 64, 128, 4), ["Use batch_size=60", r"loss.queue_size=56 \(a multiple of batch_size=28\)"]),
        ((3, 8, 8, 4), ["Use batch_size=4 or less", "batch_size=4"]),
    ],
)
def test_what_is_too_large_is_named_with_what_fits(arguments, expected):
    lines = sizes.warnings(*arguments)
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected, strict=True):
        assert re.search(pattern, line), line


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 40), st.integers(1, 16))
def test_what_is_advised_is_possible_and_no_longer_warned_of(images, groups_of_batch, batches, multiple):
    assume(groups_of_batch * multiple <= 100 * images)
    batch = groups_of_batch * multiple
    for line in sizes.warnings(images, batch, batch * batches, multiple):
        found = {key: int(value) for key, value in re.findall(r"(batch_size|queue_size)=(\d+)", line.split(". Use ")[1])}
        size, queue = found.get("batch_size", batch), found.get("queue_size", 0)
        assert size % multiple == 0 and queue % size == 0
        if images >= 2 * multiple:
            assert sizes.warnings(images, size, queue, multiple) == []


def test_a_batch_that_would_be_decoded_for_minutes_is_refused():
    """60 photos and a batch of 100,000 hung for 305 s."""
    with pytest.raises(ConfigError, match="batch_size=100000: each of the 60 images .* 1667 times; use 60 or less"):
        sizes.warnings(60, 100_000)
    assert len(sizes.warnings(60, 6_000)) == 1
