"""From real images to trained steps: samples per second, and the share of the time that the step waits for input.

    python benchmarks/end_to_end.py [--images DIR] [--backgrounds in_batch] [--workers 2] [--full --batch 256] [--json FILE]

The pipeline of scripts/pretrain.py (decode, crop, place, augment, step), after a warm-up; then the
step alone on one placed batch, for comparison: what the whole loses against that is the price of the input.
Without --full it is a small model, which a CPU can train. Without --images, 400 JPEGs of 500 x 375 pixels are made, of
about the size of ImageNet's (110 kB). Cores needed: the step's own rate over what one core decodes and crops in the same
run, for either kind of backgrounds. Prints a table and JSON.
"""

import io
import os
import pathlib
import tempfile
import time

import jax
import numpy as np
import timing
from absl import flags
from PIL import Image

from cp2_jax.configs import pretrain_r50_aspp
from cp2_jax.data.images import crops
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import Batches, pretrain_dataset
from cp2_jax.pretraining import options
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh

WARM_UP = 3


def make_config(args):
    config = pretrain_r50_aspp.get_config()
    config.update(batch_size=args.batch, bn_groups=4, key_shuffle="strided", image_size=args.image_size)
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


def make_images(folder, count=400):
    """Write JPEGs of smooth areas and fine noise."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        pixels = np.asarray(coarse, np.float32) + rng.normal(0, 11, (375, 500, 1))
        file = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        (pathlib.Path(folder) / f"{number:04d}.jpg").write_bytes(file.getvalue())
    return str(folder)


def decoded_by_a_core(source, image_size, samples):
    """Return samples per second of CPU time, by kind of backgrounds."""
    files, rates = [source[i] for i in range(min(len(source), samples))], {}
    for kind, views in (("in_batch", (2,)), ("independent", (2, 1, 1))):
        begin = time.process_time()
        for i in range(samples):
            for stream, number in enumerate(views):
                data = files[(i * (1, 7, 11)[stream]) % len(files)]
                crops.random_crops(data, "", crops.generator(0, i, stream, 0), image_size, number)
        rates[kind] = samples / (time.process_time() - begin)
    return rates


def parse(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--images", default="")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0, help="decoding processes; 0: threads; -1: one a core")
    parser.add_argument("--backgrounds", default="independent", choices=("independent", "in_batch"))
    parser.add_argument("--full", dest="small", action="store_false", help="the full-size model, bfloat16")
    args = parser.parse_args(arguments)
    args.image_size = 64 if args.tiny else args.image_size
    args.small, args.workers = args.small or args.tiny, os.cpu_count() if args.workers < 0 else args.workers
    return args


def train(args, config, source):
    """Return seconds of a step with its input, seconds of waiting therein, and seconds of a step alone."""
    device_mesh = mesh.make_mesh()
    initial_state, step = pretrain_step.make_step(config, 1000, 100, device_mesh)
    options = dict(backgrounds=args.backgrounds, workers=args.workers)
    dataset = pretrain_dataset(source, batch_size=args.batch, image_size=config.image_size, seed=0, **options)
    batches = Batches(dataset, source, place=lambda b: mesh.place_batch(device_mesh, b))
    state, waits = initial_state(), []

    def once():
        nonlocal state
        before = batches.wait_seconds
        batch = next(batches)
        waits.append(batches.wait_seconds - before)
        state, metrics = step(state, batch)
        return metrics

    whole = timed(args.steps, once)
    waited = sum(waits[WARM_UP:]) / args.steps
    batch = next(batches)
    batches.close()

    def repeat():
        nonlocal state
        state, metrics = step(state, batch)
        return metrics

    return whole, waited, timed(args.steps, repeat)


def main(arguments=None):
    args = parse(arguments)
    flags.FLAGS.mark_as_parsed()
    with tempfile.TemporaryDirectory() as folder:
        args.images = args.images or make_images(folder, 16 if args.tiny else 400)
        timing.take_card()
        config, source = make_config(args), ImageFolder(args.images)
        rates = decoded_by_a_core(source, config.image_size, 8 if args.tiny else 200)
        whole, waited, alone = train(args, config, source)
    result = {
        **timing.machine(),
        "model": "small" if args.small else "ResNet-50 + ASPP",
        "batch": args.batch,
        "image_size": args.image_size,
        "backgrounds": args.backgrounds,
        "workers": args.workers,
        "samples_per_second": args.batch / whole,
        "input_wait_share": waited / whole,
        "step_seconds": alone,
        "samples_per_second_without_input": args.batch / alone,
        **{f"one_core_{kind}_per_second": rate for kind, rate in rates.items()},
        **{f"cores_needed_{kind}": args.batch / alone / rate for kind, rate in rates.items()},
    }
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
