"""Does decoding's memory grow? Batches of crops from two worker processes; a line through the memory of all processes.

    python benchmarks/decoding_memory.py --images DIR [--batches 3000] [--batch 256] [--backgrounds in_batch]

The line goes through the second half of the run, as in memory.py; status 1 if it grows.
"""

import argparse
import sys
import time

import numpy as np
import psutil
from absl import flags
from memory import fit_line

from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.images.stream import pretrain_dataset


def resident():
    """Return the MiB that this process and its children hold for themselves."""
    this = psutil.Process()
    return sum(p.memory_full_info().uss for p in (this, *this.children(recursive=True))) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--batches", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backgrounds", default="independent", choices=("independent", "in_batch"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end early after this time")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()
    batches = pretrain_dataset(
        ImageFolder(args.images),
        batch_size=args.batch,
        image_size=224,
        seed=0,
        workers=args.workers,
        backgrounds=args.backgrounds,
    )
    begin, memory = time.perf_counter(), []
    while len(memory) < args.batches and time.perf_counter() - begin < args.seconds:
        next(batches)
        memory.append(resident())
    elapsed = time.perf_counter() - begin
    batches.close()
    pieces = np.array_split(np.arange(len(memory) // 2, len(memory)), 20)
    memory = np.array(memory)
    slope, error = fit_line(np.array([p.mean() for p in pieces]), np.array([np.median(memory[p]) for p in pieces]))
    images = len(memory) * args.batch * (3 if args.backgrounds == "independent" else 1)
    print(f"{len(memory)} batches of {args.batch}, {images} images decoded in {elapsed:.0f} s by {args.workers} workers")
    for share in (0.05, 0.25, 0.5, 0.75, 1.0):
        index = max(0, int(share * len(memory)) - 1)
        print(f"  after batch {index + 1:6d}: {memory[index]:8.1f} MiB")
    print(f"slope over the second half: {1000 * slope:+.2f} ± {1000 * error:.2f} MiB per 1000 batches")
    return int(slope > max(3 * error, 1e-3))


if __name__ == "__main__":
    sys.exit(main())
