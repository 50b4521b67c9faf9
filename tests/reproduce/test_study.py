"""The small study: its linear classifier against SciPy, its methods, and a few cells of it in miniature."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from scipy import optimize

from configs import study_demo
from cp2_jax.data import demo
from cp2_jax.options import ConfigError
from cp2_jax.reproduce import study
from cp2_jax.segmentation import frozen


def test_cell_shares_count_pixels():
    label = np.random.default_rng(0).integers(0, 4, (2, 8, 12))
    label[0, :2] = 255
    found = np.asarray(frozen.cell_shares(label, 4, 4))
    for b, y, x, c in np.ndindex(2, 2, 3, 4):
        cell = label[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4]
        assert found[b, y, x, c] == np.mean(cell == c)


def test_the_linear_classifier_is_the_optimum_that_scipy_finds():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(60, 5)) * [1, 10, 0.1, 2, 3] + [0, 5, 0, -2, 1]
    shares = rng.dirichlet(np.ones(3), 60)
    standard = (features - features.mean(0)) / (features.std(0) + 1e-6)

    def loss(weights):
        kernel, bias = weights.reshape(6, 3)[:-1], weights.reshape(6, 3)[-1]
        logits = standard @ kernel + bias
        log_total = np.log(np.exp(logits).sum(1, keepdims=True))
        return -np.mean(np.sum(shares * (logits - log_total), axis=1)) + 0.5e-2 * np.sum(kernel**2)

    best = optimize.minimize(loss, np.zeros(18), method="BFGS").x.reshape(6, 3)
    kernel, bias = jax.jit(frozen.fit, static_argnames="steps")(
        jnp.asarray(features, jnp.float32), jnp.asarray(shares, jnp.float32), decay=1e-2
    )
    logits = features @ np.asarray(kernel) + np.asarray(bias)
    expected = standard @ best[:-1] + best[-1]

    def centre(x):  # a common shift of a row's logits changes nothing
        return x - x.mean(1, keepdims=True)

    np.testing.assert_allclose(centre(logits), centre(expected), atol=2e-3)


def test_prediction_upsamples_logits_not_labels():
    features = np.array([[[[0.0], [1.0]]]], np.float32)
    found = frozen.predict(features, np.array([[-1.0, 1.0]], np.float32), np.array([0.3, -0.3], np.float32), (2, 8))
    # Logit differences from -0.6 to 1.4, linear between the cells' centres at columns 1.5 and 5.5.
    columns = np.clip((np.arange(8) - 1.5) / 4, 0, 1)
    np.testing.assert_array_equal(found, np.broadcast_to(2 * columns - 0.6 > 0, (1, 2, 8)))


@pytest.fixture(scope="module")
def small(data):
    """Return (changes) -> the study's config in miniature."""

    def make(**changes):
        config = tiny.toy_study(study_demo.get_config(), data, patch)
        config.finetune.data.limit = 4
        config.update(changes)
        return config

    with pytest.MonkeyPatch.context() as patch:
        yield make


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return demo.prepare(tmp_path_factory.mktemp("data"), size=32, train=12, labelled=6, validation=8)


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("study")
    config = small(seeds=(0,), methods=("scratch", "moco_v2_compute", "cp2", "cp2_random_head"))
    study.Study(config, workdir).run()
    return workdir, {p.stem: json.loads(p.read_text()) for p in (workdir / "cells").glob("*.json")}


def test_a_study_makes_its_cells(done):
    _, cells = done
    assert set(cells) == {"scratch_0", "moco_v2_compute_0", "cp2_0", "cp2_random_head_0"}
    for cell in cells.values():
        values = cell["values"]
        assert 0 <= values["finetuned"] <= 1 and 0 <= values["frozen"] <= 1 and 0 <= values["backbone_auc"] <= 1
    assert cells["scratch_0"]["pretraining"]["images"] == 0
    assert cells["cp2_0"]["pretraining"]["steps"] == 2 and cells["cp2_0"]["pretraining"]["images"] == 8
    # The same pretraining, told apart by what finetuning starts its head from.
    shared = ("frozen", "backbone_auc", "output_retrieval")
    one, other = (cells[name]["values"] for name in ("cp2_0", "cp2_random_head_0"))
    assert all(one[k] == other[k] for k in shared)
    assert cells["cp2_0"]["pretraining"] == cells["cp2_random_head_0"]["pretraining"]


def test_equal_compute_means_as_many_operations(done):
    _, cells = done
    moco, cp2 = (cells[f"{name}_0"]["pretraining"] for name in ("moco_v2_compute", "cp2"))
    assert moco["steps"] > cp2["steps"]
    one_step = moco["flops"] / moco["steps"]
    assert abs(moco["flops"] - cp2["flops"]) <= one_step / 2


def test_finished_cells_are_not_made_again_and_another_study_is_refused(done, small):
    workdir, _ = done
    before = {p: p.stat().st_mtime_ns for p in (workdir / "cells").glob("*.json")}
    study.Study(small(seeds=(0,), methods=("scratch", "cp2")), workdir).run()
    assert before == {p: p.stat().st_mtime_ns for p in (workdir / "cells").glob("*.json")}
    record = workdir / "study.json"
    saved = json.loads(record.read_text())
    for part in saved.values():  # as an older version, which had fewer keys, would have left it
        del part["data.value_range"], part["kind"]
    record.write_text(json.dumps(saved))
    study.Study(small(seeds=(0,), methods=("scratch",)), workdir)
    other = small(seeds=(0,), methods=("cp2",))
    other.pretrain.steps = 3
    with pytest.raises(ConfigError, match="pretrain.steps"):
        study.Study(other, workdir)


def test_an_unknown_method_is_named(small, tmp_path):
    with pytest.raises(ConfigError, match="methods=cp3: must be one of scratch, cp2"):
        study.Study(small(methods=("cp3",)), tmp_path)


def test_methods_differ_in_what_they_say():
    overrides = {name: dict(method.overrides or {}) for name, method in study.METHODS.items()}
    assert overrides["cp2"] == {} and overrides["instance_only"] == {"loss.alpha": 0.0}
    assert overrides["dense_only"] == {"loss.alpha_instance": 0.0}
    assert overrides["no_copy_paste"] == {"augment.mask": "full", "loss.alpha": 0.0}
    assert {overrides[m]["augment.mask"] for m in ("polygon", "blocks", "patches")} == {"polygon", "blocks", "patches"}
    assert study.METHODS["moco_v2"].head == study.METHODS["scratch"].head == "random"
