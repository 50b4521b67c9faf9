"""docs/library.md: its code runs, and what a loop of one's own gets wrong is told."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import ROOT

import cp2_jax
from cp2_jax.augment import compose
from cp2_jax.augment.options import AugmentOptions
from cp2_jax.pretraining import losses, memory_bank
from cp2_jax.runs import settings
from cp2_jax.runs.checkpoints import write_variables

# Less to compile; what the augmentations do is tested elsewhere.
PLAIN = "jitter_probability=0.0, grayscale=0.0, blur=0.0"


@pytest.fixture(scope="module")
def page():
    """What the page's code leaves behind."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(), re.DOTALL)
    code = "\n".join(blocks).replace("AugmentOptions()", f"AugmentOptions({PLAIN})")
    code = code.replace('config.data.path = "mine"', f'config.data.path = "mine"; config.augment.update({PLAIN})')
    assert code.count(PLAIN) == 2
    names = {}
    exec(compile(code, "docs/library.md", "exec"), names)
    return names


def test_the_page_runs(page, tmp_path):
    assert float(page["found"].skipped) == 0 and np.isfinite(page["metrics"].compute()["loss"])
    assert memory_bank.age(page["state"].queue, page["state"].step) == 4
    variables = {"params": page["state"].params, "batch_stats": page["state"].batch_stats}
    write_variables(tmp_path / "own", variables, {"kind": "pretrain", "config": settings.as_plain(page["config"])})
    model, ours = cp2_jax.load(tmp_path / "own")
    assert model(ours, np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, 8, 8, 8)


def loss(features=(2, 4, 4, 3), mask=None, queue=(1, 2, 3)):
    f = jnp.ones(features)
    mask = jnp.zeros((2, 4, 4)).at[:, :2].set(1) if mask is None else mask
    weights = {"temperature_instance": 0.2, "temperature_dense": 1.0, "alpha": 0.2}
    return losses.cp2_loss(f, f, mask, mask, jnp.ones(queue), **weights).loss


@pytest.mark.parametrize(
    "given, message",
    [
        ({"features": (2, 16, 3)}, r"query of shape \(2, 16, 3\): features \[batch, height"),
        ({"features": (2, 3, 4, 4)}, r"mask_query of shape \(2, 4, 4\) does not fit features \(2, 3, 4, 4\)"),
        ({"mask": jnp.ones((2, 32, 32))}, "`augment.compose.feature_mask` brings a mask"),
        ({"mask": jnp.full((2, 4, 4), 255)}, "mask_query has values up to 255: 1 is foreground"),
        ({"queue": (6, 3)}, r"of keys \[size, channels\] take queue\[None\]"),
        ({"queue": (1, 2, 5)}, "the features' 3 channels"),
    ],
)
def test_what_does_not_fit_the_loss(given, message):
    assert np.isfinite(loss())
    with pytest.raises(ValueError, match=message):
        loss(**given)


def test_keys_of_another_batch():
    query, mask, weights = jnp.ones((2, 4, 4, 3)), jnp.ones((2, 4, 4)), {"temperature_instance": 0.2, "alpha": 0.2}
    with pytest.raises(ValueError, match=r"query of shape \(2, 4, 4, 3\) and key of shape \(1, 4, 4, 3\): images and"):
        losses.cp2_loss(query, query[:1], mask, mask[:1], jnp.ones((1, 2, 3)), temperature_dense=1.0, **weights)


def test_a_smaller_batch_and_an_old_key():
    queue = memory_bank.init(jax.random.key(0), 8, 4, 3)
    with pytest.raises(ValueError, match=r"keys of shape \(2, 3\) do not fill a row of the queue \(2, 4, 3\)"):
        memory_bank.enqueue(queue, jnp.ones((2, 3)), 0)
    crops = np.zeros((4, 2, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"jax.random.key\(seed\), not jax.random.PRNGKey"):
        compose.compose_pairs(jax.random.PRNGKey(0), crops, crops, AugmentOptions())
