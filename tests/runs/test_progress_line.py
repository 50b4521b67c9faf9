"""The progress line: what it says, in which order, and that it never needs more than 80 columns."""

import dataclasses
import importlib
import math

import pytest
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from cp2_jax.pretraining.metrics import PretrainMetrics
from cp2_jax.runs import progress_line, settings
from cp2_jax.segmentation.step import FinetuneMetrics

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[!_]*.py") if not path.stem.startswith("study_"))
METRICS = {"pretrain": PretrainMetrics, "finetune": FinetuneMetrics}
PROBES = [f"probe/{level}_{name}" for level in ("output", "backbone") for name in ("auc", "retrieval", "effective_rank")]
OTHERS = ["miou", "mean_accuracy", "evaluation_pixel_accuracy", "time/images_per_second", "time/input_wait_share"]


def test_what_a_pretraining_line_says():
    values = {"loss": 6.2134, "loss_instance": 5.8022, "loss_dense": 2.0551, "accuracy_instance": 0.4567}
    values |= {"time/images_per_second": 2896.4, "gradient_norm": 1.0}
    line = progress_line.line(1200, 250200, values, 3 * 3600 + 12 * 60 + 5)
    assert line == "step 1200/250200  eta 3:12:05  loss 6.21 (instance 5.8, dense 2.1)  2896 img/s"
    wide = progress_line.line(1200, 250200, values, 60, width=200)
    assert wide.endswith("2896 img/s  instance right 45.7%")


def test_percent_waiting_and_evaluation():
    line = progress_line.line(5, 40, {"loss": 0.5, "time/input_wait_share": 0.256, "pixel_accuracy": 0.9}, math.inf)
    assert line == "step 5/40  eta ?  loss 0.5  waits for input 26%  pixels right 90%"
    assert (
        progress_line.line(5, 40, {"loss": 0.5, "time/input_wait_share": 0.04}, 0.0) == "step 5/40  eta 0:00:00  loss 0.5"
    )
    assert progress_line.line(40, 40, {"miou": 0.50839}, 0.0) == "step 40/40  eta 0:00:00  mIoU 50.8%"


def test_what_is_not_finite_is_said():
    line = progress_line.line(5, 40, {"loss": math.nan, "miou": math.nan, "learning_rate": math.inf}, math.nan)
    assert line == "step 5/40  eta ?  loss nan  mIoU nan  lr inf"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("value", [0.123456, 0.000123456, 123456.7, math.nan])
def test_every_configs_line_fits_80_columns(name, value):
    """At its longest: the last step, four days left, every metric that the job has and what is added to it at times."""
    config = importlib.import_module(f"configs.{name}").get_config()
    metrics = [field.name for field in dataclasses.fields(METRICS[config.kind]) if not field.name.startswith("_")]
    values = dict.fromkeys(metrics + OTHERS + PROBES, value)
    total = settings.total_steps(config, 1_281_167)
    for step in (1, total):
        line = progress_line.line(step, total, values, 99 * 3600.0)
        assert len(line) <= 80 and line.startswith(f"step {step}/{total}  eta 99:00:00  loss ")


@given(
    st.integers(0, 10**7),
    st.dictionaries(st.sampled_from(["loss", "loss_dense", *OTHERS, *PROBES, "unknown"]), st.floats()),
    st.floats(0, 1e6),
    st.integers(45, 120),
)
def test_any_values_fit_any_width(step, values, eta, width):
    line = progress_line.line(step, 10**7, values, eta, width)
    assert len(line) <= width and "unknown" not in line


@pytest.mark.parametrize("arrays, seconds", [(0, 10), (55, 18), (181, 40), (1000, 160)])
def test_compiling_says_about_how_long(arrays, seconds):
    line = progress_line.compiling(arrays)
    assert line.startswith(f"compiling (about {seconds} s") and len(line) <= 71  # beside the bar
