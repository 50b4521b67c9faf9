"""One full-size pretraining step on composed images against the same step in plain PyTorch, in one run.

    python benchmarks/step.py --batch 8 --steps 5 --threads 2 --peers original,channels_last       # CPU, float32
    python benchmarks/step.py --batch 256 --dtype bfloat16 --device cuda --peers best,original     # one GPU
    python benchmarks/step.py --model vit_aspp --batch 256 --dtype bfloat16 --device cuda --peers best

Both get the same shapes and warm-up steps, and take turns: a step of each, and again. "seconds" is the least of a kind
(other programs on the machine only ever add time), how many times as fast the median of the turns' ratios; the CPU time of
all threads means more on a busy machine. Share of peak: the dense count
(multiplications with padding included), and off GPUs XLA's own of the compiled program (there it leaves out what libraries
compute), over the rate of a large matrix product measured in the same run. `--peers` needs PyTorch; the variants are in
torch_peer.py. Prints a table and a line of JSON.
"""

import os
import statistics
import time

import counting
import jax
import timing

from cp2_jax.augment.compose import Pair
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import optim

OURS = "ours"


def parse(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--model", choices=("r50_aspp", "vit_aspp"), default="r50_aspp")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=3, help="untimed steps")
    parser.add_argument("--threads", type=int, default=2, help="of a CPU")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--attention", default="auto", choices=("auto", "xla", "cudnn"), help="of the ViT")
    parser.add_argument("--device", default="cpu", help="PyTorch's: cpu or cuda; JAX takes what it finds")
    parser.add_argument("--peers", default="", help="PyTorch variants, comma-separated: those of torch_peer.VARIANTS")
    parser.add_argument("--peers_only", action="store_true", help="leave out our own step")
    args = parser.parse_args(arguments)
    if args.device == "cpu" or args.peers_only:  # before JAX is first used; PyTorch has the card to itself
        jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
        os.environ.setdefault("XLA_FLAGS", f"--xla_cpu_multi_thread_eigen=true intra_op_parallelism_threads={args.threads}")
    if args.peers:  # PyTorch needs the card's memory, of which JAX would take three quarters at its first use
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    timing.use_forms(args.forms)
    return args


def compiled_update(config):
    """Return (a function that makes one step, the compiled program, seconds of compiling)."""
    schedule = optim.schedule(config.optimizer, 1000, 100)
    optimizer = optim.make(config.optimizer, schedule)
    update = jax.jit(pretrain_step.make_update(config, optimizer, schedule), donate_argnums=0)
    images, masks = timing.composed(config)
    pair = Pair(image_query=images[0], image_key=images[1], mask_query=masks[0], mask_key=masks[1])
    initial = jax.jit(lambda: pretrain_step.init_state(config, optimizer))
    begin = time.perf_counter()
    lowered = update.lower(jax.eval_shape(initial), pair)
    compiling = time.perf_counter() - begin
    timing.take_card()
    begin = time.perf_counter()
    program = lowered.compile()
    compiling += time.perf_counter() - begin
    state, pair = initial(), jax.device_put(pair)

    def step():
        nonlocal state
        state, metrics = program(state, pair)
        jax.block_until_ready((state, metrics))

    return step, program, compiling


def described(config, program, compiling, seconds, args):
    """Return shares of the peak at a step of so many seconds, and what the compiled program says of itself."""
    peak, rate = timing.peak_bytes() or 0, timing.matmul_rate(args.dtype, 256 if args.tiny else 0)
    cost, memory, batch = program.cost_analysis() or {}, program.memory_analysis(), config.batch_size
    dense = counting.step_flops(config)
    found = {
        "samples_per_second": batch / seconds,
        "compile_seconds": compiling,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "peak_gb": peak / 1e9,
        "matmul_tflops": rate / 1e12,
        "dense_gflop_per_sample": dense / 1e9,
        "dense_share_of_peak": dense * batch / seconds / rate,
    }
    if jax.default_backend() != "gpu":  # its count leaves out what cuDNN computes
        found |= {
            "xla_gflop_per_sample": cost.get("flops", float("nan")) / batch / 1e9,
            "xla_mb_accessed_per_sample": cost.get("bytes accessed", float("nan")) / batch / 1e6,
            "xla_share_of_peak": cost.get("flops", float("nan")) / seconds / rate,
        }
    return found


def torch_step(variant, config, args):
    """Return (a function that makes one of the peer's steps, seconds until it was compiled, number of compiled graphs)."""
    import torch
    import torch_peer

    torch.set_num_threads(args.threads)
    images, masks = timing.composed(config)
    batch = [torch.from_numpy(x.transpose(0, 3, 1, 2).copy()) for x in images] + [torch.from_numpy(x) for x in masks]
    batch = [x.to(args.device) for x in batch]
    network = "tiny" if args.tiny else args.model
    options = torch_peer.VARIANTS[variant] | {"queue_size": config.loss.queue_size}
    with torch_peer.recompilations_counted() as graphs:
        begin = time.perf_counter()
        prepare, step = torch_peer.make_step(network, args.device, **options)
        if options.get("mode"):  # it tries kernels on the card while it compiles
            timing.take_card()
        prepare(*batch)
        timing.take_card()
        step(*batch).item()
        return lambda: step(*batch).item(), time.perf_counter() - begin, graphs()


def compared(times):
    """Return the figures of steps in turn, see `timing.in_turn`: our own without a prefix, and how many times as fast."""
    found = {}
    for name, (wall, cpu) in times.items():
        prefix = "" if name == OURS else f"torch_{name}_"
        found |= {f"{prefix}seconds": min(wall), f"{prefix}cpu_seconds": min(cpu)}
        found |= {f"{prefix}seconds_median": statistics.median(wall), f"{prefix}seconds_most": max(wall)}
    for name, (wall, cpu) in times.items():
        if name != OURS and OURS in times:
            ours, ours_cpu = times[OURS]
            ratios = [theirs / mine for theirs, mine in zip(wall, ours, strict=True)]
            found[f"times_as_fast_as_{name}"] = statistics.median(ratios)
            found[f"times_as_fast_as_{name}_range"] = [min(ratios), max(ratios)]
            found[f"share_of_the_cpu_time_of_{name}"] = min(ours_cpu) / min(cpu)
    return found


def main(arguments=None):
    args = parse(arguments)
    config = timing.make_config(args.model, args.batch, args.dtype, args.tiny)
    config.model.vit.attention = args.attention
    kind = timing.torch_card(args.device) if args.peers_only else None
    result = {"model": args.model, "batch": args.batch, "dtype": args.dtype, **timing.machine(kind)}
    result["threads"] = args.threads
    steps = {}
    if not args.peers_only:
        steps[OURS], program, compiling = compiled_update(config)
    for variant in filter(None, args.peers.split(",")):
        import torch

        steps[variant], first, graphs = torch_step(variant, config, args)
        result |= {
            "torch": torch.__version__,
            f"torch_{variant}_first_step_seconds": first,
            f"torch_{variant}_graphs": graphs,
        }
    result |= compared(timing.in_turn(steps, args.steps, args.warm_up))
    if not args.peers_only:
        result |= described(config, program, compiling, result["seconds"], args)
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
