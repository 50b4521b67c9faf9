"""The package as a user gets it: a wheel, in an environment and a directory of its own."""

import operator
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

import jax
import numpy as np
import pytest
from helpers.paths import ROOT
from PIL import Image

import cp2_jax

setuptools = pytest.importorskip("setuptools", minversion="77", reason="older ones build no wheel")

NOTEBOOK = """
import cp2_jax

run = cp2_jax.pretrain(
    "photos", "runs/photos", config="pretrain:demo", steps=2, batch_size=4, bn_groups=1, data={"workers": 1},
    loss={"queue_size": 8}, augment={"jitter_probability": 0.0, "grayscale": 0.0, "blur": 0.0},
    model={"backbone": "vit", "vit": {"width": 12, "depth": 1, "heads": 3, "patch": 8},
           "head": "fcn", "fcn": {"channels": 8}},
    picture_every=0, probe_every=0,
)
assert run.steps == 2 and run.metrics["loss"] > 0, run
cp2_jax.embed(run, "photos", "features.npz", size=32, batch=4)
model, variables = cp2_jax.load(run)
print(cp2_jax.__file__)
"""


def alone():
    """Return this process's environment without PYTHONPATH: a checkout there would count as the installed package."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build a wheel from a copy of the checkout, install it; return the environment's `bin`."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("cp2_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    assert wheel.name == f"cp2_jax-{cp2_jax.__version__}-py3-none-any.whl"
    shutil.rmtree(source)
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment/bin/python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    done = subprocess.run(install, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # The libraries are this environment's. An editable install in there does not count: it works by a `.pth` of its own.
    (packages,) = (folder / "environment").glob("lib/*/site-packages")
    packages.joinpath("shared.pth").write_text(f"{pathlib.Path(jax.__file__).parents[1]}\n")
    return python.parent


@pytest.fixture
def elsewhere(tmp_path):
    (tmp_path / "photos").mkdir()
    for seed in range(6):
        pixels = np.random.default_rng(seed).integers(0, 256, (48, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{seed}.png")
    return tmp_path


def test_the_command_finds_its_configs_from_anywhere(installed, tmp_path):
    command = [installed / "cp2", "pretrain", "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: cp2 pretrain" in done.stdout and "  loss.queue_size = 65536" in done.stdout
    files = {path.name for path in installed.parent.glob("lib/*/site-packages/cp2_jax*/**/*")}
    assert {"py.typed", "LICENSE", "NOTICE", "finetune_voc.py"} <= files


def test_the_notebooks_lines_in_a_plain_script(installed, elsewhere):
    """Also without `if __name__ == "__main__"`, with a worker process, which Python starts anew."""
    (elsewhere / "mine.py").write_text(NOTEBOOK)
    quickly = {key: os.environ[key] for key in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "XLA_FLAGS") if key in os.environ}
    environment = {"JAX_PLATFORMS": "cpu", "HOME": str(elsewhere), "PATH": ""} | quickly
    command = [installed / "python", "mine.py"]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(installed.parent))
    assert re.search(r"finished: 2 steps.*\nnext: cp2_jax.finetune\(DATA, OUT, checkpoint=.runs/photos.\)\n", done.stdout)
    with np.load(elsewhere / "features.npz") as table:
        assert list(table["names"]) == [f"{n}.png" for n in range(6)] and table["features"].shape == (6, 8)
    assert (elsewhere / ".cache/cp2_jax").is_dir()


def test_importing_imports_nothing():
    """JAX takes a second, and reads its settings when it is imported."""
    code = "import sys, cp2_jax; dir(cp2_jax); print(*(m for m in ('jax', 'numpy', 'absl') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_what_the_package_offers():
    assert {"pretrain", "finetune", "load_segmenter", "embed", "load", "convert_checkpoint"} <= set(cp2_jax.__all__)
    assert set(cp2_jax.__all__) <= set(dir(cp2_jax)) and "_HOMES" not in dir(cp2_jax)
    for name in cp2_jax.__all__:
        assert getattr(cp2_jax, name).__doc__
    with pytest.raises(AttributeError, match="has no attribute 'train'; it offers pretrain, finetune"):
        operator.attrgetter("train")(cp2_jax)
