"""Host input: samples per second per core, ours against the original's way, on the same images in one run.

    python benchmarks/input.py --images DIR [--rounds 5] [--samples N] [--workers_seconds 20] [--json input.json]

One core: each round times every path once, in turn and on the same samples; a path's figure is the least of its rounds'
CPU times (other programs on the machine only ever add time), the wall clock's is given too. The ratio is to the original's
way, Pillow with three decodes and four augmented views; its range is that of the single rounds. "prepared": the same
images re-encoded at shorter side 256. Workers: batches from `pretrain_dataset` with 1 and 2 worker processes, by the wall
clock: it means something on an idle machine only.
"""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import tempfile
import time
from unittest import mock

import numpy as np
import original_way
from absl import flags
from PIL import Image

from cp2_jax.data.images import crops, decoding, turbojpeg
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import pretrain_dataset

# What the code does where an optional library is not installed: Pillow resizes; the whole image is decoded.
OPTIONAL = {
    "cykooz.resizer": (crops, "cykooz_resizer", None),
    "turbojpeg": (turbojpeg, "open_jpeg", lambda *_: None),
}
LIBRARIES = ("pillow", "simplejpeg", "turbojpeg", "cykooz.resizer", "numpy", "grain")


def shorter_side(data: bytes, side: int = 256, quality: int = 90) -> bytes:
    """Re-encode an image at a bounded shorter side."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = side / min(image.size)
    if scale < 1:
        image = image.resize([round(scale * length) for length in image.size], Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def paths(images, prepared):
    """Return {name: function of a sample's number}."""
    count = len(images)

    def rng(i, stream):
        return crops.generator(0, i, stream, 0)

    def pick(i, stream):
        return (i * (1, 7, 11)[stream] + 131 * stream) % count

    def ours(files, i, views):
        for stream, number in enumerate(views):
            crops.random_crops(files[pick(i, stream)], "", rng(i, stream), 224, number)

    def lacking(names, views):
        """Return a path as it is where some of the optional libraries are not installed."""

        def sample(i):
            with contextlib.ExitStack() as stack:
                for name in names:
                    module, attribute, value = OPTIONAL[name]
                    stack.enter_context(mock.patch.object(module, attribute, value))
                ours(images, i, views)

        return sample

    views = {"independent": (2, 1, 1), "in_batch": (2,)}
    sets = (("cykooz.resizer",), ("turbojpeg",), ("cykooz.resizer", "turbojpeg"))
    without = {f"{path} without {' and '.join(s)}": lacking(s, views[path]) for path in views for s in sets}
    return {
        "whole decode alone, 1 image": lambda i: decoding.decode(images[pick(i, 0)], ""),
        "original's way": lambda i: original_way.sample(*(images[pick(i, s)] for s in range(3)), rng(i, 0)),
        "independent": lambda i: ours(images, i, (2, 1, 1)),
        "in_batch": lambda i: ours(images, i, (2,)),
        "independent, prepared": lambda i: ours(prepared, i, (2, 1, 1)),
        "in_batch, prepared": lambda i: ours(prepared, i, (2,)),
    } | without


def one_core(functions, rounds, samples):
    """Return {name: [(CPU seconds, wall seconds) of one sample, per round]}."""
    times = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            for i in range(samples):
                function(i)
            if index:  # the first round warms up
                times[name].append(((time.process_time() - cpu) / samples, (time.perf_counter() - wall) / samples))
    return times


def workers(folder, count, seconds):
    """Return samples per second of whole batches out of `count` worker processes, after they have started."""
    batches = pretrain_dataset(ImageFolder(folder), batch_size=32, image_size=224, seed=0, workers=count)
    for _ in range(2 * count + 2):  # what was read ahead while starting
        next(batches)
    begin, taken = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        taken += 32
    rate = taken / (time.perf_counter() - begin)
    batches.close()
    return rate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True, help="folder of JPEGs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, help="samples per path and round; default: as many as there are images")
    parser.add_argument("--workers_seconds", type=float, default=20, help="0: leave the workers out")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # Grain's workers read them
    source = ImageFolder(args.images)
    images = [source[i] for i in range(len(source))]
    prepared = [shorter_side(data) for data in images]
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "load": os.getloadavg()[0],
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES if _installed(name)},
        "partial_decode": turbojpeg.available(),
        "images": len(images),
        "mean_bytes": float(np.mean([len(data) for data in images])),
        "mean_bytes_prepared": float(np.mean([len(data) for data in prepared])),
        "paths": {},
    }
    times = one_core(paths(images, prepared), args.rounds, args.samples or len(images))
    original = np.array(times["original's way"])[:, 0]
    print(f"{'path':46s} {'per second (CPU)':>17s} {'(wall)':>8s} {'against original':>17s} {'range':>13s}")
    for name, pairs in times.items():
        cpu, wall = np.array(pairs).T
        ratios = original / cpu
        row = {"per_second_cpu": 1 / cpu.min(), "per_second_wall": 1 / wall.min(), "ratio": original.min() / cpu.min()}
        result["paths"][name] = row | {"ratios": ratios.tolist()}
        cells = f"{row['per_second_cpu']:17.0f} {row['per_second_wall']:8.0f} {row['ratio']:17.2f}"
        print(f"{name:46s} {cells} {ratios.min():6.2f}-{ratios.max():.2f}", flush=True)
    if args.workers_seconds:
        with tempfile.TemporaryDirectory() as folder:
            for i, data in enumerate(images):
                (pathlib.Path(folder) / f"{i}.jpg").write_bytes(data)
            rates = [workers(folder, count, args.workers_seconds) for count in (1, 2)]
        result["workers"] = {"1": rates[0], "2": rates[1], "ratio": rates[1] / rates[0]}
        print(f"worker processes, independent: 1: {rates[0]:.0f}/s, 2: {rates[1]:.0f}/s, ratio {rates[1] / rates[0]:.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


def _installed(name):
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    main()
