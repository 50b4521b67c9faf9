"""What re-encoding images at a bounded shorter side costs in fidelity and saves in bytes (prepare_data.py imagenet).

    python benchmarks/reencode.py --images DIR [--count 200] [--sides 256 320 400] [--qualities 90 95]

For each image a random-resized crop of 224x224 (area 0.2-1, as in pretraining) is taken from the original and from the
re-encoded one, with the same box in relative coordinates, both by Pillow's bilinear filter from float boxes, so that
rounding of the box plays no part. Prints PSNR (of the mean squared error over all crops), mean absolute difference in
levels of 255, and bytes; a table and a line of JSON.
"""

import argparse
import io
import json

import numpy as np
from PIL import Image

from cp2_jax.data.images import crops, decoding
from cp2_jax.data.images.sources import ImageFolder
from cp2_jax.data.prepare.imagenet import reencode


def crop(data, box):
    """Return the box, in shares of width and height, at 224x224."""
    image = Image.fromarray(decoding.decode(data, ""))
    scaled = [side * share for side, share in zip(image.size * 2, box, strict=True)]
    return np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR, box=scaled), np.float64)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 320, 400])
    parser.add_argument("--qualities", type=int, nargs="+", default=[90, 95])
    arguments = parser.parse_args()
    folder = ImageFolder(arguments.images)
    indices = np.linspace(0, len(folder) - 1, min(arguments.count, len(folder))).astype(int)
    rows = {(side, quality): [] for side in arguments.sides for quality in arguments.qualities}
    original_bytes = 0
    for number, index in enumerate(indices):
        data, rng = folder[int(index)], np.random.default_rng(number)
        original_bytes += len(data)
        width, height = Image.open(io.BytesIO(data)).size
        top, left, rows_, columns = crops.crop_box(height, width, rng, (0.2, 1.0), (3 / 4, 4 / 3))
        box = (left / width, top / height, (left + columns) / width, (top + rows_) / height)
        before = crop(data, box)
        for (side, quality), row in rows.items():
            smaller = reencode(data, "", side, quality)
            difference = crop(smaller, box) - before
            row.append((len(smaller), np.abs(difference).mean(), (difference**2).mean()))
    print(f"{len(indices)} images, {original_bytes / len(indices) / 1000:.1f} kB each")
    print(f"{'side':>5} {'quality':>8} {'kB':>7} {'PSNR dB':>8} {'mean |difference| of 255':>26}")
    result = []
    for (side, quality), row in rows.items():
        size, absolute, squared = np.mean(row, axis=0)
        psnr = 10 * np.log10(255**2 / squared)
        print(f"{side:5d} {quality:8d} {size / 1000:7.1f} {psnr:8.2f} {absolute:26.3f}")
        result.append({"side": side, "quality": quality, "kB": size / 1000, "psnr_db": psnr, "mean_abs": absolute})
    print(json.dumps({"images": len(indices), "original_kB": original_bytes / len(indices) / 1000, "rows": result}))


if __name__ == "__main__":
    main()
