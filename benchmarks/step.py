"""One full-size pretraining step on composed images against the same step in plain PyTorch, in one run.

    python benchmarks/step.py --batch 8 --steps 5 --threads 2 [--dtype float32] [--no-torch]

Both get the same shapes, two warm-up steps, and the minimum of the timed ones is compared (other programs on the machine
only ever add time). Needs `pip install torch` for the peer. Prints a table and a line of JSON.
"""

import argparse
import json
import os
import platform
import time

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--batch", type=int, default=8)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--no-torch", action="store_true")
args = parser.parse_args()
os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={args.threads}")

import sys  # noqa: E402

sys.path.insert(0, os.path.join(os.path.dirname(__file__), ".."))

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs import pretrain_r50_aspp  # noqa: E402
from cp2_jax import optim, pretrain  # noqa: E402
from cp2_jax.augment.compose import Pair  # noqa: E402


def inputs(batch):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, batch, 224, 224, 3)).astype(np.float32)
    masks = np.zeros((2, batch, 224, 224), np.float32)
    masks[:, :, 20:200, 20:200] = 1
    return images, masks


def timed(step, steps):
    """Seconds of each of `steps` calls after two that warm up."""
    times = []
    for index in range(steps + 2):
        begin = time.perf_counter()
        step()
        if index >= 2:
            times.append(time.perf_counter() - begin)
    return times


def time_ours():
    config = pretrain_r50_aspp.get_config()
    config.batch_size, config.bn_groups, config.key_shuffle = args.batch, 1, "none"
    config.model.dtype = args.dtype
    schedule = optim.schedule(config.optimizer, 1000, 100)
    optimizer = optim.make(config.optimizer, schedule)
    update = jax.jit(pretrain.make_update(config, optimizer, schedule), donate_argnums=0)
    images, masks = jax.device_put(inputs(args.batch))
    pair = Pair(image_query=images[0], image_key=images[1], mask_query=masks[0], mask_key=masks[1])
    state = jax.jit(lambda: pretrain.init_state(config, optimizer))()

    def step():
        nonlocal state
        state, metrics = update(state, pair)
        jax.block_until_ready((state, metrics))

    return timed(step, args.steps)


def time_torch():
    import torch
    import torch_peer

    torch.set_num_threads(args.threads)
    images, masks = inputs(args.batch)
    batch = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in images] + [torch.from_numpy(x) for x in masks]
    step = torch_peer.make_step()
    return timed(lambda: step(*batch).item(), args.steps)


def main():
    result = {
        "batch": args.batch,
        "dtype": args.dtype,
        "threads": args.threads,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "cp2_jax_seconds": min(time_ours()),
    }
    if not args.no_torch:
        import torch

        result["torch"] = torch.__version__
        result["torch_seconds"] = min(time_torch())
        result["ratio"] = result["torch_seconds"] / result["cp2_jax_seconds"]
    for name, value in result.items():
        print(f"{name:20s} {value:.3f}" if isinstance(value, float) else f"{name:20s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
