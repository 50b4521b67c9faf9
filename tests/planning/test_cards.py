"""Cards that are not there: their names, what XLA is told of them, and a small step compiled for one where JAX can."""

import importlib.util
from types import SimpleNamespace

import jax
import pytest
from jax.experimental import topologies

from cp2_jax.planning import cards, chips

PLUGIN = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))


@pytest.mark.parametrize(
    "name,hosts,count",
    [("h100", 1, 1), ("H100", 1, 1), ("h200-8", 1, 8), ("a100:2x8", 2, 8), ("a100-40gb", 1, 1), ("a100-40gb-4", 1, 4)],
)
def test_a_name_says_card_hosts_and_how_many(name, hosts, count):
    card, *found = cards.parse(name)
    assert found == [hosts, count]
    assert card is cards.CARDS["a100-40gb" if "40gb" in name else name.lower()[:4]]


@pytest.mark.parametrize("name", ["h100-0", "h100:8", "h100:0x8", "h100x8", "b200", "v100", "xh100", ""])
def test_other_names_are_no_cards(name):
    assert cards.parse(name) is None
    with pytest.raises(chips.PlanError, match="no topology.*h100, .*such as.*h100:2x8"):
        chips.get(name)


@pytest.fixture
def plugin(monkeypatch):
    """JAX's plugin in place of which a function answers; returns what it was asked, and what JAX was told before."""
    asked = {}

    def described(**options):
        asked.update(options)
        return SimpleNamespace(devices=[SimpleNamespace(platform="gpu", process_index=0)] * 16)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax_cuda12_plugin" or None)
    monkeypatch.setattr(topologies, "get_topology_desc", described)
    monkeypatch.setattr(jax.config, "update", asked.__setitem__)
    monkeypatch.setenv("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    return asked


@pytest.mark.parametrize("share,memory", [("", 0.75 * 42331013120), ("0.9", 0.9 * 42331013120)])
def test_xla_is_told_of_the_card_and_the_plan_of_what_jax_may_take(plugin, monkeypatch, share, memory):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", share)
    topology = chips.get("a100-40gb:2x8")
    assert (topology.hosts, len(topology.devices), topology.chip.memory) == (2, 16, memory)
    assert plugin["platform"] == "cuda" and plugin["topology"] == "1x2x8"
    assert plugin["jax_platforms"] == "cpu" and plugin["jax_enable_compilation_cache"] is False
    lines = [line.strip() for line in plugin["target_config"].splitlines()]
    assert "core_count: 108" in lines and "memory_bandwidth: 1555000000000" in lines
    assert "cuda_compute_capability { major: 8 minor: 0 }" in lines and "device_memory_size: 42331013120" in lines


def test_without_the_plugin_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(chips.PlanError, match=r"^h100-8: .*pip install 'cp2_jax\[gpu\]'$"):
        chips.get("h100-8")


def test_a_jax_that_cannot_is_named(plugin, monkeypatch):
    def fails(**_):
        raise NotImplementedError("topology not implemented for cuda\nand more")

    monkeypatch.setattr(topologies, "get_topology_desc", fails)
    with pytest.raises(chips.PlanError, match=r"^h200: JAX .* \(topology not implemented for cuda\); --topology local"):
        chips.get("h200")


@pytest.mark.skipif(not PLUGIN, reason="JAX's CUDA plugin is not installed")
def test_a_program_for_a_card_that_is_not_there(monkeypatch):
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # the other tests' JAX stays as it is
    where = jax.sharding.SingleDeviceSharding(chips.get("h100").devices[0])
    shape = jax.ShapeDtypeStruct((8, 16), "bfloat16", sharding=where)
    compiled = jax.jit(lambda x: x @ x.T, out_shardings=where).lower(shape).compile()
    assert compiled.memory_analysis().argument_size_in_bytes == 8 * 16 * 2 and "ENTRY" in compiled.as_text()
