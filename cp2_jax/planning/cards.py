"""NVIDIA cards that need not be there: XLA's CUDA compiler makes programs for a card from its description alone."""

import dataclasses
import importlib.util
import os
import re

import jax

from cp2_jax.planning.specifications import Chip, PlanError


@dataclasses.dataclass(frozen=True)
class Card:
    """What the compiler asks of a card; the makers' public figures, as XLA's own descriptions have them.

    Attributes:
      name: as JAX gives it (`device_kind`).
      capability: of CUDA, such as (9, 0).
      multiprocessors, lanes: their number, and float32 units in each.
      shared: bytes of fast memory of a multiprocessor; `shared_block`: what one block of threads may take of them.
      cache: bytes of the second level. clock: GHz.
      memory: bytes that a program sees.
      chip: what bounds on time are made of.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    lanes: int
    shared: int
    shared_block: int
    cache: int
    clock: float
    memory: int
    chip: Chip


_HOPPER = dict(
    capability=(9, 0), multiprocessors=132, lanes=128, shared=233472, shared_block=232448, cache=52428800, clock=1.98
)
_AMPERE = dict(
    capability=(8, 0), multiprocessors=108, lanes=64, shared=167936, shared_block=166912, cache=41943040, clock=1.41
)
CARDS = {
    "h200": Card("NVIDIA H200", memory=151397597184, chip=Chip(141e9, 989e12, 4800e9, 450e9), **_HOPPER),
    "h100": Card("NVIDIA H100 80GB HBM3", memory=84942979072, chip=Chip(80e9, 989e12, 3352e9, 450e9), **_HOPPER),
    "a100": Card("NVIDIA A100-SXM4-80GB", memory=85100068864, chip=Chip(80e9, 312e12, 2039e9, 300e9), **_AMPERE),
    "a100-40gb": Card("NVIDIA A100-SXM4-40GB", memory=42331013120, chip=Chip(40e9, 312e12, 1555e9, 300e9), **_AMPERE),
}

# Chips of cards that are there, by a part of the name that JAX gives them; the first that fits.
PRESENT = {
    "H200": CARDS["h200"].chip,
    "H100 PCIe": Chip(80e9, 756e12, 2000e9, 300e9),
    "H100": CARDS["h100"].chip,
    "A100-SXM4-80GB": CARDS["a100"].chip,
    "A100": CARDS["a100-40gb"].chip,
    "V100": Chip(16e9, 125e12, 900e9, 150e9),
}

# JAX takes this share of a card's memory unless the variable says otherwise.
_SHARE, _SHARE_VARIABLE = 0.75, "XLA_PYTHON_CLIENT_MEM_FRACTION"


def parse(name: str) -> tuple[Card, int, int] | None:
    """Return card, hosts and cards of a host of a name: "h100", "h100-8", or "h100:2x8" for two hosts of eight; or None."""
    match = re.fullmatch(rf"({'|'.join(CARDS)})(?:-(\d+)|:(\d+)x(\d+))?", name.lower())
    if not match:
        return None
    hosts, count = int(match[3] or 1), int(match[4] or match[2] or 1)
    return (CARDS[match[1]], hosts, count) if hosts * count else None


def described(card: Card) -> str:
    """Return a card's description as XLA reads it: a `GpuTargetConfigProto` as text."""
    major, minor = card.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {card.shared}
  shared_memory_per_block_optin: {card.shared_block}
  threads_per_core_limit: 2048
  core_count: {card.multiprocessors}
  fpus_per_core: {card.lanes}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {int(card.chip.memory_rate)}
  l2_cache_size: {card.cache}
  clock_rate_ghz: {card.clock}
  device_memory_size: {card.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{card.name}"
"""


def memory_for_jax(card: Card) -> float:
    """Return the bytes that JAX's allocator may take of a card."""
    return card.memory * float(os.environ.get(_SHARE_VARIABLE) or _SHARE)


def compile_only() -> None:
    """Let this process compile for devices that are not there, and run nothing but on its CPU."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # a program read back wants its device, and JAX warns of that


def devices(name: str, card: Card, hosts: int, count: int) -> list[jax.Device]:
    """Return devices to compile for, of cards that need not be there.

    Args:
      name: as it was typed, for messages.
      card, hosts, count: from `parse`.

    Raises:
      PlanError: without JAX's CUDA plugin, saying how to install it, or if its version cannot describe a card.
    """
    # Without a driver the plugin's own checks of what is installed fail, and it is left out.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    compile_only()
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise PlanError(f"{name}: programs for NVIDIA cards are compiled by JAX's plugin: pip install 'cp2_jax[gpu]'")
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=described(card), topology=f"1x{hosts}x{count}"
        ).devices
    except Exception as error:
        raise PlanError(
            f"{name}: JAX {jax.__version__} cannot describe a card that is not there ({str(error).splitlines()[0]}); "
            "--topology local, on the machine that has it, compiles for it"
        ) from None
    return list(found)
