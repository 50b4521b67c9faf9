"""Models of full size as programs: exported at 512 x 512 pixels, run by processes that lack this project, and compared.

    python benchmarks/exports.py --workdir /tmp/exports --onnx-python ort/bin/python --jax-python jaxonly/bin/python

`--onnx-python` is a Python with onnxruntime, `--jax-python` one with jax and flatbuffers; both may be left out.
ResNet-50 + ASPP and ViT-S/16 + ASPP in float32, with weights such as a trained network has: running averages that are
those of the pictures, and logits of a few units that differ from pixel to pixel. The same network in float64, its
convolutions written as matrix products, is the judge. What is printed, for a batch of two and of one, is the largest
difference of a probability from `cp2_jax.load_segmenter(...).predict`, and of both from float64.

`--saturated` takes weights straight from initialisation, disturbed: logits of hundreds, probabilities of 0 and 1.
"""

import argparse
import pathlib
import subprocess
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

import cp2_jax
from cp2_jax import config_files
from cp2_jax.models import measured, segmenter
from cp2_jax.models.inputs import normalize
from cp2_jax.models.network import Network
from cp2_jax.runs import settings
from cp2_jax.runs.checkpoints import read_variables, write_variables
from cp2_jax.segmentation.predictor import WholeImages

SIZE = (512, 512)
MODELS = {"r50": "finetune_voc", "vit": "finetune_voc:vit"}
LOGITS = 2.0  # their standard deviation over classes and pixels
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
    ours, exact = (numpy.abs(probabilities - known[key][:count]).max() for key in ("probabilities", "exact"))
    equal = (labels == known["labels"][:count]).mean()
    print(f"{sys.argv[1]}, batch {count}: from predict {ours:.1e}, from float64 {exact:.1e}, labels equal {equal:.6f}")
assert not any(name.startswith("cp2_jax") for name in sys.modules)
"""


def pictures(seed: int, count: int) -> np.ndarray:
    """Pictures, uint8 [count, *SIZE, 3], that have something to see at every scale, as photographs do."""
    total = 0.0
    for number, side in enumerate((4, 8, 16, 32, 64, 128, 256, 512)):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(seed), number), (count, side, side, 3))
        total += jax.image.resize(noise, (count, *SIZE, 3), "bilinear") * (4 / side) ** 0.5
    return np.asarray(jnp.clip(jnp.round(128 + 50 * total), 0, 255).astype(jnp.uint8))


def write_model(folder: pathlib.Path, name: str, saturated: bool) -> None:
    """Write a finetuned model, as a run leaves it, with weights such as training gives, or with disturbed first ones."""
    config = config_files.load(name)
    config.model.dtype, config.evaluation.resize = "float32", ()
    module = segmenter.build(config.model, top="classifier", image_size=config.image_size)
    variables = dict(jax.jit(lambda key: module.init(key, jnp.zeros((1, 224, 224, 3)), train=False))(jax.random.key(0)))
    rng = np.random.default_rng(1)

    def disturb(leaf):
        return leaf + rng.uniform(0, 0.3, leaf.shape).astype("f4") if leaf.ndim == 1 else leaf

    # Fresh from initialisation all shifts are zero, and so may be all that comes out.
    variables = {part: jax.tree.map(disturb, tree) for part, tree in variables.items()}
    if not saturated:
        variables = settled(module, variables, normalize(pictures(1, 8), config.model.mean, config.model.std))
    write_variables(folder, variables, {"kind": "finetune", "config": settings.as_plain(config)})


def settled(module, variables: dict, images: jax.Array) -> dict:
    """Give running averages the statistics of some images, and the classifier such weights that logits spread by LOGITS."""
    before, keep = variables["batch_stats"], 0.9  # the share of the old averages that a step of training keeps
    options = {"train": True, "mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(2)}}
    _, after = jax.jit(lambda variables: module.apply(variables, images, **options))(variables)
    averages = jax.tree.map(lambda new, old: (new - keep * old) / (1 - keep), after["batch_stats"], before)
    variables = {"params": variables["params"], "batch_stats": averages}
    logits = jax.jit(lambda variables: module.apply(variables, images, train=False))(variables)
    mean = logits.mean((0, 1, 2))
    factor = LOGITS / (logits - mean).std()
    (name,) = variables["params"]["classifier"]
    top = variables["params"]["classifier"][name]
    top = {"kernel": top["kernel"] * factor, "bias": (top["bias"] - mean) * factor}
    return variables | {"params": variables["params"] | {"classifier": {name: top}}}


def in_float64(folder: pathlib.Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and probabilities of a model in float64."""
    forms = measured.Forms("shifted", "shifted", "shifted")  # XLA's convolutions of float64 are very slow on a CPU
    with jax.enable_x64(True), mock.patch.object(measured, "choose", lambda *_: forms):
        return _computed(folder, np.float64, images)


def in_float32(folder: pathlib.Path, images: np.ndarray) -> np.ndarray:
    """Return the logits of a model as `predict` computes them."""
    return _computed(folder, np.float32, images)[0]


def _computed(folder, dtype, images):
    variables, meta = read_variables(folder)
    network = Network.from_config(meta["config"]["model"] | {"dtype": np.dtype(dtype).name})
    module = segmenter.build(network, top="classifier", image_size=meta["config"]["image_size"])
    way = WholeImages(module, network.mean, network.std, network.multiple)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables)
    logits, probabilities = [], []
    for image in images[:, None] / np.asarray(255, dtype):
        logits.append(np.asarray(way.logits(variables, image))[0])
        probabilities.append(np.asarray(way.probabilities(variables, image, None, None, SIZE, False))[0])
    assert logits[0].dtype == dtype, f"computed in {logits[0].dtype}, not {dtype}"
    return np.stack(logits), np.stack(probabilities)


def known_of(model: pathlib.Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Say what `predict` and float64 find, print how they differ, and refuse a model whose comparison shows nothing."""
    found = cp2_jax.load_segmenter(model).predict(list(images))
    ours = np.stack([one.probabilities for one in found])
    logits, exact = in_float64(model, images)
    spread, sure, largest = exact.std((1, 2)).max(), (exact.max(-1) > 0.999).mean(), np.abs(logits).max()
    print(
        f"{model.name}: a class's probability spreads by {spread:.3f} over an image; {sure:.1%} of the pixels above 0.999"
    )
    if spread < 1e-3:
        raise SystemExit(f"{model.name} says the same of all pixels: nothing could be seen by comparing it")
    print(f"{model.name}: logits spread by {logits.std():.1f}, the largest is {largest:.1f}")
    apart = np.abs(in_float32(model, images) - logits).max()
    print(f"{model.name}: predict's logits are {apart / largest:.1e} of the largest from float64's, ", end="")
    print(f"its probabilities {np.abs(ours - exact).max():.1e}", flush=True)
    return {"labels": np.stack([one.labels for one in found]), "probabilities": ours, "exact": exact}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=lambda text: pathlib.Path(text).resolve(), required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--onnx-python", help="an interpreter that has onnxruntime")
    parser.add_argument("--jax-python", help="an interpreter that has jax and flatbuffers")
    parser.add_argument("--saturated", action="store_true", help="weights straight from initialisation")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)
    images = pictures(0, 2)
    np.save(options.workdir / "images.npy", images)
    ways = {"onnx": (options.onnx_python, ONNX), "stablehlo": (options.jax_python, STABLEHLO)}
    for name in options.models:
        model = options.workdir / (f"{name}_saturated" if options.saturated else name)
        if not model.exists():
            write_model(model, MODELS[name], options.saturated)
        known = options.workdir / f"{model.name}.npz"
        np.savez(known, **known_of(model, images))
        for layout, (python, code) in ways.items():
            if python:
                begin = time.time()
                program = cp2_jax.export_program(
                    model, options.workdir / f"{model.name}.{layout}", layout=layout, size=SIZE
                )
                print(f"{program.name}: {program.stat().st_size / 1e6:.0f} MB in {time.time() - begin:.0f} s", flush=True)
                command = [python, "-c", code + COMPARE, program, options.workdir / "images.npy", known]
                subprocess.run(list(map(str, command)), check=True, cwd=options.workdir)


if __name__ == "__main__":
    main()
