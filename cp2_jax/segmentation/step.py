"""Finetuning for semantic segmentation: the state and the one jitted step. `warm_start` says how a run begins.

The protocol is that of the paper's section 4.1, MMSegmentation's EncoderDecoder: the projection makes way for a
classifier, logits are upsampled to the labels' size, batch norm is synchronised over the batch (`bn_groups` = 1).
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from cp2_jax.models import resize, segmenter
from cp2_jax.models.network import Network
from cp2_jax.runs import mesh, optim, rngs
from cp2_jax.segmentation.inputs import normalize
from cp2_jax.segmentation.tuning import TuningOptions


@flax.struct.dataclass
class State:
    """Everything that training changes."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


@flax.struct.dataclass
class FinetuneMetrics(clu_metrics.Collection):
    """One finetuning step. `pixel_accuracy`: share of the labelled pixels of the batch that are right."""

    loss: clu_metrics.Average.from_output("loss")
    pixel_accuracy: clu_metrics.Average.from_output("pixel_accuracy")
    gradient_norm: clu_metrics.Average.from_output("gradient_norm")
    learning_rate: clu_metrics.LastValue.from_output("learning_rate")


def cross_entropy(
    logits: Float[Array, "batch h w classes"],
    label: Int[Array, "batch height width"] | UInt8[Array, "batch height width"],
    average: str,
    class_weights: Sequence[float] = (),
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss and the share of labelled pixels that are right, at the labels' resolution.

    Args:
      logits: at the output stride; upsampled bilinearly to the labels' size first.
      label: pixels that are no class (255) have no loss.
      average: "all" divides by the number of all pixels, ignored ones included, as the original and MMSegmentation do
        (paper_vs_code item 23); "labelled" by the number of labelled ones.
      class_weights: factor of the loss of each true class; empty: 1. "labelled" then divides by the sum of the pixels'
        weights, as PyTorch does, "all" by the number of all pixels, as MMSegmentation.

    Raises:
      KeyError: for another `average`.
    """
    logits = resize.bilinear(logits, label.shape[1:])
    classes = logits.shape[-1]
    labelled = label < classes
    target = jnp.where(labelled, label, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target) * labelled
    count = jnp.maximum(jnp.sum(labelled), 1).astype(losses.dtype)
    total = count
    if class_weights:
        weights = jnp.asarray(class_weights, losses.dtype)[target]
        losses, total = losses * weights, jnp.sum(weights * labelled)
        total = jnp.where(total > 0, total, 1)
    loss = jnp.sum(losses) / {"all": jnp.asarray(label.size, losses.dtype), "labelled": total}[average]
    right = (jnp.argmax(logits, axis=-1) == target) & labelled
    return loss, jnp.sum(right) / count


def dice_loss(
    logits: Float[Array, "batch h w classes"],
    label: Int[Array, "batch height width"] | UInt8[Array, "batch height width"],
) -> Float[Array, ""]:
    """Return one minus the soft Dice coefficient (Milletari et al. 2016), averaged over the classes that the batch shows.

    2 Σpt / (Σp + Σt) for each class, with probabilities p and truth t summed over the labelled pixels of the whole batch.

    Args:
      logits, label: see `cross_entropy`.
    """
    logits = resize.bilinear(logits, label.shape[1:])
    classes = logits.shape[-1]
    labelled = (label < classes)[..., None]
    truth = jax.nn.one_hot(label, classes, dtype=logits.dtype)  # zeros where nothing is labelled
    found = jax.nn.softmax(logits, axis=-1) * labelled
    both, either = (jnp.sum(x, axis=(0, 1, 2)) for x in (found * truth, found + truth))
    shown = jnp.sum(truth, axis=(0, 1, 2)) > 0
    losses = jnp.where(shown, 1 - 2 * both / jnp.where(shown, either, 1), 0)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(shown), 1)


def build_model(config: ConfigDict) -> segmenter.Segmenter:
    """Return the model with a classifier on top, and an auxiliary one if that has a weight. `config.image_size` is the size
    of the images of pretraining, for which a ViT's position table was made; the model resizes the table to each input."""
    return segmenter.build(
        config.model,
        top="classifier",
        bn_groups=config.bn_groups,
        image_size=config.image_size,
        remat=config.remat,
        auxiliary=config.auxiliary if config.auxiliary.weight else None,
    )


def _logits(model: segmenter.Segmenter, images: Array, *, auxiliary: bool, frozen: bool) -> tuple[Array, ...]:
    """Return the logits of the classifier, and of the auxiliary one if there is one, in training."""
    if frozen:
        stages = jax.lax.stop_gradient(model.backbone(images, False))
        return model.from_stages(stages, True, auxiliary)
    return model.with_auxiliary(images, True) if auxiliary else (model(images, True),)


def _loss(config: ConfigDict, tuning: TuningOptions, found: Sequence[Array], label: Array) -> tuple[Array, Array]:
    """Return the loss of all logits, the auxiliary ones by their weight, and the accuracy of the first."""

    def one(logits):
        loss, accuracy = cross_entropy(logits, label, config.loss.average, tuning.class_weights)
        return (loss + tuning.dice * dice_loss(logits, label) if tuning.dice else loss), accuracy

    (loss, accuracy), *auxiliary = map(one, found)
    for more, _ in auxiliary:
        loss += config.auxiliary.weight * more
    return loss, accuracy


def init_variables(config: ConfigDict, seed: int | Int[Array, ""] | None = None) -> dict:
    """Return the variables {'params', 'batch_stats'} of `build_model`, initialised at random from `config.seed`.

    `seed` (int, may be traced) is drawn from instead of `config.seed`.
    """
    images = jnp.zeros((config.bn_groups, config.image_size, config.image_size, 3))
    model = build_model(config)
    method = model.with_auxiliary if config.auxiliary.weight else None
    variables = jax.jit(lambda key: model.init(key, images, train=False, method=method))(
        rngs.key(config.seed if seed is None else seed, "init")
    )
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def state_sharding(device_mesh: Mesh, state: State, split: bool = False) -> State:
    """Return the placement of a state: replicated; with `split` (`config.shard_state`), parameters and optimiser state
    are split over the devices."""
    everywhere = jax.tree.map(lambda _: mesh.replicated(device_mesh), state)
    large = {name: mesh.split_largest(device_mesh, getattr(state, name), split) for name in ("params", "opt_state")}
    return everywhere.replace(**large)


def _optimizer(config: ConfigDict, tuning: TuningOptions, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return the config's optimiser, with a rate for each layer where the tuning asks for that."""
    optimizer = optim.make(config.optimizer, schedule)
    rates = tuning.rates(Network.from_config(config.model))
    return optimizer if rates is None else optim.scaled(optimizer, rates)


def make_train(config: ConfigDict, total_steps: int, steps_per_epoch: int, device_mesh: Mesh | None = None):
    """Return `(start, train)`: the state of given variables and one whole step, not yet jitted or placed.

    Args:
      config, total_steps, steps_per_epoch: see `make_step`.
      device_mesh: what the arrays are spread over, if they are.

    Returns:
      start: `(variables) -> State`.
      train: `(state, batch, seed) -> (state, FinetuneMetrics)`. `seed` (int, may be traced) is what dropout draws from: one
        compiled program serves many seeds.
    """
    tuning = TuningOptions.from_config(config)
    schedule = optim.schedule(config.optimizer, total_steps, steps_per_epoch)
    optimizer = _optimizer(config, tuning, schedule)
    model = build_model(config)
    forward = functools.partial(_logits, auxiliary=config.auxiliary.weight > 0, frozen=tuning.freeze_backbone)

    def start(variables) -> State:
        return State(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
        )

    def train(state: State, batch: dict[str, Array], seed: int | Int[Array, ""]):
        images = normalize(batch["image"], batch["size"], config.model.mean, config.model.std)
        dropout = {"dropout": rngs.key(seed, "dropout", state.step)}

        def loss_of(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            found, changed = model.apply(variables, images, mutable=["batch_stats"], rngs=dropout, method=forward)
            loss, accuracy = _loss(config, tuning, found, batch["label"])
            return loss, (accuracy, changed.get("batch_stats", {}))

        params = state.params
        if device_mesh is not None and config.shard_state:
            params = mesh.constrain(params, mesh.replicated(device_mesh))
        (loss, (accuracy, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        if device_mesh is not None:
            gradients = mesh.share_out(device_mesh, gradients, config.shard_state)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = State(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return new_state, FinetuneMetrics.single_from_model_output(
            loss=loss,
            pixel_accuracy=accuracy,
            gradient_norm=optax.tree.norm(gradients),
            learning_rate=schedule(state.step),
        )

    return start, train


def make_step(config: ConfigDict, total_steps: int, steps_per_epoch: int, device_mesh: Mesh):
    """Return `(initial_state, step)`: the placed state and the jitted step that donates it.

    Args:
      config: a validated finetuning config (see `configs/`).
      total_steps, steps_per_epoch: the length of the run, for the schedule.
      device_mesh: from `mesh.make_mesh`.

    Returns:
      initial_state: `(variables) -> State`, placed on the mesh.
      step: `(state, batch) -> (state, FinetuneMetrics)`; batch is what `data.labelled.stream` yields.
    """
    start, train = make_train(config, total_steps, steps_per_epoch, device_mesh)
    everywhere, data = mesh.replicated(device_mesh), mesh.batch_sharding(device_mesh)
    shapes = jax.eval_shape(lambda: start(init_variables(config)))
    shardings = state_sharding(device_mesh, shapes, config.shard_state)
    initial_state = jax.jit(start, out_shardings=shardings)
    jitted = jax.jit(
        lambda state, batch: train(state, batch, config.seed),
        in_shardings=(shardings, data),
        out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )
    return initial_state, jitted
