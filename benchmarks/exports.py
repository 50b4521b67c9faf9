"""Models of full size as programs: exported at 512 x 512 pixels, run by processes that lack this project, and compared.

    python benchmarks/exports.py --workdir /tmp/exports --onnx-python ort/bin/python --jax-python jaxonly/bin/python

`--onnx-python` is a Python with onnxruntime, `--jax-python` one with jax and flatbuffers; both may be left out.
ResNet-50 + ASPP and ViT-S/16 + ASPP with random weights and disturbed running averages, in float32. What it prints is the
largest difference of a probability from `cp2_jax.load_segmenter(...).predict`, for a batch of two and of one.
"""

import argparse
import pathlib
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np

import cp2_jax
from cp2_jax import config_files
from cp2_jax.models import segmenter
from cp2_jax.runs import settings
from cp2_jax.runs.checkpoints import write_variables

SIZE = (512, 512)
MODELS = {"r50": "finetune_voc", "vit": "finetune_voc:vit"}
ONNX = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
call = lambda images: session.run(["labels", "probabilities"], {"images": images})
"""
STABLEHLO = """
import sys, pathlib, numpy, jax
call = jax.export.deserialize(pathlib.Path(sys.argv[1]).read_bytes()).call
"""
COMPARE = """
images, known = numpy.load(sys.argv[2]), numpy.load(sys.argv[3])
for count in (2, 1):
    labels, probabilities = map(numpy.asarray, call(images[:count]))
    worst = numpy.abs(probabilities - known["probabilities"][:count]).max()
    print(f"{sys.argv[1]}, batch {count}: worst {worst:.1e}, labels equal {(labels == known['labels'][:count]).mean():.6f}")
assert not any(name.startswith("cp2_jax") for name in sys.modules)
"""


def write_model(folder: pathlib.Path, name: str) -> None:
    """Write a finetuned model with random weights, as a run leaves it."""
    config = config_files.load(name)
    config.model.dtype, config.evaluation.resize = "float32", ()
    module = segmenter.build(config.model, top="classifier", image_size=config.image_size)
    variables = dict(jax.jit(lambda key: module.init(key, jnp.zeros((1, 224, 224, 3)), train=False))(jax.random.key(0)))
    rng = np.random.default_rng(1)

    def disturb(leaf):
        return leaf + rng.uniform(0, 0.3, leaf.shape).astype("f4") if leaf.ndim == 1 else leaf

    # Fresh from initialisation all shifts are zero, and so may be all that comes out.
    variables = {part: jax.tree.map(disturb, tree) for part, tree in variables.items()}
    write_variables(folder, variables, {"kind": "finetune", "config": settings.as_plain(config)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=lambda text: pathlib.Path(text).resolve(), required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--onnx-python", help="an interpreter that has onnxruntime")
    parser.add_argument("--jax-python", help="an interpreter that has jax and flatbuffers")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), dtype=np.uint8)
    np.save(options.workdir / "images.npy", images)
    ways = {"onnx": (options.onnx_python, ONNX), "stablehlo": (options.jax_python, STABLEHLO)}
    for name in options.models:
        model = options.workdir / name
        if not model.exists():
            write_model(model, MODELS[name])
        found = cp2_jax.load_segmenter(model).predict(list(images))
        spread = max(float(np.std(one.probabilities, axis=(0, 1)).max()) for one in found)
        print(f"{name}: the probabilities of a class spread by {spread:.3f} over an image", flush=True)
        if spread < 1e-3:
            raise SystemExit(f"{name} says the same of all pixels: nothing could be seen by comparing it")
        known = options.workdir / f"{name}.npz"
        np.savez(known, labels=[one.labels for one in found], probabilities=[one.probabilities for one in found])
        for layout, (python, code) in ways.items():
            if python:
                begin = time.time()
                program = cp2_jax.export_program(model, options.workdir / f"{name}.{layout}", layout=layout, size=SIZE)
                print(f"{program.name}: {program.stat().st_size / 1e6:.0f} MB in {time.time() - begin:.0f} s", flush=True)
                command = [python, "-c", code + COMPARE, program, options.workdir / "images.npy", known]
                subprocess.run(list(map(str, command)), check=True, cwd=options.workdir)


if __name__ == "__main__":
    main()
