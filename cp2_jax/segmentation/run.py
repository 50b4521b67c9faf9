"""Finetuning for semantic segmentation as a function: labelled images, a model and its step, in a work directory."""

import functools
import pathlib

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax.convert import warm_start
from cp2_jax.data.images.stream import Batches
from cp2_jax.data.labelled import classes
from cp2_jax.data.labelled.examples import Examples, open_examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.runs import distributed, mesh, session
from cp2_jax.segmentation import hooks, options, step
from cp2_jax.segmentation.evaluation import Evaluator


def train(
    config: ConfigDict, workdir: str | pathlib.Path, *, profile: bool = False, stall_timeout: float = 0.0
) -> session.Result:
    """Finetune a segmentation model, or go on where the work directory stands.

    Besides what every run writes (see `session.run`), `workdir` gets `best`, the model with the best mean IoU so far, and
    `scores.json` at the end.

    Args:
      config: a finetuning config (see `configs/`); it is not changed.
      workdir, profile, stall_timeout: see `session.run`.

    Returns:
      The number of finished steps, the work directory and the last metrics, `miou` among them.

    Raises:
      ConfigError: an impossible config, another job's config, or a work directory that holds another run.
      SegmentationError, SourceError: images or masks cannot be opened, or do not fit the classes.
      CheckpointError, NonFiniteLoss, Preempted, DisagreementError: see `session.run`.
    """
    config = config.copy_and_resolve_references()
    classes.resolve(config)
    options.check(config, jax.device_count())
    distributed.agree(distributed.facts(config, {"--workdir": workdir}))
    examples = open_examples(config.data, config.data.split, config.data.limit, config.data.limit_seed)
    evaluator = Evaluator(config, mesh.make_mesh())
    distributed.agree({"number of images to evaluate": str(len(evaluator.examples))})
    device_mesh = evaluator.device_mesh

    def watchers(writer, total_steps, meta):
        yield hooks.Periodic(evaluator, config.eval_every or total_steps, total_steps, writer, workdir, meta)

    job = session.Job(
        config=config,
        place=config.data.path,
        num_images=len(examples),
        names=examples.names(),
        device_mesh=device_mesh,
        make_step=lambda total, per_epoch: _make_step(config, total, per_epoch, device_mesh),
        first=lambda: _first(config),
        batches=lambda start: _batches(config, examples, device_mesh, start),
        hooks=watchers,
    )
    return session.run(job, workdir, profile=profile, stall_timeout=stall_timeout)


def _make_step(config: ConfigDict, total_steps: int, steps_per_epoch: int, device_mesh: Mesh):
    """Return `step.make_step`'s pair, whose first part also takes None, for variables that a checkpoint will replace."""
    initial_state, one_step = step.make_step(config, total_steps, steps_per_epoch, device_mesh)
    return lambda variables: initial_state(variables or step.init_variables(config)), one_step


def _batches(config: ConfigDict, examples: Examples, device_mesh: Mesh, start: int) -> Batches:
    """Return the placed batches of this process from batch number `start` on."""
    dataset = training_dataset(
        examples,
        batch_size=config.batch_size,
        seed=config.seed,
        options=training_options(config.data),
        start_step=start,
        rows=mesh.local_rows(device_mesh, config.batch_size),
        workers=config.data.workers,
    )
    return Batches(iter(dataset), examples, functools.partial(mesh.place_batch, device_mesh), config.data.prefetch)


def _first(config: ConfigDict) -> session.First:
    """Return the weights before the first step: random ones, or those of `config.init.checkpoint`."""
    initial = step.init_variables(config)
    if not config.init.checkpoint:
        return session.First(initial)
    variables, table = warm_start.start(config, initial)
    return session.First(variables, warm_start.origin(config, initial), table)
