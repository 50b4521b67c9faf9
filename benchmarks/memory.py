"""Does a pretraining process's memory grow? Runs scripts/pretrain.py and fits a line through its host memory.

    python benchmarks/memory.py [--steps 5000] [--images DIR] [-- --config.batch_size=8 ...]

A small model, checkpoints and pictures included, so that what is kept by mistake shows up. The line goes through the
second half of the run, when caches are full, cut into 20 pieces: each counts with its median, for saves and pictures
take memory for a while. Growth is a slope above three standard errors and 1 MiB per 1000 steps; status 1 then.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

from cp2_jax.runs.writers import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
SMALL = {
    "data.source": "folder",
    "image_size": 32,
    "batch_size": 16,
    "loss.queue_size": 256,
    "log_every": 5,
    "picture_every": 1000,
    "model.resnet.width": 8,
    "model.resnet.stem_width": 8,
    "model.aspp.channels": 8,
    "model.resnet.stage_sizes": "(1, 1, 1, 1)",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--save_every", type=int, default=500)
    parser.add_argument("--images", help="folder of images; default: 200 made at random")
    parser.add_argument("overrides", nargs="*", help="further --config.key=value, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.images or make_images(pathlib.Path(folder) / "images")
        settings = SMALL | {"data.path": images, "steps": arguments.steps, "save_every": arguments.save_every}
        command = [
            sys.executable,
            "scripts/pretrain.py",
            "--config=configs/pretrain_demo.py",
            f"--workdir={folder}/run",
            *(f"--config.{key}={value}" for key, value in settings.items()),
            *arguments.overrides,
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        lines = read_metrics(pathlib.Path(folder) / "run" / "metrics.jsonl")
    lines = [line for line in lines if "host/memory_mb" in line]  # not the probes'
    steps = np.array([line["step"] for line in lines])
    memory = np.array([line["host/memory_mb"] for line in lines])
    pieces = np.array_split(np.arange(len(steps) // 2, len(steps)), 20)
    slope, error = fit_line(np.array([steps[p].mean() for p in pieces]), np.array([np.median(memory[p]) for p in pieces]))
    print(f"{steps[-1]} steps, {len(lines)} samples of the process's resident memory (decoding processes not counted)")
    for share in (0.05, 0.25, 0.5, 0.75, 1.0):
        index = max(0, int(share * len(steps)) - 1)
        print(f"  after step {steps[index]:6d}: {memory[index]:8.1f} MiB")
    print(f"peak {lines[-1]['host/peak_memory_mb']:.1f} MiB")
    print(f"slope over the second half: {1000 * slope:+.2f} ± {1000 * error:.2f} MiB per 1000 steps")
    limit = max(3 * error, 1e-3)
    grows = slope > limit
    print("it grows" if grows else f"no growth that could be seen (from {1000 * limit:.1f} MiB per 1000 steps on)")
    return int(grows)


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the least-squares slope of y over x and its standard error."""
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), float(covariance[0, 0] ** 0.5)


def make_images(folder: pathlib.Path) -> pathlib.Path:
    """Write 200 JPEGs of noise, of many sizes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(200):
        height, width = rng.integers(40, 200, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{number:03d}.jpg")
    return folder


if __name__ == "__main__":
    sys.exit(main())
