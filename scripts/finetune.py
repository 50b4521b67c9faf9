"""Finetune for semantic segmentation: python scripts/finetune.py --config configs/finetune_… --workdir DIR

Run again with the same work directory, it resumes. Last model: DIR/checkpoints; best: DIR/best; scores: DIR/scores.json.
"""

import pathlib

import _cli

FLAGS = _cli.define_config_flags()

import jax  # noqa: E402
from clu import parameter_overview  # noqa: E402

from cp2_jax import validation  # noqa: E402
from cp2_jax.convert import warm_start  # noqa: E402
from cp2_jax.data.images.stream import Batches  # noqa: E402
from cp2_jax.data.labelled import classes  # noqa: E402
from cp2_jax.data.labelled.examples import open_examples  # noqa: E402
from cp2_jax.data.labelled.stream import training_dataset, training_options  # noqa: E402
from cp2_jax.runs import distributed, loop, mesh, settings  # noqa: E402
from cp2_jax.runs.checkpoints import Checkpoints  # noqa: E402
from cp2_jax.runs.writers import Writer  # noqa: E402
from cp2_jax.segmentation import hooks  # noqa: E402
from cp2_jax.segmentation import step as finetune_step  # noqa: E402
from cp2_jax.segmentation.evaluation import Evaluator  # noqa: E402


def main(_):
    config = FLAGS.value
    workdir = pathlib.Path(_cli.flags.FLAGS.workdir).absolute()
    classes.resolve(config)
    validation.validate_finetune(config, jax.device_count())
    examples = open_examples(config.data, config.data.split, config.data.limit, config.data.limit_seed)
    evaluator = Evaluator(config, mesh.make_mesh())
    distributed.agree({"number of images": f"{len(examples)}, {len(evaluator.examples)} to evaluate"})
    steps_per_epoch = settings.steps_per_epoch(len(examples), config.batch_size)
    total_steps = settings.total_steps(config, len(examples))
    settings.save_config(workdir, config)
    print(config)

    initial_state, step = finetune_step.make_step(config, total_steps, steps_per_epoch, evaluator.device_mesh)
    variables = finetune_step.init_variables(config)
    checkpoints = Checkpoints(workdir / "checkpoints", config.keep)
    if config.init.checkpoint and checkpoints.latest_step() is None:
        variables, table = warm_start.start(config, variables)
        print(table)
    state = initial_state(variables)
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print(f"{len(examples)} images, {steps_per_epoch} steps an epoch, {total_steps} steps, on {jax.device_count()} "
          f"{jax.devices()[0].device_kind}")  # fmt: skip
    if restored := checkpoints.restore(state):
        state, _ = restored
        print(f"resuming after step {int(state.step)}")
    start = int(state.step)
    dataset = training_dataset(
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        options=training_options(config.data),
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=config.data.workers,
    )
    place = lambda batch: mesh.place_batch(evaluator.device_mesh, batch)  # noqa: E731
    batches = Batches(iter(dataset), examples, place, ahead=config.data.prefetch)
    meta = {"kind": "finetune", "config": settings.as_plain(config)}
    with Writer(workdir, total_steps, start, title="finetuning") as writer:
        evaluation = hooks.Periodic(evaluator, config.eval_every or total_steps, total_steps, writer, workdir, meta)
        loop.fit(
            step, state, batches, total_steps=total_steps, writer=writer, checkpoints=checkpoints, meta=meta,
            save_every=config.save_every, log_every=config.log_every, samples_per_step=config.batch_size,
            on_step=[_cli.watchdog(), evaluation],
        )  # fmt: skip
        writer.curves()
    batches.close()
    checkpoints.close()


if __name__ == "__main__":
    _cli.run(main)
