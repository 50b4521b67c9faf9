"""Evaluation of a labelled split against the same network in PyTorch, in one run; the share of time outside the network.

    python benchmarks/evaluation.py --path /data/camvid [--images 20] [--scale 240 180] [--threads 2] [--no-torch]

ResNet-50 + ASPP with random weights, whole images one at a time, float32. Both decode, resize, run, upsample, take the
argmax and count a confusion matrix; PyTorch's peer has its input read by a thread ahead. The network alone is timed on
inputs that lie on the device. Needs `pip install torch` for the peer. Prints a table and a line of JSON.
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor

import cv2
import jax
import numpy as np

from cp2_jax.configs import finetune_camvid
from cp2_jax.data.labelled import transforms
from cp2_jax.runs import mesh
from cp2_jax.segmentation import evaluation
from cp2_jax.segmentation import step as finetune_step

CLASSES = len(finetune_camvid.CLASSES)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--path", required=True, help="CamVid, see configs/finetune_camvid.py")
    parser.add_argument("--images", type=int, default=0, help="of the validation split; 0: all")
    parser.add_argument("--scale", type=int, nargs=2, default=(480, 360), help="long and short edge of the images")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-torch", action="store_true")
    args = parser.parse_args()
    # Before JAX is first used.
    os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={args.threads}")
    return args


def make_evaluator(args):
    config = finetune_camvid.get_config()
    config.data.path, config.model.dtype = args.path, "float32"
    config.evaluation.update(resize=tuple(args.scale), batch_size=1, limit=float(args.images))
    return config, evaluation.Evaluator(config, mesh.make_mesh(jax.devices()[:1]))


def time_ours(config, evaluator):
    """Return seconds of a whole evaluation, and of the network alone on as many images, both compiled before."""
    variables = jax.device_put(finetune_step.init_variables(config))
    evaluator(variables)
    result = evaluator(variables)
    batch = result.batches[0]
    inputs = jax.device_put(evaluator.predictor.inputs([evaluator.examples.load(0)[0]], batch))
    begin = time.perf_counter()
    for _ in range(len(evaluator.examples)):
        jax.block_until_ready(evaluator.predictor.predict(variables, inputs, batch))
    return result.seconds, time.perf_counter() - begin


def time_torch(evaluator, args):
    """Return seconds of the peer's evaluation."""
    import torch
    import torch.nn.functional as F
    import torch_networks

    torch.set_num_threads(args.threads)
    head = torch_networks.Aspp()
    head.project = torch.nn.Conv2d(512, CLASSES, 1)
    network = torch.nn.Sequential(torch_networks.resnet50(), head).eval().to(memory_format=torch.channels_last)
    mean, std = np.array((0.485, 0.456, 0.406), np.float32) * 255, np.array((0.229, 0.224, 0.225), np.float32) * 255

    def load(index):
        image, label = evaluator.examples.load(index)
        size = transforms.rescaled_size(image.shape[:2], tuple(args.scale))
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        image = torch.from_numpy(((image - mean) / std).transpose(2, 0, 1)[None].copy())
        return image.to(memory_format=torch.channels_last), torch.from_numpy(label)

    matrix = torch.zeros(CLASSES, CLASSES, dtype=torch.int64)

    def one(image, label):
        logits = F.interpolate(network(image), image.shape[2:], mode="bilinear", align_corners=False)
        logits = F.interpolate(logits, label.shape, mode="bilinear", align_corners=False)
        predicted = logits.softmax(1).argmax(1)[0]
        counted = label < CLASSES
        cell = label[counted].long() * CLASSES + predicted[counted]
        matrix.add_(torch.bincount(cell, minlength=CLASSES**2).view(CLASSES, CLASSES))

    with torch.inference_mode(), ThreadPoolExecutor(1) as pool:
        one(*load(0))
        begin = time.perf_counter()
        pending = pool.submit(load, 0)
        for index in range(len(evaluator.examples)):
            image, label = pending.result()
            pending = pool.submit(load, min(index + 1, len(evaluator.examples) - 1))
            one(image, label)
        return time.perf_counter() - begin


def main():
    args = parse()
    config, evaluator = make_evaluator(args)
    seconds, network = time_ours(config, evaluator)
    images = len(evaluator.examples)
    result = {
        "images": images,
        "scale": list(args.scale),
        "threads": args.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "cp2_jax_images_per_second": images / seconds,
        "network_alone_images_per_second": images / network,
        "share_outside_network": max(0.0, 1 - network / seconds),
    }
    if not args.no_torch:
        import torch

        result |= {"torch": torch.__version__, "torch_images_per_second": images / time_torch(evaluator, args)}
        result["ratio"] = result["cp2_jax_images_per_second"] / result["torch_images_per_second"]
    for name, value in result.items():
        print(f"{name:32s} {value:.3f}" if isinstance(value, float) else f"{name:32s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
