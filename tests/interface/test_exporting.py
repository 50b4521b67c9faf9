"""Models as programs: they run in a process that does not know this project, and compute the same."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.command_line import cp2
from helpers.tiny import tiny_config

import cp2_jax
from cp2_jax.interface import exporting
from cp2_jax.models import segmenter
from cp2_jax.options import ConfigError
from cp2_jax.runs import settings
from cp2_jax.runs.checkpoints import CheckpointError, write_variables

SIZE = (40, 48)

ELSEWHERE = """
import sys, pathlib, jax, numpy
program = jax.export.deserialize(pathlib.Path(sys.argv[1]).read_bytes())
images = numpy.load(sys.argv[2])
numpy.savez(sys.argv[3], **{str(n): out for n, out in enumerate(program.call(images))})
numpy.savez(sys.argv[4], **{str(n): out for n, out in enumerate(program.call(images[:1]))})
assert not any(name.startswith(("cp2_jax", "flax", "ml_collections")) for name in sys.modules)
"""


def run(folder, kind="finetune", dtype="bfloat16", **model):
    """A model with random weights, as a run leaves it."""
    config = tiny_config()
    config.model.resnet.stage_sizes = (1, 1, 1, 1)
    config.model.update(model)
    config.model.dtype, config.evaluation.resize = dtype, ()
    top = "classifier" if kind == "finetune" else "projection"
    module = segmenter.build(config.model, top=top, image_size=32)
    variables = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))()
    write_variables(folder, dict(variables), {"kind": kind, "config": settings.as_plain(config)})
    return folder


def images():
    return np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)


needs_flatbuffers = pytest.mark.skipif(not importlib.util.find_spec("flatbuffers"), reason="jax.export needs it to write")


@needs_flatbuffers
def test_stablehlo_runs_elsewhere_in_any_batch(tmp_path):
    folder = run(tmp_path / "run", dtype="float32")
    written = cp2_jax.export_program(folder, tmp_path / "a.stablehlo", size=SIZE)
    np.save(tmp_path / "images.npy", images())
    (tmp_path / "elsewhere.py").write_text(ELSEWHERE)
    arguments = [written, tmp_path / "images.npy", tmp_path / "3.npz", tmp_path / "1.npz"]
    command = [sys.executable, "elsewhere.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = cp2_jax.load_segmenter(folder).predict(list(images()))
    for name, some in (("3", expected), ("1", expected[:1])):
        with np.load(tmp_path / f"{name}.npz") as found:
            np.testing.assert_array_equal(found["0"], [one.labels for one in some])
            np.testing.assert_allclose(found["1"], [one.probabilities for one in some], atol=1e-5)
    about = json.loads((tmp_path / "a.stablehlo.json").read_text())
    assert about["classes"] == ["left", "right", "other"] and about["outputs"] == ["labels", "probabilities"]


@needs_flatbuffers
@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_features_as_a_program(tmp_path, backbone):
    folder = run(tmp_path / "run", "pretrain", backbone=backbone, vit={"width": 12, "depth": 1, "heads": 2})
    written = cp2_jax.export_program(folder, tmp_path / "a.stablehlo", size=(32, 48), features="projection")
    program = jax.export.deserialize(written.read_bytes())
    pixels = images()[:, :32]
    model, variables = cp2_jax.load(folder, "projection")
    np.testing.assert_allclose(program.call(pixels)[0], model(variables, pixels), atol=1e-5)


@pytest.mark.parametrize("model", [{}, {"head": "fcn"}, {"backbone": "vit", "vit": {"width": 12, "depth": 1, "heads": 2}}])
def test_onnx_computes_the_same(tmp_path, model):
    """With jax2onnx and onnxruntime, in an environment that has them (the extra `onnx`)."""
    pytest.importorskip("jax2onnx")
    runtime = pytest.importorskip("onnxruntime")
    folder = run(tmp_path / "run", dtype="float32", **model)
    written = cp2_jax.export_program(folder, tmp_path / "a.onnx", layout="onnx", size=SIZE)
    session = runtime.InferenceSession(str(written))
    expected = cp2_jax.load_segmenter(folder).predict(list(images()))
    for some in (expected, expected[:1]):
        labels, probabilities = session.run(["labels", "probabilities"], {"images": images()[: len(some)]})
        np.testing.assert_allclose(probabilities, [one.probabilities for one in some], atol=1e-4)
        assert (labels == [one.labels for one in some]).mean() > 0.999 and labels.dtype == np.uint8


def test_a_jax_that_jax2onnx_does_not_know_is_one_line(monkeypatch):
    def to_onnx(*_, **__):
        raise AttributeError("module 'jax._src.core' has no attribute 'ClosedJaxpr'")

    monkeypatch.setitem(sys.modules, "jax2onnx", types.SimpleNamespace(to_onnx=to_onnx))
    with pytest.raises(ConfigError, match=r'does not work with jax .*ClosedJaxpr.*pip install "cp2_jax\[onnx\]"'):
        exporting._onnx(lambda images: (images,), SIZE, ("labels",))


def test_what_cannot_be(tmp_path, capsys):
    folder = run(tmp_path / "run", "pretrain")
    with pytest.raises(ConfigError, match="layout=tflite: there are .*stablehlo, onnx"):
        cp2_jax.export_program(folder, "a", layout="tflite")
    with pytest.raises(ConfigError, match=r"a\.pth: layout=mmseg is no program.*`export` writes weights"):
        cp2_jax.export_program(folder, tmp_path / "a.pth")  # which would be a program under the name of weights
    with pytest.raises(ConfigError, match=r"a\.onnx: layout=stablehlo is written to \.stablehlo or \.bin, not to \.onnx"):
        cp2_jax.export(folder, tmp_path / "a.onnx", layout="stablehlo")
    assert not list(tmp_path.glob("a.*"))
    with pytest.raises(ConfigError, match=r"size=\(0, 3\): give height and width"):
        cp2_jax.export_program(folder, "a", size=(0, 3))
    with pytest.raises(ConfigError, match="size=48: give height and width"):
        cp2_jax.export_program(folder, "a", size=48)
    with pytest.raises(ConfigError, match="features=bakbone: must be one of stages, backbone"):
        cp2_jax.export_program(folder, "a", features="bakbone")
    vit = run(tmp_path / "vit", "pretrain", backbone="vit", vit={"width": 12, "depth": 1, "heads": 2}, head="fcn")
    with pytest.raises(ConfigError, match=r"size=\(30, 32\): image of 30 x 32 pixels: a ViT needs multiples of its patch"):
        cp2_jax.export_program(vit, "a", size=(30, 32))
    with pytest.raises(CheckpointError, match="has no classifier"):
        cp2_jax.export_program(folder, "a", features="logits")
    status, _, error = cp2(capsys, "export", folder, tmp_path / "a.tflite")
    assert status == 2 and "a.tflite: a layout tells what to write" in error
    status, _, error = cp2(capsys, "export", folder, tmp_path / "a.pth", "--size=3")
    assert status == 2 and "argument --size: invalid" in error
