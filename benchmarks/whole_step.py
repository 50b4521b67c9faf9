"""The whole pretraining step from uint8 crops, taken apart: augmentation, groups, strided keys; with `--profile`'s table.

    python benchmarks/whole_step.py --batch 256 --dtype bfloat16 [--only whole,augment,plain,groups] [--json FILE]

"whole": the step of pretraining with 4 groups, strided keys and `in_batch`, compiled without CUDA graphs, as `--profile`
does (end_to_end.py runs it with them), timed, then traced, with the profile's own table. "augment": augmentation and
composition alone, and its blur in each form. "plain", "groups", "strided": the update of composed images with one group,
with 4, and with strided keys as well: what each of them costs.
"""

import functools
import itertools
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import step as step_alone
import timing

from cp2_jax.augment import blur, compose
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, profiling

UPDATES = {"plain": (1, "none"), "groups": (4, "none"), "strided": (4, "strided")}
PARTS = ("whole", "augment", *UPDATES)


def parse(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--model", choices=tuple(timing.CONFIGS), default="r50_aspp")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--only", default=",".join(PARTS), help="which of them, comma-separated")
    args = parser.parse_args(arguments)
    if unknown := set(args.only.split(",")) - set(PARTS):
        parser.error(f"unknown {sorted(unknown)}: choose from {', '.join(PARTS)}")
    timing.use_forms(args.forms)
    return args


def whole(config, steps):
    """Return seconds of the whole step, and of its parts by the profile."""
    device_mesh = mesh.make_mesh(jax.devices()[:1])
    initial_state, step = pretrain_step.make_step(config, *timing.lengths(config), device_mesh)
    lowered = step.lower(jax.eval_shape(initial_state), pretrain_step.abstract_batch(config))
    timing.take_card()
    # The plan's and the profile's program: one compilation for three uses.
    program = profiling.compile_named(lowered, jax.default_backend())
    state, batch = initial_state(), mesh.place_batch(device_mesh, timing.crops(config))

    def once():
        nonlocal state
        state, metrics = program(state, batch)
        jax.block_until_ready(metrics)

    found = {"whole_seconds": timing.timed(once, steps, 3), "whole_peak_gb": (timing.peak_bytes() or 0) / 1e9}
    with tempfile.TemporaryDirectory() as folder:
        table = profiling.profile(program, state, itertools.repeat(batch), pathlib.Path(folder), steps=3, warm_up=1)
    print(table)
    rows = re.findall(r"^(\S.*?) +([\d.]+) +([\d.]+)%$", table, re.M)
    found["profile_ms"] = {name: float(milliseconds) for name, milliseconds, _ in rows}
    found["profile_table"] = table.splitlines()
    return found


def augment(config):
    """Return milliseconds of augmentation and composition, and of the blur alone in each of its forms."""
    options, batch = compose.AugmentOptions.from_config(config), jax.device_put(timing.crops(config))
    composed = jax.jit(lambda key, batch: compose.compose_batch(key, batch, options, config.model.dtype))
    found = {"augment_ms": 1e3 * timing.per_call(composed, jax.random.key(0), batch)}
    count, side = 4 * config.batch_size, config.image_size
    planes = jax.random.uniform(jax.random.key(1), (count, 3, side, side))
    sigma = jnp.linspace(0.1, 2.0, count)
    for form in ("float32", "float16"):
        blurred = jax.jit(functools.partial(blur.gaussian_blur, max_sigma=2.0, form=form))
        found[f"blur_{form}_ms"] = 1e3 * timing.per_call(blurred, planes, sigma)
    return found


def main(arguments=None):
    args = parse(arguments)
    wanted = args.only.split(",")

    def config(groups, shuffle):
        return timing.make_config(args.model, args.batch, args.dtype, args.tiny, groups, shuffle)

    result = {"model": args.model, "batch": args.batch, "dtype": args.dtype, **timing.machine()}
    if "whole" in wanted:
        result |= whole(config(4, "strided"), args.steps)
    if "augment" in wanted:
        timing.take_card()
        result |= augment(config(4, "strided"))
    for name, options in UPDATES.items():
        if name in wanted:
            step, _, _ = step_alone.compiled_update(config(*options))
            result[f"update_{name}_seconds"] = timing.timed(step, args.steps, 3)
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
