"""Work directories that commit e931057 wrote go on with today's code as they would have gone on with that one's."""

import json
import tarfile

import jax
import numpy as np
import pytest
from helpers import old_runs
from helpers.paths import DATA

import cp2_jax
from cp2_jax import config_files
from cp2_jax.pretraining import run as pretraining
from cp2_jax.runs import writers
from cp2_jax.segmentation import run as segmentation

FOLDER = DATA / "e931057"
TRAIN = {"pretrain": pretraining.train, "finetune": segmentation.train}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    old_runs.write_images(folder)
    return folder


def unpacked(kind, folder):
    with tarfile.open(FOLDER / f"{kind}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / kind


def lines(path):
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(writers.VARYING)} for line in found]


@pytest.mark.parametrize("kind", TRAIN)
def test_it_goes_on_as_it_would_have(kind, images, tmp_path):
    """Today's config, with keys that did not exist then; steps 5 and 6 are computed here, by XLA for this machine."""
    workdir = unpacked(kind, tmp_path)
    assert lines(workdir / "metrics.jsonl")[-1]["step"] == 5
    name, changes = old_runs.CONFIGS[kind]
    config = config_files.load(name)
    config.update_from_flattened_dict(changes | {"data.path": old_runs.data_path(kind, images)})
    result = TRAIN[kind](config, workdir)
    assert result.steps == 6 and result.workdir == workdir
    found, expected = lines(workdir / "metrics.jsonl"), lines(FOLDER / f"expected_{kind}.jsonl")
    # Logged since then, of the steps that are computed here.
    added = [{"learned_dense"} if kind == "pretrain" and line["step"] > 4 else set() for line in expected]
    assert [line.keys() for line in found] == [line.keys() | more for line, more in zip(expected, added, strict=True)]
    for ours, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            # Steps 1 to 4 are that code's own lines, kept as they were.
            tolerance = 0 if theirs["step"] <= 4 else 1e-5
            np.testing.assert_allclose(ours[key], value, rtol=tolerance, err_msg=f"{key} of step {theirs['step']}")
    assert {key: result.metrics[key] for key in expected[-1]} == {key: found[-1][key] for key in expected[-1]}
    print("differs in the last bits:", [k for o, t in zip(found, expected, strict=True) for k in t if o[k] != t[k]])


@pytest.mark.parametrize("kind", TRAIN)
def test_load_reads_it(kind, tmp_path):
    workdir = unpacked(kind, tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    for features in ("head", "projection" if kind == "pretrain" else "logits"):
        model, variables = cp2_jax.load(workdir, features)
        assert model.stride == 8
        found = np.asarray(jax.jit(model)(variables, images))
        assert found.shape[:3] == (2, 4, 4) and np.isfinite(found).all() and found.std() > 0


def test_another_config_is_refused(images, tmp_path):
    """Keys that are new do not hide a value that was changed."""
    workdir = unpacked("pretrain", tmp_path)
    name, changes = old_runs.CONFIGS["pretrain"]
    config = config_files.load(name)
    config.update_from_flattened_dict(changes | {"data.path": str(images), "loss.alpha": 0.3})
    with pytest.raises(cp2_jax.options.ConfigError, match="another config:\n  loss.alpha: was 0.2, now 0.3\nResume"):
        pretraining.train(config, workdir)
