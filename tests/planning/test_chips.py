"""Topologies by name: how many devices, of what memory."""

import pytest
from helpers import command_line

from cp2_jax.planning import chips


@pytest.mark.parametrize(
    "name, devices, memory",
    [
        ("v3-8", 8, 16e9),
        ("v3-32", 32, 16e9),
        ("v4-32", 16, 32e9),
        ("v4:2x2x2", 8, 32e9),
        ("v5litepod-16", 16, 16e9),
        ("v5e-1", 1, 16e9),
        ("v5p-16", 8, 95e9),
        ("v6e-8", 8, 32e9),
        ("h100", 1, 0.75 * 84942979072),
        ("h100:2x8", 16, 0.75 * 84942979072),
    ],
)
def test_devices_are_counted_without_what_compiles_for_them(capsys, monkeypatch, name, devices, memory):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda module: None)
    count, chip = chips.count(name)
    assert (count, chip.memory) == (devices, memory)
    if name == "h100:2x8":
        asked = ("plan", "--config", "pretrain:small", "--images", 10**6, "--sizes", "--topology", name)
        status, out, err = command_line.cp2(capsys, *asked)
        assert (status, err) == (0, "") and "batch_size = 256: " in out


@pytest.mark.parametrize("name", ["v4-32", "v3-8", "v5e-16", "v5p-16"])
def test_libtpu_counts_the_same(monkeypatch, name):
    """Needs libtpu (pip install 'cp2_jax[tpu]'), no TPU."""
    pytest.importorskip("libtpu")
    assert len(chips.get(name).devices) == chips.count(name)[0]
