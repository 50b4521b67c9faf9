"""Chips and slices: their public specifications, and their names made into devices, present or described."""

import dataclasses
import importlib.util
import math
import os
import re

import jax

from cp2_jax.planning import cards
from cp2_jax.planning.specifications import Chip, PlanError

__all__ = ["Chip", "PlanError", "Topology", "get", "names"]

# From the makers' public tables; TPU v2 and v3 halved, for a device is a core there.
TPUS = {
    "v2": Chip(8e9, 22.5e12, 350e9, 31e9),
    "v3": Chip(16e9, 61.5e12, 450e9, 41e9),
    "v4": Chip(32e9, 275e12, 1228e9, 150e9),
    "v5e": Chip(16e9, 197e12, 819e9, 100e9),
    "v5p": Chip(95e9, 459e12, 2765e9, 300e9),
    "v6e": Chip(32e9, 918e12, 1640e9, 224e9),
}
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8", 1024: "8x8x8"}
# Names as Cloud TPU gives them: the number counts cores up to v4 and in v5p, chips in v5e and v6e.
SLICES = {
    "v2": {8: "2x2", 32: "4x4", 128: "8x8", 256: "8x16", 512: "16x16"},
    "v3": {8: "2x2", 32: "4x4", 64: "4x8", 128: "8x8", 256: "8x16", 512: "16x16", 1024: "16x32", 2048: "32x32"},
    "v4": _CUBES | {2048: "8x8x16", 4096: "8x16x16"},
    "v5e": _FLAT,
    "v5p": _CUBES | {2048: "8x8x16", 4096: "8x16x16"},
    "v6e": _FLAT,
}
LOCAL = "local"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as it was typed.
      devices: JAX's, present or described.
      chip: its specification; None where it is not known.
      hosts: number of processes.
    """

    name: str
    devices: list[jax.Device]
    chip: Chip | None
    hosts: int


def names() -> list[str]:
    """Return the names of all slices and cards, and "local"."""
    return [f"{kind}-{count}" for kind, counts in SLICES.items() for count in counts] + [*cards.CARDS, LOCAL]


def get(name: str) -> Topology:
    """Return a topology by name.

    Args:
      name: "local" (the devices of this machine), a slice such as "v4-32", or one by its shape, such as "v4:2x2x4"; a
        card, such as "h100", eight of them, "h100-8", or two hosts of eight, "h100:2x8".

    Raises:
      PlanError: for an unknown name, with those that exist; without what compiles for it, saying how to install it.
    """
    if name == LOCAL:
        return _local()
    if named := cards.parse(name):
        card, hosts, each = named
        return Topology(name, cards.devices(name, card, hosts, each), _of_card(card), hosts)
    kind, shape = _slice(name)
    # Otherwise libtpu asks a metadata server which machine it is on, and serves one process at a time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    cards.compile_only()
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(f"{name}: TPU programs are compiled by libtpu: pip install 'cp2_jax[tpu]'")
    from jax.experimental import topologies

    # On v4 and v5p, the two cores of a chip act as one device.
    options = {"chip_config_name": "megacore"} if kind in ("v4", "v5p") else {}
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = list(topologies.get_topology_desc(f"{kind}:{shape}", platform="tpu", **options).devices)
    except Exception as error:
        raise PlanError(
            f"libtpu makes no topology {name!r}: {str(error).splitlines()[0]}. There are {', '.join(names())}"
        ) from None
    return Topology(name, devices, TPUS[kind], len({device.process_index for device in devices}))


def count(name: str) -> tuple[int, Chip | None]:
    """Return how many devices a topology has and what they are; nothing that compiles for them need be installed.

    Raises:
      PlanError: for an unknown name, with those that exist.
    """
    if name == LOCAL:
        local = _local()
        return len(local.devices), local.chip
    if named := cards.parse(name):
        card, hosts, each = named
        return hosts * each, _of_card(card)
    kind, shape = _slice(name)
    cores = 2 if kind in ("v2", "v3") else 1
    return cores * math.prod(map(int, shape.split("x"))), TPUS[kind]


def _of_card(card: cards.Card) -> Chip:
    return dataclasses.replace(card.chip, memory=cards.memory_for_jax(card))


def _slice(name: str) -> tuple[str, str]:
    """Return kind and shape of a TPU slice, such as "v4" and "2x2x4" of "v4-32"."""
    match = re.fullmatch(r"(v\w+)[-:](.+)", name.replace("v5litepod", "v5e"))
    kind, size = (match[1], match[2]) if match else ("", "")
    shape = SLICES.get(kind, {}).get(int(size)) if size.isdecimal() else size
    if kind not in TPUS or not shape or not re.fullmatch(r"\d+(x\d+)+", shape):
        known = f"{', '.join(names())}, and shapes of these, such as v4:2x2x4, h100-8 and h100:2x8"
        raise PlanError(f"no topology {name!r}; there are {known}")
    return kind, shape


def _local() -> Topology:
    devices = jax.devices()
    kind = devices[0].device_kind
    chip = next((spec for name, spec in cards.PRESENT.items() if name in kind), None)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit") if devices[0].platform != "cpu" else None
    if chip and limit:
        chip = dataclasses.replace(chip, memory=limit)
    return Topology(LOCAL, devices, chip, jax.process_count())
