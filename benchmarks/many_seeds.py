"""Many seeds in one program against one: samples a second of the study's pretraining and finetuning steps.

    python benchmarks/many_seeds.py [--config study_gpu] [--seeds 16] [--steps 20] [--json FILE]

Both sizes are compiled, then take turns on batches that are already on the device: what the host can deliver is another
question (`benchmarks/input.py`). The study's own commands are in docs/when_it_pays.md.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import timing
from ml_collections import ConfigDict

from cp2_jax.planning import program
from cp2_jax.reproduce import seeds
from cp2_jax.reproduce.quick_tuning import ARMS

PER_EPOCH = 100


def parse(arguments=None):
    parser = timing.parser(__doc__)
    parser.add_argument("--config", default="study_gpu", help="a study's config")
    parser.add_argument("--seeds", type=int, default=16, help="of the larger group")
    parser.add_argument("--steps", type=int, default=20, help="rounds that are timed")
    parser.add_argument("--job", default="both", choices=("both", "pretraining", "finetuning"))
    parser.add_argument("--batch", type=int, default=0, help="samples of a seed's pretraining step; 0: the config's")
    return parser.parse_args(arguments)


def noise(config, count):
    """Return a group's batch as the step takes it, on the device; of labelled images no part is padding."""
    rng = np.random.default_rng(0)
    shapes = program.abstract_batch(config)
    batch = {key: rng.integers(0, 256, (count, *one.shape), np.uint8) for key, one in shapes.items()}
    if config.kind == "finetune":
        batch["label"] %= config.data.num_classes
        batch["size"] = np.broadcast_to(np.asarray(config.data.crop_size, np.int32), batch["size"].shape)
    return jax.device_put(batch)


def pretraining(config, count):
    """Return a function that goes one step of a group of so many seeds."""
    first, start, step = seeds.pretraining(config.to_json(), config.steps, PER_EPOCH, count)
    numbers = jnp.arange(count, dtype=jnp.int32)
    return going(step, start(first(numbers), numbers), noise(config, count), numbers)


def finetuning(config, count):
    """Return a function that goes one step of a group of so many seeds."""
    first, start, step = seeds.finetuning(config.to_json(), config.steps, count)
    numbers = jnp.arange(count, dtype=jnp.int32)
    return going(step, start(first(numbers)), noise(config, count), numbers)


def going(step, state, batch, numbers):
    """Return a function that goes one step and waits for it."""

    def once():
        nonlocal state
        state, metrics = step(state, batch, numbers)
        jax.block_until_ready(metrics)

    return once


def main(arguments=None):
    args = parse(arguments)
    study = importlib.import_module(f"configs.{args.config}").get_config()
    pretrain, finetune = study.pretrain, study.finetune
    pretrain.update_from_flattened_dict(dict(ARMS["cp2"].overrides))
    pretrain.batch_size = args.batch or (8 if args.tiny else pretrain.batch_size)
    if args.tiny:
        finetune.batch_size = 2
        for model in (pretrain.model, finetune.model):
            model.resnet.update(width=4, stem_width=4)
            model.aspp.channels = 8
    result = {**timing.machine(), "seeds": args.seeds}
    timing.take_card()
    for name, make, config in (("pretraining", pretraining, pretrain), ("finetuning", finetuning, finetune)):
        if args.job not in ("both", name):
            continue
        steps = {str(count): make(ConfigDict(config.to_dict()), count) for count in (1, args.seeds)}
        times = timing.in_turn(steps, args.steps, 3)
        for count in (1, args.seeds):
            result[f"{name}_{count}_samples_per_second"] = count * config.batch_size / min(times[str(count)][0])
        many, one = (result[f"{name}_{count}_samples_per_second"] for count in (args.seeds, 1))
        result[f"{name}_times_one"] = many / one
    timing.report(result, args.json)
    return result


if __name__ == "__main__":
    main()
