"""From real images to trained steps: samples per second, and the share of the time that the step waits for input.

    python benchmarks/end_to_end.py --images DIR [--backgrounds in_batch] [--workers 2] [--full --batch 256]

The pipeline of scripts/pretrain.py (decode, crop, place, augment, step), after a warm-up; then the
step alone on one placed batch, for comparison: what the whole loses against that is the price of the input.
Without --full it is a small model, which a CPU can train. Prints a table and JSON.
"""

import argparse
import json
import os
import platform
import time

import jax
from absl import flags

from cp2_jax.configs import pretrain_r50_aspp
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import Batches, pretrain_dataset
from cp2_jax.pretraining import options
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh

WARM_UP = 3


def make_config(args):
    config = pretrain_r50_aspp.get_config()
    config.update(batch_size=args.batch, bn_groups=1, image_size=args.image_size)
    config.data.update(path=args.images, backgrounds=args.backgrounds, workers=args.workers)
    config.loss.queue_size = 64 * args.batch
    if args.small:
        config.model.resnet.update(width=8, stem_width=8, stage_sizes=(1, 1, 1, 1))
        config.model.aspp.channels = 32
        config.model.dtype = "float32"
    options.check(config, jax.device_count())
    return config


def timed(steps, once):
    """Return seconds per call of `once`, after those that warm up; each call returns what to wait for."""
    for _ in range(WARM_UP):
        last = once()
    jax.block_until_ready(last)
    begin = time.perf_counter()
    for _ in range(steps):
        last = once()
    jax.block_until_ready(last)
    return (time.perf_counter() - begin) / steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes; 0: threads")
    parser.add_argument("--backgrounds", default="independent", choices=("independent", "in_batch"))
    parser.add_argument("--full", dest="small", action="store_false", help="the full-size model, bfloat16")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    config, device_mesh, source = make_config(args), mesh.make_mesh(), ImageFolder(args.images)
    initial_state, step = pretrain_step.make_step(config, 1000, 100, device_mesh)
    dataset = pretrain_dataset(
        source,
        batch_size=args.batch,
        image_size=config.image_size,
        seed=0,
        backgrounds=args.backgrounds,
        workers=args.workers,
    )
    batches = Batches(dataset, source, place=lambda b: mesh.place_batch(device_mesh, b))
    state, waits = initial_state(), []

    def train():
        nonlocal state
        before = batches.wait_seconds
        batch = next(batches)
        waits.append(batches.wait_seconds - before)
        state, metrics = step(state, batch)
        return metrics

    whole = timed(args.steps, train)
    waited = sum(waits[WARM_UP:]) / args.steps
    batch = next(batches)
    batches.close()

    def repeat():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    alone = timed(args.steps, repeat)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}, "
        f"load {os.getloadavg()[0]:.1f}",
        "jax": jax.__version__,
        "model": "small" if args.small else "ResNet-50 + ASPP",
        "batch": args.batch,
        "image_size": args.image_size,
        "backgrounds": args.backgrounds,
        "workers": args.workers,
        "samples_per_second": args.batch / whole,
        "input_wait_share": waited / whole,
        "samples_per_second_without_input": args.batch / alone,
    }
    for name, value in result.items():
        print(f"{name:34s} {value:.3f}" if isinstance(value, float) else f"{name:34s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
