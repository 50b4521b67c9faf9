"""Losses against plain NumPy written from the paper's equations, and against the recorded numbers of the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp2_jax.options import ConfigError
from cp2_jax.pretraining import losses


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def masks(rng, batch, pixels):
    """Random masks, none of them empty or full."""
    m = (rng.random((batch, pixels)) < 0.5).astype(np.float64)
    m[:, 0], m[:, 1] = 1, 0
    return m


def dense_by_definition(query, key, mask_query, mask_key, tau, axis):
    """Equation 2, pair by pair."""
    total = []
    for q, k, mq, mk in zip(query, key, mask_query, mask_key, strict=True):
        terms = []
        for i in np.flatnonzero(mq):
            for j in np.flatnonzero(mk):
                others = k @ q[i] if axis == "key" else q @ k[j]
                terms.append(-np.log(np.exp(q[i] @ k[j] / tau) / np.exp(others / tau).sum()))
        total.append(np.mean(terms))
    return np.array(total)


@pytest.mark.parametrize("axis", ["key", "query"])
@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_dense_loss_is_equation_2(x64, axis, tau):
    rng = np.random.default_rng(0)
    q, k = unit(rng, 3, 12, 5), unit(rng, 3, 12, 5)
    mq, mk = masks(rng, 3, 12), masks(rng, 3, 12)
    got = jax.jit(losses.dense_loss, static_argnames=("temperature", "axis"))(q, k, mq, mk, temperature=tau, axis=axis)
    np.testing.assert_allclose(got.loss, dense_by_definition(q, k, mq, mk, tau, axis), rtol=1e-12)
    nearest = np.einsum("bqc,bkc->bqk", q, k).argmax(2)
    hit = np.take_along_axis(mk, nearest, 1)
    np.testing.assert_allclose(got.accuracy, (hit * mq).sum(1) / mq.sum(1), rtol=1e-12)


@pytest.mark.parametrize("axis", ["key", "query"])
@pytest.mark.parametrize("tau", [1.0, 0.2])
def test_the_range_of_the_dense_loss_is_reached_and_not_left(x64, axis, tau):
    """Equal features give one end, features that tell foreground from background alone the other."""
    rng = np.random.default_rng(5)
    mask_query, mask_key = (rng.random((6, n)) < 0.6 for n in (9, 12))
    mask_query, mask_key = mask_query.astype(float), mask_key.astype(float)

    def learned(query, key):
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key)]
        return losses.dense_loss(*unit, mask_query, mask_key, temperature=tau, axis=axis)

    sign = [np.where(mask[..., None] > 0, 1.0, -1.0) * np.ones(4) for mask in (mask_query, mask_key)]
    equal, told = learned(np.ones((6, 9, 4)), np.ones((6, 12, 4))), learned(*sign)
    np.testing.assert_allclose(equal.learned, 0, atol=1e-12)
    np.testing.assert_allclose(equal.loss, np.log(12 if axis == "key" else 9), rtol=1e-12)
    np.testing.assert_allclose(told.learned, 1, rtol=1e-12)
    for _ in range(20):
        assert np.all(learned(rng.normal(size=(6, 9, 4)), rng.normal(size=(6, 12, 4))).learned < 1)


def test_instance_loss_is_equation_3(x64):
    rng = np.random.default_rng(1)
    q, k, bank = unit(rng, 4, 8), unit(rng, 4, 8), unit(rng, 6, 4, 8)
    got = losses.instance_loss(q, k, bank, temperature=0.2)
    for i in range(4):
        positive = np.exp(q[i] @ k[i] / 0.2)
        negatives = np.exp(bank.reshape(-1, 8) @ q[i] / 0.2)
        np.testing.assert_allclose(got.loss[i], -np.log(positive / (positive + negatives.sum())), rtol=1e-12)
        assert bool(got.correct[i]) == bool((positive > negatives).all())


def test_masked_pool_is_equation_4(x64):
    rng = np.random.default_rng(2)
    f, m = unit(rng, 2, 3, 3, 4), masks(rng, 2, 9).reshape(2, 3, 3)
    expected = (f * m[..., None]).sum((1, 2))
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(losses.masked_pool(f, m), expected, rtol=1e-12)


def options(**changed):
    return dict(temperature_instance=0.2, temperature_dense=1.0, alpha=0.2) | changed


def random_case(seed, batch=4, side=3, channels=6):
    rng = np.random.default_rng(seed)
    mq, mk = (masks(rng, batch, side * side).reshape(batch, side, side) for _ in range(2))
    features = [rng.normal(size=(batch, side, side, channels)) for _ in range(2)]
    return [jnp.asarray(x, jnp.float32) for x in (*features, mq, mk, unit(rng, 2, batch, channels))]


@jax.jit
def usual_loss(*arrays):
    return losses.cp2_loss(*arrays, **options())


@jax.jit
def usual_gradient(q, *others):
    return jax.grad(lambda q: losses.cp2_loss(q, *others, **options()).loss)(q)


@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("side", ["query", "key"])
def test_empty_and_full_masks_add_zero_and_are_counted(fill, side):
    """The rest of the batch is as if the bad sample had loss zero; gradients stay finite."""
    q, k, mq, mk, bank = random_case(3)
    bad = {"query": (mq.at[1].set(fill), mk), "key": (mq, mk.at[1].set(fill))}[side]
    good = np.array([0, 2, 3])
    whole, part = usual_loss(q, k, *bad, bank), usual_loss(q[good], k[good], mq[good], mk[good], bank)
    np.testing.assert_allclose(whole.loss_dense, part.loss_dense * 3 / 4, rtol=1e-5)
    assert whole.skipped == 1
    if fill == 0:
        np.testing.assert_allclose(whole.loss_instance, part.loss_instance * 3 / 4, rtol=1e-5)
    else:  # a full mask still pools: global average pooling, as in "no copy-paste"
        assert whole.loss_instance > part.loss_instance * 3 / 4
    assert np.isfinite(usual_gradient(q, k, *bad, bank)).all()


@pytest.mark.parametrize("filled", [0, 1, 3, 5])
def test_rows_that_hold_no_keys_yet_are_no_negatives(x64, filled):
    rng = np.random.default_rng(2)
    q, k, bank = unit(rng, 4, 8), unit(rng, 4, 8), unit(rng, 5, 6, 8)

    def loss(q, bank, filled):
        return losses.instance_loss(q, k, bank, temperature=0.2, filled=filled)

    masked, gradient = loss(q, bank, jnp.int32(filled)), jax.grad(lambda q: loss(q, bank, jnp.int32(filled)).loss.sum())(q)
    if filled == 0:
        assert (masked.loss == 0).all() and (gradient == 0).all()
        return
    short = loss(q, bank[:filled], None)
    np.testing.assert_allclose(masked.loss, short.loss, rtol=1e-12)
    np.testing.assert_array_equal(masked.correct, short.correct)
    np.testing.assert_allclose(gradient, jax.grad(lambda q: loss(q, bank[:filled], None).loss.sum())(q), rtol=1e-9)


def test_full_masks_are_not_counted_without_dense_loss():
    q, k, mq, mk, bank = random_case(4)
    full = jnp.ones_like(mq)
    assert losses.cp2_loss(q, k, full, full, bank, **options(alpha=0.0)).skipped == 0
    assert losses.cp2_loss(q, k, full, full, bank, **options()).skipped == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.1, 10))
def test_loss_ignores_the_scale_of_features_and_the_order_of_the_queue(seed, scale):
    q, k, mq, mk, bank = random_case(seed)
    a = usual_loss(q, k, mq, mk, bank)
    b = usual_loss(q * scale, k / scale, mq, mk, bank.reshape(-1, 1, 6)[::-1])
    np.testing.assert_allclose(a.loss, b.loss, rtol=2e-5)
    # Equation 5.
    np.testing.assert_allclose(a.loss, a.loss_instance + 0.2 * a.loss_dense, rtol=1e-6)


def test_l2_normalize_at_zero_has_a_finite_gradient():
    assert np.isfinite(jax.grad(lambda x: losses.l2_normalize(x).sum())(jnp.zeros(3))).all()


@pytest.mark.parametrize("name", ["B_resnet_aspp_sgd", "B_vit_aspp_adamw"])
@pytest.mark.parametrize("axis,recorded", [("key", "eq2"), ("query", "official")])
def test_dense_loss_equals_the_recorded_one(x64, reference, name, axis, recorded):
    """From the recorded logits of the original, features are made whose products are those logits."""
    run, inputs = reference(f"{name}_f64"), reference("B_inputs")
    logits = run["f64/step0/logits_dense"]
    eye = np.broadcast_to(np.eye(16), (8, 16, 16))
    mq, mk = (inputs[f"step0/mask_{s}"][:, 8::16, 8::16].reshape(8, 16).astype(float) for s in "qk")
    got = losses.dense_loss(logits, eye, mq, mk, temperature=1.0, axis=axis, skip_full=False)
    np.testing.assert_allclose(got.loss.mean(), run[f"f64/step0/loss_dense_{recorded}"], rtol=1e-12)


def test_an_unknown_axis_is_named():
    with pytest.raises(ConfigError, match=r"axis=keys: must be one of key, query \(did you mean key\?\)"):
        losses.dense_loss(
            jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), jnp.ones((1, 2)), jnp.ones((1, 2)), axis="keys", temperature=1.0
        )
