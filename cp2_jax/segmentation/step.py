"""Finetuning for semantic segmentation: the state and the one jitted step. `warm_start` says how a run begins.

The protocol is that of the paper's section 4.1, MMSegmentation's EncoderDecoder: the projection makes way for a
classifier, logits are upsampled to the labels' size, batch norm is synchronised over the batch (`bn_groups` = 1).
"""

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
from cp2_jax.runs import mesh, optim, rngs
from cp2_jax.segmentation.inputs import normalize


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
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the loss and the share of labelled pixels that are right, at the labels' resolution.

    Args:
      logits: at the output stride; upsampled bilinearly to the labels' size first.
      label: pixels that are no class (255) have no loss.
      average: "all" divides by the number of all pixels, ignored ones included, as the original and MMSegmentation do
        (paper_vs_code item 23); "labelled" by the number of labelled ones.

    Raises:
      KeyError: for another `average`.
    """
    logits = resize.bilinear(logits, label.shape[1:])
    classes = logits.shape[-1]
    labelled = label < classes
    target = jnp.where(labelled, label, 0).astype(jnp.int32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, target) * labelled
    count = jnp.maximum(jnp.sum(labelled), 1).astype(losses.dtype)
    loss = jnp.sum(losses) / {"all": jnp.asarray(label.size, losses.dtype), "labelled": count}[average]
    right = (jnp.argmax(logits, axis=-1) == target) & labelled
    return loss, jnp.sum(right) / count


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


def init_variables(config: ConfigDict) -> dict:
    """Return the variables {'params', 'batch_stats'} of `build_model`, initialised at random from `config.seed`."""
    images = jnp.zeros((config.bn_groups, config.image_size, config.image_size, 3))
    model = build_model(config)
    method = model.with_auxiliary if config.auxiliary.weight else None
    variables = jax.jit(lambda key: model.init(key, images, train=False, method=method))(rngs.key(config.seed, "init"))
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def state_sharding(device_mesh: Mesh, state: State, split: bool = False) -> State:
    """Return the placement of a state: replicated; with `split` (`config.shard_state`), parameters and optimiser state
    are split over the devices."""
    everywhere = jax.tree.map(lambda _: mesh.replicated(device_mesh), state)
    large = {name: mesh.split_largest(device_mesh, getattr(state, name), split) for name in ("params", "opt_state")}
    return everywhere.replace(**large)


def make_step(config: ConfigDict, total_steps: int, steps_per_epoch: int, device_mesh: Mesh):
    """Return `(initial_state, step)`: the placed state and the jitted step that donates it.

    Args:
      config: a validated finetuning config (see `configs/`).
      total_steps, steps_per_epoch: the length of the run, for the schedule.
      device_mesh: from `mesh.make_mesh`.

    Returns:
      initial_state: `(variables) -> State`, placed on the mesh.
      step: `(state, batch) -> (state, FinetuneMetrics)`; batch is what `data.segmentation_stream` yields.
    """
    schedule = optim.schedule(config.optimizer, total_steps, steps_per_epoch)
    optimizer = optim.make(config.optimizer, schedule)
    model = build_model(config)
    everywhere, data = mesh.replicated(device_mesh), mesh.batch_sharding(device_mesh)

    def step(state: State, batch: dict[str, Array]):
        images = normalize(batch["image"], batch["size"], config.model.mean, config.model.std)
        dropout = {"dropout": rngs.key(config.seed, "dropout", state.step)}

        def loss_of(params):
            variables = {"params": params, "batch_stats": state.batch_stats}
            method = model.with_auxiliary if config.auxiliary.weight else None
            logits, changed = model.apply(
                variables, images, train=True, mutable=["batch_stats"], rngs=dropout, method=method
            )
            logits, *auxiliary = logits if config.auxiliary.weight else (logits,)
            loss, accuracy = cross_entropy(logits, batch["label"], config.loss.average)
            for more in auxiliary:
                loss += config.auxiliary.weight * cross_entropy(more, batch["label"], config.loss.average)[0]
            return loss, (accuracy, changed.get("batch_stats", {}))

        params = mesh.constrain(state.params, everywhere) if config.shard_state else state.params
        (loss, (accuracy, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        gradients = mesh.constrain(gradients, shardings.params)
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

    def start(variables) -> State:
        return State(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(variables["params"]),
        )

    shapes = jax.eval_shape(lambda: start(init_variables(config)))
    shardings = state_sharding(device_mesh, shapes, config.shard_state)
    initial_state = jax.jit(start, out_shardings=shardings)
    jitted = jax.jit(step, in_shardings=(shardings, data), out_shardings=(shardings, everywhere), donate_argnums=0)
    return initial_state, jitted
