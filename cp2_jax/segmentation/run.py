"""Finetuning, evaluation and prediction as functions: `train`, `evaluate`, `predict`."""

import contextlib
import dataclasses
import functools

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax.convert import warm_start
from cp2_jax.data.errors import SegmentationError, UnreadableImage
from cp2_jax.data.images.sizes import warnings
from cp2_jax.data.images.stream import Batches
from cp2_jax.data.labelled import check, classes, survey
from cp2_jax.data.labelled.examples import Examples, open_examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.data.workers import iterate
from cp2_jax.paths import AnyPath, at
from cp2_jax.runs import distributed, files, mesh, progress, session
from cp2_jax.runs import sizes as open_sizes
from cp2_jax.runs.settings import check_kind
from cp2_jax.segmentation import folders, hooks, options, reports, saved, sizes, step
from cp2_jax.segmentation.confusion import Scores
from cp2_jax.segmentation.evaluation import Evaluation, Evaluator
from cp2_jax.segmentation.tuning import TuningOptions


def train(
    config: ConfigDict, workdir: str | AnyPath, *, profile: bool = False, stall_timeout: float = 0.0
) -> session.Result:
    """Finetune a segmentation model, or go on where the work directory stands.

    Besides what every run writes (see `session.run`), `workdir` gets `best`, the model with the best mean IoU so far, and
    `scores.json` at the end.

    Args:
      config: a finetuning config (see `configs/`); it is not changed. Where it leaves sizes open (-1, as the variant
        `small` does), they are chosen from the number of images and the devices (see `sizes.fit_to_data`).
      workdir, profile, stall_timeout: see `session.run`.

    Returns:
      The number of finished steps, the work directory and the last metrics, `miou` among them.

    Raises:
      ConfigError: an impossible config, another job's config, or a work directory that holds another run.
      SegmentationError, SourceError: images or masks cannot be opened, or do not fit the classes.
      CheckpointError, NonFiniteLoss, Preempted, DisagreementError: see `session.run`.
    """
    config, workdir = config.copy_and_resolve_references(), files.expand(workdir)
    classes.resolve(config)
    if not open_sizes.is_open(config, sizes.KEYS):
        options.check(config, jax.device_count())
    distributed.agree(distributed.facts(config, {"--workdir": workdir}))
    check_kind(config, "finetune")
    examples = open_examples(config.data, config.data.split, config.data.limit, config.data.limit_seed)
    if reasons := sizes.settle(config, len(examples), open_sizes.this_machine(), workdir):
        open_sizes.say(sizes.line(config), reasons, workdir)
        options.check(config, jax.device_count())
    for line in warnings(len(examples), config.batch_size):
        logging.warning(line)
    evaluator = Evaluator(config, mesh.make_mesh())
    _agree_on_images(evaluator)
    if shared := survey.shared_images(examples, evaluator.examples, config.data.split, config.data.eval_split):
        logging.warning(shared)
    device_mesh = evaluator.device_mesh

    patience = TuningOptions.from_config(config).patience

    def watchers(writer, total_steps, meta):
        every = config.eval_every or total_steps
        yield hooks.Periodic(evaluator, every, total_steps, writer, workdir, meta, patience)

    job = session.Job(
        config=config,
        place=config.data.path,
        num_images=len(examples),
        names=examples.names(),
        device_mesh=device_mesh,
        make_step=lambda total, per_epoch: _make_step(config, total, per_epoch, device_mesh),
        first=lambda: _first(config, evaluator.examples),
        batches=lambda start: _batches(config, examples, device_mesh, start),
        hooks=watchers,
        stored=functools.partial(_stored, examples),
        lines={"miou": config.compare_with},
        ended=lambda number: hooks.ended(number, hooks.best_step(workdir), config.eval_every, patience),
    )
    return session.run(job, workdir, profile=profile, stall_timeout=stall_timeout)


def _agree_on_images(evaluator: Evaluator) -> None:
    """Let all processes compare the images that they are about to evaluate; each counts a part of them."""
    if jax.process_count() > 1:  # of records, names are read
        distributed.agree({"images to evaluate": f"{len(evaluator.examples)}, names {evaluator.split.digest}"})


def _stored(examples: Examples, index: int) -> bytes:
    """Return an image and its mask as they are stored, b"" if they cannot be read: training will name what is wrong."""
    with contextlib.suppress(UnreadableImage, SegmentationError):
        return b"".join(examples.encoded(index))
    return b""


@dataclasses.dataclass(frozen=True)
class Scored:
    """What `evaluate` found.

    Attributes:
      scores: of the split.
      path: of the file that they were written to.
      result: the counts that they follow from.
    """

    scores: Scores
    path: AnyPath
    result: Evaluation


def evaluate(
    workdir: str | AnyPath,
    *,
    checkpoint: str | AnyPath | None = None,
    config: ConfigDict | None = None,
    adapt: saved.Adapt | None = None,
    predictions: str | AnyPath | None = None,
) -> Scored:
    """Score a finetuned model; the network is that of the checkpoint's own config, and so is what is tested and how.

    Writes `scores.json` and pictures of the best, the median and the worst image into `workdir`; of another split than the
    run's own, `scores_SPLIT.json` and pictures of that name.

    Args:
      workdir: of the finetuning.
      checkpoint, config, adapt: see `saved.open_saved`.
      predictions: folder for the class map of every image, with the values that the data set's masks have.

    Returns:
      The scores.

    Raises:
      CheckpointError, ConfigError: see `saved.open_saved`.
      SegmentationError, SourceError: the images or masks cannot be opened.
      DisagreementError: the processes of the run see different things.
    """
    workdir = files.expand(workdir)
    model = saved.open_saved(workdir, checkpoint, config, adapt)
    distributed.agree(distributed.facts(model.config, {"--workdir": workdir, "step": str(model.step)}))
    evaluator = Evaluator(model.config, mesh.make_mesh())
    _agree_on_images(evaluator)
    split = evaluator.split
    _say(f"{model.what}\n{len(evaluator.examples)} images of split {split.name}")
    if model.own is not None and tuple(model.own.data.class_names) != evaluator.names:
        _say(f"mind: the model was finetuned for the classes {', '.join(model.own.data.class_names)}")
    variables = jax.device_put(model.variables, mesh.replicated(evaluator.device_mesh))
    result = evaluator(variables, predictions)
    _say(reports.report(result, evaluator.names))
    extra = {"checkpoint": str(model.path), "step": model.step} | saved.best_of(workdir)
    own = _is_own(model, split) and reports.is_free(workdir / "scores.json", split)
    path = evaluator.save(workdir, result, variables, extra, own)
    return Scored(dataclasses.replace(result.scores, class_names=evaluator.names), path, result)


def _is_own(model: saved.Saved, split: reports.Split) -> bool:
    """Say whether a split is the one that the run is evaluated on by itself, as a whole."""
    if model.own is None:
        return True
    mine = model.own.data.eval_split, model.own.evaluation.limit
    return mine == (split.name, model.config.evaluation.limit)


@dataclasses.dataclass(frozen=True)
class Predicted:
    """What `predict` did.

    Attributes:
      count: number of images that were predicted.
      problems: a line for each image that was not predicted, with the reason.
      output: the folder with `masks` and `overlays`.
    """

    count: int
    problems: tuple[str, ...]
    output: AnyPath


def predict(
    run: str | AnyPath,
    images: str | AnyPath,
    output: str | AnyPath,
    *,
    checkpoint: str | AnyPath | None = None,
    config: ConfigDict | None = None,
    adapt: saved.Adapt | None = None,
    own_values: bool = False,
) -> Predicted:
    """Write class maps and overlays of a folder of images.

    Args:
      run, checkpoint, config, adapt: see `saved.open_saved`.
      images, output, own_values: see `folders.predict_folder`.

    Returns:
      How many images were predicted, and which were not.

    Raises:
      CheckpointError, ConfigError: see `saved.open_saved`.
      SourceError, SegmentationError: see `folders.predict_folder`.
    """
    model = saved.open_saved(run, checkpoint, config, adapt)
    _say(model.what)
    made_by = {"checkpoint": str(model.path.absolute()), "step": model.step, "classes": list(model.config.data.class_names)}
    count, done = folders.predict_folder(model.config, model.variables, images, output, own_values, made_by)
    problems = tuple(problem for problem in progress.track(done, "predicting", count) if problem)
    return Predicted(count - len(problems), problems, at(output))


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


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
    return Batches(iterate(dataset), examples, functools.partial(mesh.place_batch, device_mesh), config.data.prefetch)


def _first(config: ConfigDict, validation: Examples) -> session.First:
    """Return the weights before the first step: random ones, or those of `config.init.checkpoint`."""
    # A mask that cannot be used is better met now than after the first hours. Each process looks at its share.
    mine = range(jax.process_index(), len(validation), jax.process_count())
    distributed.raise_together(check.first_problem(validation, mine))
    if not config.init.checkpoint:
        return session.First(step.init_variables(config))
    loaded = warm_start.load(config)  # before anything is compiled
    distributed.agree_on_arrays(f"init.checkpoint={config.init.checkpoint}", loaded.variables)
    initial = step.init_variables(config)
    variables, table = warm_start.start(config, initial, loaded)
    return session.First(variables, warm_start.origin(config, initial), table)
