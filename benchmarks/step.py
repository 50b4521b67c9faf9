"""One full-size pretraining step on composed images against the same step in plain PyTorch, in one run.

    python benchmarks/step.py --batch 8 --steps 5 --threads 2 --peers original,channels_last       # CPU, float32
    python benchmarks/step.py --batch 256 --dtype bfloat16 --device cuda --peers best,original     # one GPU
    python benchmarks/step.py --model vit_aspp --batch 256 --dtype bfloat16 --device cuda --peers best

Both get the same shapes and warm-up steps, and the least of the timed ones is compared (other programs on the machine
only ever add time). Share of peak: the dense count (multiplications with padding included), and XLA's own of the compiled
program, over the rate of a large matrix product measured in the same run. `--peers` needs PyTorch; the variants are in
torch_peer.py. Prints a table and a line of JSON.
"""

import argparse
import json
import os
import pathlib
import platform
import time

import counting
import jax
import jax.numpy as jnp
import numpy as np

from cp2_jax.augment.compose import Pair
from cp2_jax.configs import pretrain_r50_aspp, pretrain_vit_aspp
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import optim

CONFIGS = {"r50_aspp": pretrain_r50_aspp, "vit_aspp": pretrain_vit_aspp}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=("r50_aspp", "vit_aspp"), default="r50_aspp")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=3, help="untimed steps")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu", help="PyTorch's: cpu or cuda; JAX takes what it finds")
    parser.add_argument("--peers", default="", help="PyTorch variants, comma-separated: original, channels_last, best")
    parser.add_argument("--json", type=pathlib.Path, help="file to write")
    args = parser.parse_args()
    if args.device == "cpu":  # before JAX is first used
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
        os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={args.threads}")
    return args


def inputs(batch):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, batch, 224, 224, 3)).astype(np.float32)
    masks = np.zeros((2, batch, 224, 224), np.float32)
    masks[:, :, 20:200, 20:200] = 1
    return images, masks


def timed(step, steps, warm_up):
    """Return the least seconds of `steps` calls after those that warm up."""
    times = []
    for _ in range(steps + warm_up):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return min(times[warm_up:])


def matmul_rate(dtype, size, warm_up):
    """Return the rate of a square matrix product, in operations per second."""
    product = jax.jit(lambda x: x @ x)
    x = jnp.ones((size, size), dtype)
    return 2 * size**3 / timed(lambda: jax.block_until_ready(product(x)), 10, warm_up)


def time_ours(config, args):
    """Return seconds of a step, and what the compiled program says of itself."""
    schedule = optim.schedule(config.optimizer, 1000, 100)
    optimizer = optim.make(config.optimizer, schedule)
    update = jax.jit(pretrain_step.make_update(config, optimizer, schedule), donate_argnums=0)
    images, masks = jax.device_put(inputs(args.batch))
    pair = Pair(image_query=images[0], image_key=images[1], mask_query=masks[0], mask_key=masks[1])
    state = jax.jit(lambda: pretrain_step.init_state(config, optimizer))()
    begin = time.perf_counter()
    program = update.lower(state, pair).compile()
    compiling = time.perf_counter() - begin
    cost, memory = program.cost_analysis() or {}, program.memory_analysis()

    def step():
        nonlocal state
        state, metrics = program(state, pair)
        jax.block_until_ready((state, metrics))

    return {
        "seconds": timed(step, args.steps, args.warm_up),
        "compile_seconds": compiling,
        "xla_gflop_per_sample": cost.get("flops", float("nan")) / args.batch / 1e9,
        "xla_mb_accessed_per_sample": cost.get("bytes accessed", float("nan")) / args.batch / 1e6,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
    }


def time_torch(variant, args):
    import torch
    import torch_peer

    torch.set_num_threads(args.threads)
    images, masks = inputs(args.batch)
    batch = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in images] + [torch.from_numpy(x) for x in masks]
    batch = [x.to(args.device) for x in batch]
    step = torch_peer.make_step(args.model, args.device, **torch_peer.VARIANTS[variant])
    return timed(lambda: step(*batch).item(), args.steps, args.warm_up)


def main():
    args = parse()
    config = CONFIGS[args.model].get_config()
    config.batch_size, config.bn_groups, config.key_shuffle = args.batch, 1, "none"
    config.loss.queue_size = 65536 // args.batch * args.batch
    config.model.dtype = args.dtype
    kind = jax.devices()[0].device_kind
    rate = matmul_rate(args.dtype, 2048 if jax.default_backend() == "cpu" else 8192, args.warm_up)
    dense = counting.step_flops(config)
    ours = time_ours(config, args)
    speed = args.batch / ours["seconds"]
    result = {
        "model": args.model,
        "batch": args.batch,
        "dtype": args.dtype,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {kind}, load {os.getloadavg()[0]:.1f}",
        "threads": args.threads,
        "jax": jax.__version__,
        **ours,
        "samples_per_second": speed,
        "matmul_tflops": rate / 1e12,
        "dense_gflop_per_sample": dense / 1e9,
        "dense_share_of_peak": dense * speed / rate,
        "xla_share_of_peak": 1e9 * ours["xla_gflop_per_sample"] * speed / rate,
    }
    for variant in filter(None, args.peers.split(",")):
        import torch

        result["torch"] = torch.__version__
        result[f"torch_{variant}_seconds"] = time_torch(variant, args)
        result[f"times_as_fast_as_{variant}"] = result[f"torch_{variant}_seconds"] / ours["seconds"]
    for name, value in result.items():
        print(f"{name:32s} {value:.3f}" if isinstance(value, float) else f"{name:32s} {value}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
