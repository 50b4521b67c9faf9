"""What a run reads and computes, on a mesh whose devices are in any order; alone or as one process of several.

python tests/helpers/permuted.py DATA OUT PORT COUNT INDEX, where DATA is a data set of `halves`; for test_mesh.py.
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parents[2])]

import jax
import numpy as np

from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.runs import distributed, mesh
from cp2_jax.segmentation import step as finetune_step
from cp2_jax.segmentation.evaluation import Evaluator
from helpers import toy_backbone
from helpers.halves import folder_config

BATCH, STEPS = 8, 2


def small_config(data, **changes):
    """Return `folder_config` of the toy network, with batch norm and image pooling in its head."""
    config = folder_config(data, **changes)
    toy_backbone.choose(config.model)
    config.model.head = "aspp"
    return config


def everywhere(device_mesh, tree):
    """Return global arrays whole, on the host."""
    return jax.tree.map(np.asarray, mesh.local_copy(device_mesh, tree))


def inputs(data, device_mesh):
    """Return what the devices together hold of the first batches of pretraining, leaf by leaf."""
    rows = mesh.local_rows(device_mesh, BATCH)
    source = ImageFolder(pathlib.Path(data) / "images/train")
    stream = pretrain_dataset(source, batch_size=BATCH, image_size=8, seed=1, rows=rows, threads=2)
    batches = [mesh.place_batch(device_mesh, next(stream)) for _ in range(STEPS)]
    return {f"pretraining {n} {k}": v for n, b in enumerate(batches) for k, v in everywhere(device_mesh, b).items()}


def finetune(data, device_mesh):
    """Return the first batches of a finetuning, their losses, and the variables that come out."""
    config = small_config(data, batch_size=BATCH)
    examples = open_examples(config.data, "train")
    rows = mesh.local_rows(device_mesh, BATCH)
    options = training_options(config.data)
    stream = iter(training_dataset(examples, batch_size=BATCH, seed=1, options=options, rows=rows))
    initial_state, step = finetune_step.make_step(config, STEPS, STEPS, device_mesh)
    state, found = initial_state(variables_of(config)), {}
    for number in range(STEPS):
        batch = mesh.place_batch(device_mesh, next(stream))
        found |= {f"finetuning {number} {k}": v for k, v in everywhere(device_mesh, batch).items()}
        state, metrics = step(state, batch)
        found[f"loss {number}"] = np.float32(metrics.compute()["loss"])
    return found


def evaluate(data, out, device_mesh, variables):
    """Write scores, pictures and class maps into `out`, and return the numbers."""
    config = small_config(data)
    config.evaluation.update(batch_size=4, programs=1)
    evaluator = Evaluator(config, device_mesh)
    variables = jax.device_put(variables, mesh.replicated(device_mesh))
    result = evaluator(variables, pathlib.Path(out) / "predictions")
    evaluator.save(out, result, variables, {})
    return {"matrix": result.matrix, "scores per image": result.image_miou}


def variables_of(config):
    """Return variables drawn by NumPy: random kernels, batch norms that change nothing. (JAX would compile for long.)"""
    rng = np.random.default_rng(0)

    def draw(path, like):
        name = path[-1].key
        if name in ("scale", "var"):
            return np.ones(like.shape, np.float32)
        if name in ("bias", "mean"):
            return np.zeros(like.shape, np.float32)
        return (rng.normal(size=like.shape) / np.sqrt(np.prod(like.shape[:-1]))).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda: finetune_step.init_variables(config)))


def work(data, out, device_mesh):
    """Do all of the above and write `out`/numbers.npz (the first process alone)."""
    out = pathlib.Path(out)
    numbers = inputs(data, device_mesh) | finetune(data, device_mesh)
    numbers |= evaluate(data, out, device_mesh, variables_of(small_config(data)))
    if jax.process_index() == 0:
        np.savez(out / "numbers.npz", **numbers)


def main(data, out, port, count, index):
    BACKBONES["toy"] = toy_backbone.BACKBONE
    distributed.initialize(f"localhost:{port}", int(count), int(index))
    devices = jax.devices()
    orders = {"0101": [0, 2, 1, 3], "0110": [0, 2, 3, 1], "1001": [3, 0, 1, 2]}
    for name, order in orders.items():
        device_mesh = mesh.make_mesh([devices[number] for number in order])
        assert "".join(str(device.process_index) for device in device_mesh.devices.flat) == name
        if name == "0101":
            work(data, pathlib.Path(out) / name, device_mesh)
            continue
        numbers = inputs(data, device_mesh)
        if jax.process_index() == 0:
            (pathlib.Path(out) / name).mkdir(parents=True)
            np.savez(pathlib.Path(out) / name / "numbers.npz", **numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
