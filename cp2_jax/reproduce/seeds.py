"""Many seeds in one program: runs that differ in nothing but their seed go through each step together.

Networks of a study's size leave an accelerator idle. `jax.vmap` over seeds, parameters, memory bank and batch fills it; a
seed computes what it would compute alone (`tests/reproduce/test_seeds.py`). On a CPU there is nothing to fill: there a
group has one seed, and its step is the job's own without `vmap`.

A group's arrays have one more axis in front, of its seeds. The steps are those of `pretraining` and `segmentation`, the
loop is `runs.loop.fit`.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from cp2_jax.models import inputs
from cp2_jax.pretraining import forward
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import loop, optim
from cp2_jax.runs.writers import Writer
from cp2_jax.segmentation import confusion, frozen
from cp2_jax.segmentation import step as finetune_step

# What of a state all seeds share. The number of the step decides which row of the memory bank is written: were it an array,
# the write would become a scatter.
_PRETRAINING = pretrain_step.State(
    step=None, params=0, batch_stats=0, key_params=0, key_batch_stats=0, opt_state=0, queue=0
)
_FINETUNING = finetune_step.State(step=None, params=0, batch_stats=0, opt_state=0)


def groups(seeds: Sequence[int], at_once: int = 0) -> list[tuple[int, ...]]:
    """Return the seeds in groups that are trained together.

    Args:
      seeds: in order.
      at_once: seeds of a group; 0: one on a CPU, all on an accelerator.
    """
    at_once = at_once or (1 if jax.default_backend() == "cpu" else len(seeds))
    return [tuple(seeds[first : first + at_once]) for first in range(0, len(seeds), at_once)]


def over(function: Callable, count: int, in_axes: Sequence[Any], out_axes: Any = 0) -> Callable:
    """Return `function` of one seed as a function of a group.

    Args:
      function: positional arguments in, one pytree out.
      count: seeds of the group. For one seed the axis is taken off and put on again: under `vmap` even one seed would be
        computed in another form, and on a CPU in a slower one.
      in_axes, out_axes: as of `jax.vmap`: pytrees of 0, for what each seed has its own of, and None.
    """
    if count > 1:
        return jax.vmap(function, in_axes=tuple(in_axes), out_axes=out_axes)

    def change(axes, tree, what):
        def whole(axis, part):
            return part if axis is None else jax.tree.map(what, part)

        return jax.tree.map(whole, axes, tree, is_leaf=lambda axis: axis is None)

    def alone(*arguments):
        single = (change(axes, argument, lambda x: x[0]) for axes, argument in zip(in_axes, arguments, strict=True))
        return change(out_axes, function(*single), lambda x: x[None])

    return alone


def stack(trees: Sequence[Any]) -> Any:
    """Return pytrees of single seeds as one of the group."""
    return jax.tree.map(lambda *parts: np.stack(parts), *trees)


def of_seed(tree: Any, index: int) -> Any:
    """Return one seed's part of a group's pytree."""
    return jax.tree.map(lambda x: x[index], tree)


@functools.lru_cache(maxsize=16)
def pretraining(config: str, total: int, per_epoch: int, count: int) -> tuple[Callable, Callable, Callable]:
    """Return compiled (initial variables of seeds, state of variables and seeds, step of state, batch and seeds).

    Args:
      config: of pretraining, as JSON.
      total: steps of the schedule.
      per_epoch: steps of an epoch.
      count: seeds of a group.
    """
    settings = ConfigDict(json.loads(config))
    schedule = optim.schedule(settings.optimizer, total, per_epoch)
    optimizer = optim.make(settings.optimizer, schedule)
    train = pretrain_step.make_train(settings, optimizer, schedule)
    first = over(functools.partial(pretrain_step.init_variables, settings), count, (0,))
    start = over(lambda v, seed: pretrain_step.init_state(settings, optimizer, v, seed), count, (0, 0), _PRETRAINING)
    step = over(train, count, (_PRETRAINING, 0, 0), (_PRETRAINING, 0))
    return jax.jit(first), jax.jit(start), _reduced(step)


@functools.lru_cache(maxsize=8)
def finetuning(config: str, total: int, count: int) -> tuple[Callable, Callable, Callable]:
    """Return compiled (initial variables of seeds, state of variables, step); arguments as of `pretraining`."""
    settings = ConfigDict(json.loads(config))
    begin, train = finetune_step.make_train(settings, total, 1)
    first = over(functools.partial(finetune_step.init_variables, settings), count, (0,))
    step = over(train, count, (_FINETUNING, 0, 0), (_FINETUNING, 0))
    return jax.jit(first), jax.jit(over(begin, count, (0,), _FINETUNING)), _reduced(step)


def _reduced(step: Callable) -> Callable:
    """Return the jitted step; its metrics are the mean of the seeds, so that one that is not finite is seen."""

    def reduced(state, batch, seeds):
        state, metrics = step(state, batch, seeds)
        return state, metrics.reduce()

    return jax.jit(reduced, donate_argnums=0)


def initial_variables(config: ConfigDict, seeds: Sequence[int]) -> dict:
    """Return {'params', 'batch_stats'} of a group before pretraining, at random from each seed."""
    first, _, _ = pretraining(config.to_json(), 1, 1, len(seeds))
    return first(jnp.asarray(seeds, jnp.int32))


def initial_segmenters(config: ConfigDict, seeds: Sequence[int]) -> dict:
    """Return {'params', 'batch_stats'} of a group before finetuning, at random from each seed."""
    first, _, _ = finetuning(config.to_json(), 1, len(seeds))
    return first(jnp.asarray(seeds, jnp.int32))


def pretrain(
    config: ConfigDict, seeds: Sequence[int], variables: dict, batches: Iterator, per_epoch: int, workdir: pathlib.Path
) -> tuple[dict, dict[str, float]]:
    """Pretrain a group for `config.steps` steps.

    Args:
      config: of all its seeds; its own seed is not used.
      variables: of the group, to start from.
      batches: of the group: what `pretraining.step` takes, with the axis of seeds in front.
      per_epoch: steps of an epoch, for the schedule.
      workdir: gets `metrics.jsonl`.

    Returns:
      The group's variables after the last step, and the metrics of the last tenth of the run, averaged over the seeds.

    Raises:
      NonFiniteLoss, Preempted: see `loop.fit`. Nothing is saved on the way: a study keeps what is finished.
    """
    _, start, step = pretraining(config.to_json(), config.steps, per_epoch, len(seeds))
    numbers = jnp.asarray(seeds, jnp.int32)
    return _fit(
        config, lambda state, batch: step(state, batch, numbers), start(variables, numbers), batches, seeds, workdir
    )


def finetune(
    config: ConfigDict, seeds: Sequence[int], variables: dict, batches: Iterator, workdir: pathlib.Path
) -> tuple[dict, dict[str, float]]:
    """Finetune a group for `config.steps` steps; arguments, result and errors as of `pretrain`.

    Raises:
      NonFiniteLoss, Preempted: see `pretrain`.
    """
    _, start, step = finetuning(config.to_json(), config.steps, len(seeds))
    numbers = jnp.asarray(seeds, jnp.int32)
    return _fit(config, lambda state, batch: step(state, batch, numbers), start(variables), batches, seeds, workdir)


class _Unsaved:
    """Stands where `loop.fit` has its checkpoints: a study saves what a run came to, and begins a broken one again."""

    directory = "no file, for a study saves finished runs"

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Keep nothing."""

    def wait(self) -> None:
        """There is nothing to wait for."""

    def settle(self, error: BaseException) -> None:
        """No save has begun."""

    def latest_step(self) -> None:
        """There is none."""


def _fit(config, step, state, batches, seeds, workdir) -> tuple[dict, dict[str, float]]:
    with Writer(workdir, config.steps) as writer:
        state = loop.fit(
            step,
            state,
            batches,
            total_steps=config.steps,
            writer=writer,
            checkpoints=_Unsaved(),
            meta={},
            save_every=config.steps,
            log_every=max(1, config.steps // 10),
            samples_per_step=config.batch_size * len(seeds),
        )
        last = dict(writer.last)
    return {"params": state.params, "batch_stats": state.batch_stats}, last


@functools.lru_cache(maxsize=4)
def _frozen(config: str, classes: int, count: int) -> Callable:
    settings = ConfigDict(json.loads(config))
    model, _ = forward.build_models(settings)

    def one(variables, train_images, train_labels, test_images, test_labels):
        def maps(images):
            images = inputs.normalize(images, settings.model.mean, settings.model.std)
            return model.apply(variables, images, method="stages")[-1]

        known, unknown = maps(train_images), maps(test_images)
        stride = train_labels.shape[1] // known.shape[1]
        shares = frozen.cell_shares(train_labels, stride, classes).reshape(-1, classes)
        kernel, bias = frozen.fit(known.reshape(-1, known.shape[-1]), shares)
        guesses = frozen.predict(unknown, kernel, bias, test_labels.shape[1:])
        return confusion.confusion_matrix(test_labels, guesses, classes).sum(axis=0)

    return jax.jit(over(one, count, (0, 0, 0, None, None)))


def frozen_scores(
    config: ConfigDict,
    variables: dict,
    train: tuple[UInt8[Array, "seeds images height width 3"], UInt8[Array, "seeds images height width"]],
    test: tuple[UInt8[Array, "count height width 3"], UInt8[Array, "count height width"]],
    classes: int,
) -> Float[np.ndarray, " seeds"]:
    """Return the mean IoU of a linear classifier on each seed's frozen backbone (see `segmentation.frozen`).

    Args:
      config: a pretraining config; its network gives the maps.
      variables: of the group.
      train: images and labels of each seed.
      test: images and labels that judge, the same for all.
      classes: of the labels.
    """
    parts = {kind: {"backbone": held["backbone"]} for kind, held in variables.items() if "backbone" in held}
    count = len(train[0])
    matrices: Int[Array, "seeds classes classes"] = _frozen(config.to_json(), classes, count)(parts, *train, *test)
    return np.array([confusion.scores(np.asarray(matrix, np.int64)).mean_iou for matrix in matrices])
