"""The study of Quick Tuning in miniature: two seeds in one program, every kind of arm, broken off and taken up again."""

import json

import numpy as np
import pytest
from helpers import tiny

from configs import study_gpu
from cp2_jax.data import demo
from cp2_jax.options import ConfigError
from cp2_jax.reproduce import judging, listing, quick_tuning, seeds


def small(data, monkeypatch, **changes):
    config = tiny.toy_study(study_gpu.get_config(), data, monkeypatch)
    config.update(seeds=(0, 1), seeds_at_once=2, base_steps=2, labels=(2, 4))
    config.methods = ("scratch", "nothing", "continued_compute", "cp2", "cp2_random_head")
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return demo.prepare(tmp_path_factory.mktemp("data"), size=32, train=12, labelled=6, validation=8)


def test_the_study_in_miniature(data, tmp_path, monkeypatch):
    def broken(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(quick_tuning.QuickTuning, "_finetuned", broken)
        with pytest.raises(KeyboardInterrupt):
            quick_tuning.QuickTuning(small(data, monkeypatch, methods=("nothing", "cp2")), tmp_path).run()
    assert (tmp_path / "models" / "base_1").is_dir() and not (tmp_path / "cells").exists()
    trained = []
    original = seeds.pretrain
    monkeypatch.setattr(seeds, "pretrain", lambda *a: trained.append(a[-1].name) or original(*a))
    starts, crops = set(), judging.crops
    monkeypatch.setattr(judging, "crops", lambda *a, **k: starts.update(a[4:]) or crops(*a, **k))
    quick_tuning.QuickTuning(small(data, monkeypatch), tmp_path).run()
    assert trained == ["continued_compute_0_1", "cp2_0_1"]  # the checkpoint was there, and shared arms train once
    # The checkpoint has seen the batches before number 2; two are every arm's, the rest those of equal compute.
    assert starts == {2, 4}
    cells = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "cells").glob("*.json")}
    assert len(cells) == 10
    for cell in cells.values():
        assert all(0 <= cell["values"][k] <= 1 for k in ("finetuned", "finetuned_more", "frozen", "backbone_auc_anywhere"))
    compute, cp2 = (cells[f"{name}_0"]["pretraining"] for name in ("continued_compute", "cp2"))
    assert compute["steps"] > cp2["steps"] == 2 and np.isfinite(cp2["last"]["learned_dense"])
    shared = [cells[f"{name}_1"]["values"]["frozen"] for name in ("cp2", "cp2_random_head")]
    assert shared[0] == shared[1]

    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").glob("*.json")}
    quick_tuning.QuickTuning(small(data, monkeypatch, seeds_at_once=1), tmp_path).run()
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "cells").glob("*.json")}
    with pytest.raises(ConfigError, match="another study.base_steps; use another --workdir"):
        quick_tuning.QuickTuning(small(data, monkeypatch, base_steps=3), tmp_path)

    text = listing.collect(tmp_path, tmp_path / "out")
    assert "entire CP² minus" in text and "MoCo v2 continued, equal compute" in text and "more labels" in text
    assert (tmp_path / "out" / "study.png").is_file()


def test_bad_values_are_named(data, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="methods=cp3: must be one of scratch, nothing"):
        quick_tuning.QuickTuning(small(data, monkeypatch, methods=("cp3",)), tmp_path)
    with pytest.raises(ConfigError, match="give two numbers of labelled images"):
        quick_tuning.QuickTuning(small(data, monkeypatch, labels=(4,)), tmp_path)


def test_the_stride_alone_is_an_arm_that_was_added_later():
    config = study_gpu.get_config()
    assert set(quick_tuning.ARMS) - set(config.methods) == {"continued_fine"}
    fine, coarse = (dict(quick_tuning.ARMS[name].overrides) for name in ("continued_fine", "continued"))
    assert coarse.pop("model.resnet.output_stride") == 32 and fine == coarse
    assert config.pretrain.model.resnet.output_stride == config.finetune.model.resnet.output_stride == 4
