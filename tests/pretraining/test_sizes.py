"""Sizes that fit the data: what holds for any number of images and any machine, and the paper's own for ImageNet."""

import dataclasses

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax import config_files
from cp2_jax.data.errors import SourceError
from cp2_jax.options import ConfigError, flatten
from cp2_jax.pretraining import options, run, sizes
from cp2_jax.pretraining.sizes import Job, Machine, fit_to_data
from cp2_jax.runs import settings
from cp2_jax.runs import sizes as open_sizes

GPU = Machine(devices=1, memory=80e9, cores=16, accelerator=True)
machines = st.builds(Machine, st.integers(1, 64), st.floats(1e9, 200e9), st.integers(1, 256), accelerator=st.booleans())


def values(*arguments, **keywords):
    return {key: choice.value for key, choice in fit_to_data(*arguments, **keywords).items()}


@given(
    num_images=st.integers(1, 2_000_000),
    machine=machines,
    job=st.builds(Job, st.booleans(), st.sampled_from(["sgd", "adamw"])),
)
def test_what_is_chosen_is_possible_and_fits(num_images, machine, job):
    found = values(num_images, machine, job)
    assert found.keys() == set(sizes.KEYS)
    batch, groups, queue = (found[key] for key in ("batch_size", "bn_groups", "loss.queue_size"))
    least = machine.devices * 4  # that the devices can share out
    assert batch % machine.devices == 0 and batch % groups == 0 and queue % batch == 0
    assert batch // groups >= job.least_per_group
    assert batch <= max(least, num_images // 16) and batch <= max(least, 256)
    assert queue <= max(batch, num_images // 4) and queue <= max(batch, 65536)
    if num_images >= 64 * machine.devices:
        assert queue <= num_images / 4 and queue >= 4 * batch  # several batches of negatives, each image seldom twice
    total = max(1, int(found["epochs"] * settings.steps_per_epoch(num_images, batch)))
    assert total >= (2_000 if job.quick_tuning else 10_000)
    assert 0 <= found["optimizer.warmup_steps"] <= total / 10
    assert all(1 <= found[key] <= total for key in ("log_every", "save_every", "picture_every", "probe_every"))
    assert 1 <= found["probe_images"] <= num_images
    assert 0.99 <= found["loss.momentum"] <= 0.999
    assert 0 < found["optimizer.learning_rate"] <= job.learning_rate * max(1, batch / 256)
    assert (found["data.workers"] > 0) == machine.accelerator


@given(num_images=st.integers(64, 10**6), machine=machines)
def test_a_batch_fits_the_memory_unless_nothing_does(num_images, machine):
    batch = values(num_images, machine)["batch_size"]
    needed = batch / machine.devices * sizes.IMAGE_BYTES + sizes.FIXED_BYTES
    assert needed <= open_sizes.USABLE * machine.memory or batch <= 4 * machine.devices


@given(st.integers(64, 10**6), machines)
def test_more_images_never_mean_less(num_images, machine):
    fewer, more = values(num_images, machine), values(2 * num_images, machine)
    assert fewer["batch_size"] <= more["batch_size"] and fewer["loss.queue_size"] <= more["loss.queue_size"]


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.03 * 16 / 256), ("adamw", 0.03 * (16 / 256) ** 0.5)])
def test_rate_and_momentum_follow_batch_and_length(optimizer, rate):
    """500 images, batches of 16, 65 epochs of 31 steps: the key encoder follows within an eighth of these 2,015 steps."""
    found = values(500, GPU, Job(quick_tuning=True, optimizer=optimizer))
    assert (found["batch_size"], found["epochs"]) == (16, 65)
    assert found["optimizer.learning_rate"] == pytest.approx(rate)
    assert found["loss.momentum"] == pytest.approx(1 - 8 / 2015, abs=1e-4)


@pytest.mark.parametrize("variants", ["", "vit", "fcn", "quick_tune", "quick_tune,vit"])
def test_for_imagenet_it_is_the_papers(variants):
    """But for the workers and for how often to look, which the paper does not say."""
    paper, small = (config_files.load(f"pretrain:{names}") for names in (variants, f"{variants},small"))
    sizes.settle(small, 1_281_167, dataclasses.replace(GPU, devices=4))
    for config in (paper, small):
        config.update(dict.fromkeys(("log_every", "save_every", "picture_every", "probe_every"), 1))
        config.data.workers = 1
    assert small.to_dict() == paper.to_dict()


@pytest.mark.parametrize(
    "num_images, batch, queue, epochs, steps",
    [(60, 4, 12, 134, 2010), (500, 16, 112, 65, 2015), (5_000, 256, 1024, 106, 2014), (50_000, 256, 12_288, 20, 3_900)],
)
def test_the_table_of_the_page(num_images, batch, queue, epochs, steps):
    """docs/small_data.md, for one GPU and Quick Tuning."""
    found = values(num_images, GPU, Job(quick_tuning=True))
    assert (found["batch_size"], found["loss.queue_size"], found["epochs"]) == (batch, queue, epochs)
    assert epochs * settings.steps_per_epoch(num_images, batch) == steps
    rows = [line for line in (ROOT / "docs" / "small_data.md").read_text().splitlines() if line.startswith("| ")]
    shown = f"| {batch}, {queue:,d} | {epochs} epochs, {steps:,d} steps |"
    assert num_images == 60 or any(row.startswith(f"| {num_images:,d} |") and row.endswith(shown) for row in rows)


def test_a_value_that_is_given_stays_and_the_others_go_with_it():
    config = config_files.load("quick_tune:small")
    config.batch_size, config.loss.momentum = 32, 0.9
    reasons = sizes.settle(config, 5_000, GPU)
    assert config.batch_size == 32 and config.loss.momentum == 0.9
    assert config.loss.queue_size == 1248 and config.bn_groups == 2 and config.optimizer.learning_rate == 0.03 / 8
    assert "batch_size" not in reasons and "loss.queue_size = 1248: a quarter of the images" in reasons
    config = config_files.load("quick_tune")
    before = config.to_dict()
    assert sizes.settle(config, 5_000, GPU) == "" and config.to_dict() == before


@pytest.mark.parametrize("variants", ["small", "small,vit,fcn", "small,moco_v2", "small,quick_tune"])
@pytest.mark.parametrize("num_images, devices", [(3, 1), (60, 1), (500, 8), (5_000, 3), (50_000, 32)])
def test_a_config_that_is_settled_passes_the_checks(variants, num_images, devices):
    config = config_files.load(f"pretrain:{variants}")
    config.data.path = "photos"
    sizes.settle(config, num_images, dataclasses.replace(GPU, devices=devices))
    assert not [key for key, value in flatten(config).items() if value == -1]
    options.check(config, devices)


def test_accumulation_is_kept_possible():
    config = config_files.load("pretrain:small")
    config.data.path, config.accumulate = "photos", 4
    sizes.settle(config, 500, GPU)
    options.check(config)
    assert config.bn_groups == 4


def test_a_run_that_goes_on_keeps_what_was_chosen(tmp_path):
    """Also on another machine, with more images, or where the rule has changed."""
    first = config_files.load("pretrain:small")
    sizes.settle(first, 500, GPU, tmp_path)
    settings.save_config(tmp_path, first)
    for started in (False, True):
        config = config_files.load("pretrain:small")
        reasons = sizes.settle(config, 100_000, dataclasses.replace(GPU, devices=8), tmp_path)
        assert (config.to_dict() == first.to_dict()) == started and ("as before" in reasons) == started
        open_sizes.say("said", reasons, tmp_path)
        assert "as before" not in (tmp_path / "sizes.txt").read_text()
        (tmp_path / "checkpoints" / "7").mkdir(parents=True, exist_ok=True)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json is no config of a training"):
        open_sizes.earlier(tmp_path)


def test_a_length_that_was_given_in_steps_is_kept_too(tmp_path):
    first = config_files.load("pretrain:small")
    first.epochs, first.steps = 0, 7
    sizes.settle(first, 500, GPU, tmp_path)
    settings.save_config(tmp_path, first)
    (tmp_path / "checkpoints" / "7").mkdir(parents=True)
    for steps, kept in ((0, 7), (9, 9)):
        config = config_files.load("pretrain:small")
        config.steps = steps
        assert ("steps = 7: as before" in sizes.settle(config, 500, GPU, tmp_path)) == (steps == 0)
        assert (config.epochs, config.steps) == (0, kept)


def test_no_images_and_no_learning_rate():
    with pytest.raises(ConfigError, match="there are no images"):
        fit_to_data(0, GPU)
    config = config_files.load("pretrain:small")
    config.optimizer.name = "adamw"
    with pytest.raises(ConfigError, match="learning_rate: a resnet is trained by sgd, not adamw; give the rate"):
        sizes.settle(config, 500, GPU)
    config.optimizer.learning_rate = 1e-3
    assert sizes.settle(config, 500, GPU)


def test_it_is_said_in_two_lines_and_in_full_in_a_file(tmp_path, capsys):
    config = config_files.load("quick_tune:small")
    reasons = sizes.settle(config, 500, GPU)
    open_sizes.say(sizes.summary(config), reasons, tmp_path / "run")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "sizes    batch 16 in 2 groups, queue 112, 65 epochs",
        "         rate 0.00187 after 101 steps, 14 workers (sizes.txt: why)",
    ]
    written = (tmp_path / "run" / "sizes.txt").read_text()
    assert written == reasons + "\n" and len(written.splitlines()) == len(sizes.KEYS)
    assert "batch_size = 16: 16 batches or more in an epoch of 500 images" in written


def test_training_settles_its_config(tmp_path, monkeypatch):
    """As `cp2 pretrain --config pretrain:small` does; the loop itself is left out here."""
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((40, 40, 3), np.uint8))
    monkeypatch.setattr(run.session, "run", lambda job, workdir, **_: job.config)
    config = config_files.load("pretrain:small")
    config.data.path = str(tmp_path)
    found = run.train(config, tmp_path / "run")
    assert found.batch_size == 4 and config.batch_size == -1
    assert not sizes.settle(found.copy_and_resolve_references(), 1, GPU)
    config.data.path = str(tmp_path / "nowhere")
    with pytest.raises(SourceError):
        run.train(config, tmp_path / "other")


def test_a_queue_beyond_all_memory_is_refused_before_it_is_made():
    config = config_files.load("pretrain")
    machine = Machine(devices=2, memory=8 * 2**30, cores=4, accelerator=False)
    run._check_queue(config, machine)
    config.loss.queue_size = 100_000_000
    with pytest.raises(ConfigError, match="takes 48 GiB, all devices together have 16; .* 33,554,432"):
        run._check_queue(config, machine)
