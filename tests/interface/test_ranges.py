"""Images of more than 8 bits are scaled as in the run that a model comes from."""

import json

import numpy as np
import pytest

from cp2_jax import config_files
from cp2_jax.interface import probing, ranges, training
from cp2_jax.runs.checkpoints import write_variables
from cp2_jax.runs.settings import as_plain


@pytest.fixture
def deep(tmp_path):
    """A pretraining run of 12-bit images, as far as its meta goes."""
    config = config_files.load("pretrain:demo")
    config.data.value_range = (0, 3000)
    write_variables(
        tmp_path / "deep", {"params": {"backbone": np.ones(1)}}, {"kind": "pretrain", "config": as_plain(config)}
    )
    return tmp_path / "deep"


def test_a_run_takes_the_range_of_its_checkpoint(deep, tmp_path, capsys):
    for make in (training.finetuning_config, training.pretraining_config):
        config = make("photos", tmp_path / "mine", checkpoint=deep)
        assert config.data.value_range == (0, 3000)
        assert f"are scaled as in {deep}: data.value_range=(0, 3000)" in capsys.readouterr().out
    config = config_files.load("finetune_folder")
    config.init.checkpoint = str(deep)
    training.settle(config, tmp_path / "mine", ())
    assert config.data.value_range == (0, 3000)
    config.data.value_range = (0, 4000)
    capsys.readouterr()
    training.settle(config, tmp_path / "mine", {"data.value_range"})
    assert config.data.value_range == (0, 4000)
    assert "mind: data.value_range is (0, 4000), as asked for, not (0, 3000) as in" in capsys.readouterr().out
    config.data.value_range = ()  # by name: the defaults of 16 bits
    training.settle(config, tmp_path / "mine", {"data.value_range"})
    assert config.data.value_range == ()


def test_a_run_that_goes_on_has_the_range_that_it_has(tmp_path):
    """Also where the checkpoint that it started from is gone by now."""
    config = config_files.load("finetune_folder")
    config.init.checkpoint = str(tmp_path / "gone")
    saved = config.copy_and_resolve_references()
    saved.data.value_range = (0, 3000)
    (tmp_path / "mine/checkpoints/2").mkdir(parents=True)
    (tmp_path / "mine/config.json").write_text(json.dumps(as_plain(saved)))
    training.settle(config, tmp_path / "mine", ())
    assert config.data.value_range == (0, 3000)


def test_a_probe_reads_its_images_alike(deep, monkeypatch):
    seen = []

    def opened(data, *rest):
        seen.append(data.value_range)
        raise KeyboardInterrupt  # that is enough

    class Extractor:
        stride = 8

    monkeypatch.setattr(probing, "load", lambda *_: (Extractor(), {}))
    monkeypatch.setattr(probing.classes, "resolve", lambda config: None)
    monkeypatch.setattr(probing, "open_examples", opened)
    with pytest.raises(KeyboardInterrupt):
        probing.probe(deep, size=32)
    assert seen == [(0, 3000)]
    assert ranges.of_run({}) == ranges.of_run({"config": {"data": {}}}) == ()
