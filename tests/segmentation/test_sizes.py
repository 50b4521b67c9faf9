"""Sizes of a finetuning that fit the data, for any number of images and any machine."""

import dataclasses

import pytest
from helpers import miniatures
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax import config_files
from cp2_jax.data.labelled import classes
from cp2_jax.interface import overrides
from cp2_jax.options import ConfigError
from cp2_jax.runs import settings
from cp2_jax.runs import sizes as open_sizes
from cp2_jax.runs.sizes import Machine
from cp2_jax.segmentation import options, run, sizes

GPU = Machine(devices=1, memory=80e9, cores=16, accelerator=True)
CROP = sizes.PIXEL_BYTES * 512 * 512
machines = st.builds(Machine, st.integers(1, 64), st.floats(1e9, 200e9), st.integers(1, 256), st.booleans())


@given(num_images=st.integers(1, 100_000), machine=machines)
def test_what_is_chosen_is_possible_and_fits(num_images, machine):
    found = {key: choice.value for key, choice in sizes.fit_to_data(num_images, machine, CROP).items()}
    assert found.keys() == set(sizes.KEYS)
    batch, least = found["batch_size"], max(2, machine.devices)
    assert batch % machine.devices == 0 and batch >= 2
    assert batch <= max(2 * least, min(16, num_images))
    assert batch <= 2 * least or batch / machine.devices * CROP + sizes.FIXED_BYTES <= open_sizes.USABLE * machine.memory
    assert 2_000 <= found["steps"] <= 80_000
    assert 9 <= found["steps"] / found["eval_every"] <= 11
    assert (found["data.workers"] > 0) == machine.accelerator


def test_for_pascal_it_is_the_papers():
    config = config_files.load("finetune_voc:small")
    sizes.settle(config, 10_582, GPU)
    assert config.batch_size == 16 and abs(config.steps - 40_000) < 400


@pytest.mark.parametrize("num_images, devices", [(1, 1), (20, 8), (500, 3), (20_210, 32)])
def test_a_config_that_is_settled_passes_the_checks(num_images, devices):
    config = config_files.load("finetune_voc:small")
    config.data.path = "voc"
    sizes.settle(config, num_images, dataclasses.replace(GPU, devices=devices))
    options.check(config, devices)


def test_a_value_that_is_given_stays():
    config = config_files.load("finetune_voc:small,vit")
    config.steps = 100
    assert sizes.settle(config, 500, GPU) and config.steps == 100 and config.eval_every == 10 and config.save_every == 25
    with pytest.raises(ConfigError, match="no labelled images"):
        sizes.fit_to_data(0, GPU, CROP)


def test_epochs_that_are_asked_for_count():
    for name in ("finetune_folder:small", "finetune_voc"):  # steps that are open, and 40,000 steps
        config = config_files.load(name)
        overrides.update(config, {"epochs": 10, "batch_size": 4})
        sizes.settle(config, 40, GPU)
        assert (config.steps, settings.total_steps(config, 40)) == (0, 100), name
    config = config_files.load("finetune_folder:small")
    overrides.parse(config, [("epochs", "10"), ("batch_size", "4")])
    assert sizes.settle(config, 40, GPU) and config.eval_every == 10
    overrides.update(config, {"steps": 7, "epochs": 10})
    assert settings.total_steps(config, 40) == 7


def test_training_settles_its_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.session, "run", lambda job, workdir, **_: job.config)
    config = config_files.load("finetune_folder:small")
    config.data.path = str(miniatures.folder(tmp_path / "data"))
    found = run.train(config, tmp_path / "run")
    classes.resolve(found)
    assert found.steps == 2_000 and found.batch_size >= 2 and config.steps == -1
    assert capsys.readouterr().out.startswith("sizes    batch ")
    assert "steps = 2000: 60 epochs of" in (tmp_path / "run" / "sizes.txt").read_text()
