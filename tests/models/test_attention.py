"""Which kernels compute attention: fused ones where card and dtype allow it, decided for the platform compiled for."""

import functools
import logging
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cp2_jax.models import attention
from cp2_jax.models.vit import ViT, ViTOptions

HOPPER = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H200")
AMPERE = SimpleNamespace(compute_capability="8.0", device_kind="NVIDIA A100")
BLACKWELL = SimpleNamespace(compute_capability="10.0", device_kind="NVIDIA B200")
TURING = SimpleNamespace(compute_capability="7.5", device_kind="Tesla T4")
PADDED = functools.partial(attention.attend_padded, implementation="xla")


@pytest.fixture
def cards(monkeypatch):
    """Puts cards into this machine, and in the place of cuDNN's kernels XLA's on the same padded sequences."""

    def undetected(*_):
        raise RuntimeError("cuDNN is not detected.")  # JAX's words, where it is not installed

    def put(*found, cudnn=True):
        monkeypatch.setattr(attention, "_cards", lambda: list(found))
        monkeypatch.setattr(attention, "attend_padded", PADDED if cudnn else undetected)

    attention._say_once.cache_clear()
    return put


def arrays(tokens=197, dtype=jnp.bfloat16, size=8):
    return [jax.random.normal(jax.random.key(i), (2, tokens, 3, size), dtype) for i in range(3)]


@pytest.mark.parametrize("tokens", [5, 8, 197, 1025])
def test_padded_attention_equals_attention_and_its_gradient(tokens):
    """What cuDNN's kernels are given: padded sequences and their lengths, here computed by XLA. 1025: crops of 512."""
    inputs, weights = arrays(tokens, jnp.float32), jax.random.normal(jax.random.key(3), (2, tokens, 3, 8))
    found = [
        jax.jit(jax.value_and_grad(lambda *qkv, f=f: jnp.sum(f(*qkv) * weights), argnums=(0, 1, 2)))(*inputs)
        for f in (attention.ATTENTIONS["xla"], PADDED)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *found)


@pytest.mark.parametrize(
    "found,dtype,cudnn,reason",
    [
        ([HOPPER], jnp.bfloat16, True, ""),
        ([AMPERE], jnp.bfloat16, True, ""),
        ([BLACKWELL], jnp.bfloat16, True, ""),  # 10.0 is newer than 8.0, as text it would not be
        ([TURING], jnp.bfloat16, True, "they need compute capability 8.0 (Ampere) or newer, Tesla T4 has 7.5"),
        ([HOPPER, TURING], jnp.bfloat16, True, "Tesla T4 has 7.5"),
        ([HOPPER], jnp.float32, True, "they take model.dtype=bfloat16, not float32"),
        ([HOPPER], jnp.bfloat16, False, "cuDNN is not detected."),
    ],
)
def test_what_rules_the_fused_kernels_out(found, dtype, cudnn, reason, cards, caplog):
    """One line says it, however many layers ask; where there are no cards nothing is said."""
    cards(*found, cudnn=cudnn)
    inputs = arrays(5, dtype)
    assert reason in attention.obstacle(inputs[0], found) and bool(reason) == bool(attention.obstacle(inputs[0], found))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            mixed = attention.attend(*inputs)
    assert [reason in line for line in caplog.messages] == [True] * bool(reason)
    np.testing.assert_array_equal(mixed, attention.ATTENTIONS["xla"](*inputs))


def test_without_cards_it_is_xlas_and_nothing_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        assert attention._cards() == []
        np.testing.assert_array_equal(attention.attend(*arrays(5)), attention.ATTENTIONS["xla"](*arrays(5)))
    assert caplog.messages == []


@pytest.mark.parametrize("found", [[AMPERE], []], ids=["a card here", "compiled for one elsewhere"])
def test_the_platform_compiled_for_decides(found, cards):
    """200 tokens, 197 padded, are what the kernels get; a program for CPUs or TPUs has none of it."""
    cards(*found)
    traced = jax.jit(attention.attend).trace(*arrays())
    for platform, fused in (("cuda", True), ("cpu", False), ("tpu", False)):
        assert ("x200x3x" in traced.lower(lowering_platforms=(platform,)).as_text()) == fused, platform


def test_the_form_not_taken_costs_no_memory(cards):
    """Differentiating a choice keeps what each branch would need; the compiler drops that of the branch not taken."""
    cards(AMPERE)

    def compiled(function):
        gradient = jax.grad(lambda q, k, v: jnp.sum(function(q, k, v).astype(jnp.float32)), (0, 1, 2))
        return jax.jit(gradient).lower(*arrays()).compile()

    chosen, plain = compiled(attention.attend), compiled(attention.ATTENTIONS["xla"])
    assert chosen.memory_analysis().temp_size_in_bytes <= 1.01 * plain.memory_analysis().temp_size_in_bytes
    assert not re.search(r"\b200,", chosen.as_text()) and re.search(r"\b197,", chosen.as_text())


def test_a_vit_takes_them_by_default(cards):
    """In pretraining and in finetuning, which has more tokens."""
    cards(HOPPER)
    model = ViT(ViTOptions(width=16, depth=1, heads=2), dtype=jnp.bfloat16)
    for side, tokens in ((224, 200), (512, 1032)):
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), images)
        traced = jax.jit(lambda v, x: model.apply(v, x, False)).trace(variables, images)
        assert f"1x{tokens}x2x8xbf16" in traced.lower(lowering_platforms=("cuda",)).as_text()
