"""Shared test set-up: CPU, the persistent compilation cache, and reference arrays."""

import ctypes
import gc
import sys

import helpers.compiling  # sorts before jax, as it must: it sets the variables that jax reads when it is imported
import hypothesis
import jax
import numpy as np
import pytest
from absl import flags
from helpers import servers, watching
from helpers.paths import DATA, ROOT

from cp2_jax.data import notices

HERE = ROOT / "tests"

# How long an example takes says how busy the machine is, not whether the code is right.
hypothesis.settings.register_profile("no_deadline", deadline=None)
hypothesis.settings.load_profile("no_deadline")

# Grain's workers read absl flags, which outside of app.run nobody has parsed.
flags.FLAGS.mark_as_parsed()


# Tracing makes millions of small objects that live on: looking through them again and again for garbage took a sixth of the
# suite's time. `forgetting` collects after each file.
gc.set_threshold(200_000, 50, 100)


def pytest_collection_finish(session):
    """What is imported by now is never garbage: collections leave it out."""
    gc.collect()
    gc.freeze()


# The files that take longest, the longest first. Several processes take whole files: these must not be left for the end,
# when one process works and the others wait.
LONGEST = (
    "pretraining/test_recorded_steps.py",
    "benchmarks/test_topology.py",
    "runs/test_buckets.py",
    "segmentation/test_entry_points.py",
    "models/test_models.py",
    "augment/test_masks.py",
    "runs/test_distributed.py",
    "convert/test_warm_start.py",
    "segmentation/test_finetune_step.py",
    "reproduce/test_chain.py",
    "benchmarks/test_gpu.py",
    "runs/test_session.py",
    "runs/test_old_runs.py",
    "runs/test_checkpoints.py",
    "planning/test_planning.py",
    "test_package.py",
    "interface/test_training.py",
    "reproduce/test_quick_tuning.py",
    "runs/test_mesh.py",
)


def pytest_collection_modifyitems(items):
    """Begin with the longest files; the rest stays in its order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(str(item.path).removeprefix(f"{HERE}/"), len(places)))


def pytest_sessionfinish(session):
    """Where tests run in several processes, hand what this one compared to the one that reports."""
    from helpers import parity

    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["parity"] = parity.WORST


class _Workers:
    """Registered only with pytest-xdist, whose hook this is."""

    def pytest_testnodedown(self, node, error):
        from helpers import parity

        for kind, worst in getattr(node, "workeroutput", {}).get("parity", {}).items():
            parity.WORST[kind] = max(parity.WORST.get(kind, (-1.0,)), tuple(worst))


def pytest_configure(config):
    watching.register(config)
    if config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(_Workers())


def pytest_terminal_summary(terminalreporter):
    """Print the worst deviation from the original of each kind that this session compared."""
    from helpers import parity

    if parity.WORST:
        terminalreporter.section("worst deviation from the recorded original, relative to each array's largest value")
        for kind, (deviation, tolerance, where) in sorted(parity.WORST.items()):
            terminalreporter.write_line(f"{kind:45} {deviation:.1e}  (allowed {tolerance:.0e})  {where}")


@pytest.fixture(scope="module", autouse=True)
def compiled_as_the_file_says(request):
    """Compile well in files that say `COMPILE_WELL = True`, because they compute more than they compile."""
    well = getattr(request.module, "COMPILE_WELL", False)
    jax.config.update("jax_disable_most_optimizations", helpers.compiling.quickly() and not well)


@pytest.fixture(scope="module", autouse=True)
def forgetting(request):
    """After each file give back the memory of its compiled programs and arrays: kept, they add up to gigabytes."""
    yield
    for value in vars(request.module).values():
        if hasattr(value, "cache_clear"):  # functools.cache
            value.cache_clear()
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def x64():
    """Run one test in float64."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def said(monkeypatch, caplog, tmp_path):
    """Let what is said once about data be said again in this test, and indexes be kept in a cache of its own; the log."""
    monkeypatch.setattr(notices, "_said", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return caplog


@pytest.fixture(scope="session")
def reference():
    """Load tests/data/<name>.npz: arrays recorded from the original PyTorch code."""
    return lambda name: np.load(DATA / f"{name}.npz")


@pytest.fixture(scope="module", params=["gs", "s3"])
def proxy(request):
    """A server of buckets behind a proxy, with the environment that leads to it."""
    with servers.proxied(request.param) as proxy:
        yield proxy


@pytest.fixture
def bucket(proxy):
    """A bucket that is empty, on a server that does what it is asked."""
    proxy.fault = servers.nothing
    yield proxy.new_bucket()
    proxy.fault = servers.nothing
