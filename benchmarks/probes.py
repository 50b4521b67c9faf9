"""What the probes cost: time of one probe against the training steps between two, in the same process.

    python benchmarks/probes.py [--config configs/pretrain_demo.py] [--json FILE]

Images are random; both programs are compiled before anything is timed. Target: under 3 % of pretraining time.
"""

import argparse
import json
import pathlib
import runpy
import statistics
import time

import jax
import numpy as np

from cp2_jax.pretraining import hooks
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh


class Discard:
    """Stands for a writer."""

    def scalars(self, step, values):
        pass

    def text(self, message):
        pass


def seconds(call, repeats):
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/pretrain_demo.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    config = runpy.run_path(options.config)["get_config"]()
    rng, shapes = np.random.default_rng(0), pretrain_step.abstract_batch(config)

    def crops(n):
        return {k: rng.integers(0, 256, (n, *s.shape[1:]), np.uint8) for k, s in shapes.items()}

    device_mesh = mesh.make_mesh()
    start, step = pretrain_step.make_step(config, 1000, 100, device_mesh)
    hook = hooks.pretrain_probes(config, crops(config.probe_images), Discard(), device_mesh)
    batch, state = mesh.place_batch(device_mesh, crops(config.batch_size)), start()

    def train():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))

    train()
    hook(config.probe_every, state)
    one_step, one_probe = seconds(train, options.repeats), seconds(lambda: hook(config.probe_every, state), options.repeats)
    result = {
        "config": options.config,
        "device": jax.devices()[0].device_kind,
        "step_seconds": one_step,
        "probe_seconds": one_probe,
        "probe_images": config.probe_images,
        "probe_every": config.probe_every,
        "share": one_probe / (one_probe + config.probe_every * one_step),
    }
    pairs = f"{config.probe_images} pairs, every {config.probe_every}"
    print(f"step {one_step:.3f} s, probe {one_probe:.3f} s ({pairs}): {result['share']:.2%} of the time")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
