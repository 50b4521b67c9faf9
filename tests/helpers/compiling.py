"""How tests compile: quickly, not well. conftest imports this before jax is loaded.

Most of the suite's time goes into compiling networks that run once or twice. JAX_DISABLE_MOST_OPTIMIZATIONS turns off
LLVM's optimisation, and XLA_FLAGS the newer way to emit fused operations (compiling one pretraining step of a ResNet-18
takes 16 s of CPU time without the two, 10 s with the first, 2.5 s with both). Such programs are as exact.
Processes that a test starts inherit the variables, so their results stay comparable bit for bit.
JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests what users run.
"""

import importlib.metadata
import os
import pathlib

CACHE = pathlib.Path(__file__).parents[2] / ".jax_cache"
# XLA ends the process at a flag that it does not know: these are known to the versions that were tried.
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
KNOWN_TO = ("0.10.",)


def quickly() -> bool:
    """Say whether this run compiles quickly (the default)."""
    return os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"


def set_up() -> None:
    """Set the variables that jax reads when it is imported, where the user has not set them."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # single operations too: every file needs them
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    if quickly() and importlib.metadata.version("jaxlib").startswith(KNOWN_TO):
        os.environ.setdefault("XLA_FLAGS", FLAGS)


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Return the variables for a process with so many CPU devices that compiles as the tests do."""
    flags = os.environ.get("XLA_FLAGS", "")
    if devices > 1:
        flags += f" --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags} | more


set_up()
