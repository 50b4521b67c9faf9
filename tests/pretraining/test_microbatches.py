"""Microbatches hold whole batch-norm groups; what is impossible is refused before a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import finetune_voc, pretrain_r50_aspp
from cp2_jax.augment import compose
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import forward, microbatches
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.pretraining.microbatches import Microbatches
from cp2_jax.pretraining.placement import Placement
from cp2_jax.runs import out_of_memory
from cp2_jax.segmentation import options as finetune_options


class Devices:
    """Stands for a mesh where only its size matters."""

    def __init__(self, size):
        self.size = size


def group_of(sample, batch, groups, strided):
    return sample % groups if strided else sample // (batch // groups)


@settings(deadline=None)
@given(
    count=st.integers(1, 4),
    groups_each=st.integers(1, 4),
    group_size=st.integers(1, 4),
    strided=st.booleans(),
    devices=st.sampled_from([1, 2, 4]),
)
def test_each_microbatch_holds_whole_groups_in_the_same_layout(count, groups_each, group_size, strided, devices):
    groups, batch = count * groups_each, count * groups_each * group_size
    parts = Microbatches(count, groups, strided)
    samples = np.arange(batch)
    # The cut depends on the devices; without as many, it is made of its shape alone.
    shape = Microbatches(count, groups, strided, Devices(devices)).folded(batch)
    cut = np.moveaxis(samples.reshape(shape), 1, 0).reshape(count, -1)
    if devices == 1:
        np.testing.assert_array_equal(parts.split(samples), cut)
        np.testing.assert_array_equal(parts.join(parts.split(samples)), samples)
    seen = []
    for part in cut:
        for g in range(groups_each):
            # The samples that BatchNorm, told of G/M groups in the same layout, puts into group g of this part …
            members = part.reshape(group_size, groups_each)[:, g] if strided else part.reshape(groups_each, -1)[g]
            # … are all those of one group of the whole batch.
            whole = {group_of(int(s), batch, groups, strided) for s in members}
            assert len(whole) == 1
            seen += whole
    assert sorted(seen) == list(range(groups))


def test_contiguous_groups_stay_on_their_devices_where_there_are_enough():
    """4 devices with 4 groups each, 2 microbatches: a device's rows of each microbatch are its own samples."""
    shape = Microbatches(2, 16, False, Devices(4)).folded(64)
    cut = np.moveaxis(np.arange(64).reshape(shape), 1, 0).reshape(2, 4, 8)  # microbatch, device, its rows
    for device in range(4):
        assert set(cut[:, device].ravel()) == set(range(16 * device, 16 * device + 16))


def test_strided_groups_stay_on_their_devices():
    shape = Microbatches(2, 4, True).folded(32)
    cut = np.moveaxis(np.arange(32).reshape(shape), 1, 0).reshape(2, 8, 2)
    for device in range(8):
        assert set(cut[:, device].ravel()) == set(range(4 * device, 4 * device + 4))


@pytest.mark.parametrize("count", [1, 3])
def test_averages_and_stacks(count):
    parts = {"x": jnp.arange(6.0).reshape(count, -1)}
    average, stacked = jax.jit(lambda p: microbatches.run(lambda one: (one["x"].sum(), one["x"] * 2), p))(parts)
    np.testing.assert_allclose(average, 15.0 / count)
    np.testing.assert_array_equal(stacked, 2 * parts["x"])


def test_microbatches_learn_and_measure_what_the_batch_does(monkeypatch):
    """Also where they differ in how many samples have a dense loss. The network is one weight for each channel."""

    def network(model, params, batch_stats, images):
        return images[:, 8::16, 8::16] * params, {}

    monkeypatch.setattr(forward, "_forward", network)
    rng = np.random.default_rng(0)
    images, keys = rng.normal(size=(8, 64, 64, 3)), rng.normal(size=(8, 4, 4, 3))
    masks = (rng.random((2, 8, 64, 64)) < 0.5).astype(np.float32)
    masks[0, [0, 5]] = 0
    masks[:, [2, 3]] = 1
    pair, queue = compose.Pair(images, images, *masks), rng.normal(size=(2, 8, 3))
    found = []
    for count in (1, 4):
        learn = jax.jit(forward.make_learn(config(batch_size=8, accumulate=count), Placement()))
        found.append(learn(jnp.array([1.0, -2.0, 0.5]), {}, pair, keys, queue, 5))
    whole, parts = found
    assert whole.result.skipped == 4 * parts.result.skipped == 4 and whole.result.usable_dense == 0.5
    skipped = whole.result.skipped
    again = parts.replace(result=parts.result.replace(skipped=skipped))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), again, whole)


def config(module=pretrain_r50_aspp, **changes):
    made = module.get_config()
    made.data.path = "images"
    made.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
    return made


@pytest.mark.parametrize(
    "changes,devices,message",
    [
        (dict(accumulate=3), 1, "accumulate=3: must divide bn_groups=4, .* use 2 or 4$"),
        (dict(accumulate=0), 1, "accumulate=0: must be greater than 0"),
        (dict(accumulate=2.0), 1, "accumulate=2.0: must be a whole number"),
        (dict(accumulate=4), 128, "accumulate=4: leaves 64 images per microbatch, not divisible by 128 devices; use 2"),
        (dict(remat=1), 1, "remat=1: must be True or False"),
        (dict(shard_state="yes"), 1, "shard_state=yes: must be True or False"),
    ],
)
def test_impossible_values_are_refused_with_the_fix(changes, devices, message):
    made = config(**{key: value for key, value in changes.items() if key not in ("remat", "shard_state", "accumulate")})
    with made.ignore_type():
        made.update(changes)
    with pytest.raises(ConfigError, match=message):
        pretrain_options.check(made, devices)


def test_possible_values_are_taken():
    pretrain_options.check(config(accumulate=4, remat=True, shard_state=True), 64)
    finetune_options.check(config(finetune_voc, remat=True, shard_state=True), 16)


def test_out_of_memory_names_the_values_to_lower():
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes.\nAllocator dump")
    assert out_of_memory.is_out_of_memory(error) and not out_of_memory.is_out_of_memory(RuntimeError("INTERNAL: else"))
    text = out_of_memory.advice(config(), error)
    assert "Out of memory allocating 123 bytes." in text and "dump" not in text
    for line in (
        "remat=False: True",
        "accumulate=1: up to bn_groups=4",
        "shard_state=False",
        "batch_size=256: less",
        "image_size=224",
        "loss.queue_size=65536",
        "data.prefetch=2",
    ):
        assert line in text
    # What is used already is not proposed again.
    text = out_of_memory.advice(config(remat=True, accumulate=4, batch_size=4), error)
    assert "remat" not in text and "accumulate" not in text and "model.dtype" not in text
    text = out_of_memory.advice(config(finetune_voc), error)
    assert "data.crop_size=(512, 512): smaller" in text and "loss.queue_size" not in text and "accumulate" not in text
