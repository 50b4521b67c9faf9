"""Training samples of finetuning (512x512 crops of VOC-sized images) per second and core, against OpenCV alone.

    python benchmarks/finetune_input.py [--samples 40] [--rounds 5] [--path VOCdevkit/VOC2012]

The peer does the same steps with OpenCV and NumPy as MMSegmentation 0.x writes them: decode image and mask, resize to
(2048, 512) times 0.5-2, crop with the 0.75 limit, flip, photometric distortion, pad. Both run in one thread, by turns, with
the same draws; the best round of each is compared. Without --path, images of 500x375 are made: smooth shapes with a JPEG's
usual size. Prints a table and a line of JSON.
"""

import argparse
import json
import os
import pathlib
import platform
import tempfile
import time

import cv2
import numpy as np

from cp2_jax.configs import finetune_voc
from cp2_jax.data.labelled import transforms
from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.data.labelled.stream import training_options


def make_images(root: pathlib.Path, count: int) -> pathlib.Path:
    """Write VOC-like images (about 100 kB each) and grey masks, of which OpenCV can read the indices."""
    for folder in ("JPEGImages", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        image = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
        mask = np.zeros((375, 500), np.uint8)
        for label in rng.integers(1, 21, 3):
            center = (int(rng.integers(50, 450)), int(rng.integers(50, 325)))
            cv2.circle(mask, center, int(rng.integers(40, 140)), int(label), -1)
            cv2.circle(mask, center, 40, 255, 4)
        cv2.imwrite(str(root / f"JPEGImages/{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        cv2.imwrite(str(root / f"SegmentationClassAug/{number}.png"), mask)
    names = "".join(f"{number}\n" for number in range(count))
    (root / "ImageSets/Segmentation/train_aug.txt").write_text(names)
    return root


def peer_linear(image, alpha=1.0, beta=0.0):
    return np.clip(image.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def peer_distort(image, rng):
    if rng.random() < 0.5:
        image = peer_linear(image, beta=rng.uniform(-32, 32))
    early = rng.random() < 0.5
    if early and rng.random() < 0.5:
        image = peer_linear(image, alpha=rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = peer_linear(hsv[..., 1], alpha=rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + int(rng.integers(-18, 18))) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if not early and rng.random() < 0.5:
        image = peer_linear(image, alpha=rng.uniform(0.5, 1.5))
    return image


def peer_sample(image_file, mask_file, rng, crop=512):
    image = cv2.imread(str(image_file), cv2.IMREAD_COLOR)
    mask = cv2.imread(str(mask_file), cv2.IMREAD_UNCHANGED)
    ratio = rng.uniform(0.5, 2.0)
    size = transforms.rescaled_size(mask.shape, (int(2048 * ratio), int(512 * ratio)))
    image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)

    def draw():
        top, left = (int(rng.integers(0, max(side - crop, 0) + 1)) for side in mask.shape)
        return slice(top, top + crop), slice(left, left + crop)

    window = draw()
    for _ in range(10):
        labels, counts = np.unique(mask[window], return_counts=True)
        counts = counts[labels != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < 0.75:
            break
        window = draw()
    image, mask = image[window], mask[window]
    if rng.random() < 0.5:
        image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
    image = peer_distort(image, rng)
    below, right = crop - mask.shape[0], crop - mask.shape[1]
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
    return image, cv2.copyMakeBorder(mask, 0, below, 0, right, cv2.BORDER_CONSTANT, value=255)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--path", help="VOC2012 with SegmentationClassAug as grey PNGs")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = finetune_voc.get_config().data
        data.path = arguments.path or str(make_images(pathlib.Path(folder) / "voc", 20))
        examples = open_examples(data, data.split)
        options = training_options(data)

        def ours():
            for number in range(arguments.samples):
                rng = np.random.default_rng([0, 1, number])
                transforms.training_sample(*examples.load(number % len(examples)), rng, **options)

        def peer():
            for number in range(arguments.samples):
                peer_sample(*examples.places(number % len(examples)), np.random.default_rng([0, 1, number]))

        seconds = {"cp2_jax": [], "opencv": []}
        for _ in range(arguments.rounds):
            for name, run in (("cp2_jax", ours), ("opencv", peer)):
                begin = time.process_time()  # of one thread, whatever else the machine does
                run()
                seconds[name].append(time.process_time() - begin)
    rates = {name: arguments.samples / min(times) for name, times in seconds.items()}
    result = {f"{name}_samples_per_second_per_core": rate for name, rate in rates.items()}
    result |= {"ratio": rates["cp2_jax"] / rates["opencv"], "samples": arguments.samples, "rounds": arguments.rounds}
    result |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "opencv": cv2.__version__}
    for name, value in result.items():
        print(f"{name:40s} {value:.3f}" if isinstance(value, float) else f"{name:40s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
