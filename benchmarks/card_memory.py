"""Memory of the pretraining step on this machine's card: what `plan --topology local` predicts against what was in use.

    python benchmarks/card_memory.py --batch 256 [--largest] [--remat] [--json FILE]

Predicted: the peak of planning's compiled program. Measured: the allocator's most bytes in use over three steps, in a
process that did nothing else. `--largest` compiles larger batches until one does not fit, with nothing run; the largest is
what the prediction lets into 95% of what JAX may take of the card (three quarters of it, unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise), and likewise of 80 GB.
"""

import jax
import timing

from cp2_jax.planning import chips, program
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, profiling

_USED = 0.95  # of the memory


def plan(config):
    """Return the compiled step's plan on this machine."""
    return program.compile_step(config, chips.get("local"), timing.IMAGES)


def run(config):
    """Make three steps; return the most bytes in use."""
    device_mesh = mesh.make_mesh(jax.devices()[:1])
    initial_state, step = pretrain_step.make_step(config, *timing.lengths(config), device_mesh)
    lowered = step.lower(jax.eval_shape(initial_state), pretrain_step.abstract_batch(config))
    timing.take_card()
    # The plan's program, without CUDA graphs; whole_step.py compiles it as well.
    compiled, state = profiling.compile_named(lowered, jax.default_backend()), initial_state()
    for _ in range(3):
        state, metrics = compiled(state, mesh.place_batch(device_mesh, timing.crops(config)))
        jax.block_until_ready(metrics)
    return timing.peak_bytes()


def largest(config, capacity, batches=(512, 768, 1024, 1280, 1536, 2048)):
    """Return the largest batch whose predicted peak fits, here and into 80 GB, and the predicted gigabytes by batch."""
    found, predicted = config.batch_size, {}
    for batch in batches:
        config.batch_size, config.loss.queue_size = batch, 65536 // batch * batch
        peak = plan(config).peak
        predicted[str(batch)] = peak and peak / 1e9
        if peak is None or peak > _USED * capacity:
            break
        found = batch
    fitting = [int(batch) for batch, gb in predicted.items() if gb and gb <= _USED * 80]
    in_80 = max(fitting, default=None)
    return {"largest_batch": found, "largest_batch_in_80_gb": in_80, "predicted_gb_by_batch": predicted}


def main(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--model", choices=tuple(timing.CONFIGS), default="r50_aspp")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--largest", action="store_true")
    parser.add_argument("--remat", action="store_true")
    args = parser.parse_args(arguments)
    timing.use_forms(args.forms)
    config = timing.make_config(args.model, args.batch, "bfloat16", args.tiny, 4, "strided")
    config.remat, config.data.prefetch = args.remat, 0
    stats = jax.local_devices()[0].memory_stats() or {}
    result = {"model": args.model, "batch": args.batch, "remat": args.remat, **timing.machine()}
    result["card_gb"] = stats.get("bytes_limit", 0) / 1e9
    if args.largest:
        timing.take_card()
        result |= largest(
            config, stats.get("bytes_limit") or float("inf"), (8, 16) if args.tiny else (512, 768, 1024, 1536)
        )
    else:
        measured, planned = run(config), plan(config)
        result |= {"measured_gb": (measured or 0) / 1e9, "predicted_gb": planned.peak / 1e9}
        result |= {"temporaries_gb": planned.temporaries / 1e9, "prediction": planned.peak / measured if measured else None}
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
