"""CP2 pretraining: the state, its initial value, and the one jitted step (the paper's section 3).

The order of a step: compose the pairs, move the key encoder towards the query encoder, key forward, query forward,
losses, gradient, optimiser, enqueue. The original runs the query first, which computes the same: the momentum update
reads the query parameters before this step's gradient in both.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from cp2_jax import losses, mesh, metrics, optim, queue, rngs
from cp2_jax.augment import compose
from cp2_jax.augment.compose import AugmentOptions, Pair
from cp2_jax.models import segmenter


@flax.struct.dataclass
class State:
    """Everything that training changes. There is no random generator and no queue pointer: both follow from `step`."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    key_params: Any
    key_batch_stats: Any
    opt_state: optax.OptState
    queue: Float[Array, "rows batch channels"]


def build_models(config: ConfigDict) -> tuple[segmenter.Segmenter, segmenter.Segmenter]:
    """Return the query and the key model: the same network, but for how the key's batch-norm groups are laid out.

    With `key_shuffle` "strided", group g of the key's batch norm holds samples g, g + G, g + 2G, …, whereas the query's
    holds a contiguous run. The batch being in random order, that mixes them as MoCo's shuffling does, without moving data.
    """
    build = lambda strided: segmenter.build(  # noqa: E731
        config.model, top="projection", bn_groups=config.bn_groups, bn_strided=strided, image_size=config.image_size
    )
    return build(False), build(config.key_shuffle == "strided")


def init_state(config: ConfigDict, optimizer: optax.GradientTransformation, variables: Any = None) -> State:
    """Return the state before the first step.

    Args:
      config: a pretraining config (see `configs/`).
      optimizer: from `optim.make`.
      variables: {'params', 'batch_stats'} to start from instead of a random initialisation.

    The key encoder starts as a copy of the query encoder, the queue as random unit vectors.
    """
    if variables is None:
        model, _ = build_models(config)
        images = jnp.zeros((config.bn_groups, config.image_size, config.image_size, 3))
        variables = model.init(rngs.key(config.seed, "init"), images, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        # Copies, not aliases: a donated buffer may appear only once in a state.
        key_params=jax.tree.map(jnp.copy, params),
        key_batch_stats=jax.tree.map(jnp.copy, batch_stats),
        opt_state=optimizer.init(params),
        queue=queue.init(
            rngs.key(config.seed, "queue"), config.loss.queue_size, config.batch_size, config.model.projection_dim
        ),
    )


def state_sharding(device_mesh: Mesh, state: State) -> State:
    """Return the placement of a state: replicated, but for the queue, whose rows are split as a batch is."""
    everywhere = jax.tree.map(lambda _: mesh.replicated(device_mesh), state)
    return everywhere.replace(queue=mesh.batch_sharding(device_mesh, axis=1))


def make_update(
    config: ConfigDict, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[..., tuple[State, metrics.PretrainMetrics]]:
    """Return `update(state, pair, permutation=None)`: one training step on composed images.

    `permutation` (int [batch]) applies to the key images before the key encoder and is undone after it, which is how
    MoCo shuffles; None leaves them in place.
    """
    query_model, key_model = build_models(config)
    loss_options = dict(
        temperature_instance=config.loss.temperature_instance,
        temperature_dense=config.loss.temperature_dense,
        alpha=config.loss.alpha,
        alpha_instance=config.loss.alpha_instance,
        dense_axis=config.loss.dense_axis,
        skip_full_masks=config.loss.skip_full_masks,
    )

    def forward(model, params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        features, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return features, changed.get("batch_stats", {})

    def update(state: State, pair: Pair, permutation: Int[Array, "batch"] | None = None):
        key_params = optax.incremental_update(state.params, state.key_params, 1.0 - config.loss.momentum)
        key_images = pair.image_key if permutation is None else pair.image_key[permutation]
        key_features, key_batch_stats = forward(key_model, key_params, state.key_batch_stats, key_images)
        if permutation is not None:
            key_features = key_features[jnp.argsort(permutation)]
        key_features = jax.lax.stop_gradient(key_features)
        stride = pair.image_key.shape[1] // key_features.shape[1]
        mask_query = compose.feature_mask(pair.mask_query, stride)
        mask_key = compose.feature_mask(pair.mask_key, stride)

        def loss_of(params):
            features, batch_stats = forward(query_model, params, state.batch_stats, pair.image_query)
            result = losses.cp2_loss(features, key_features, mask_query, mask_key, state.queue, **loss_options)
            return result.loss, (result, batch_stats)

        gradients, (result, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = State(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            key_params=key_params,
            key_batch_stats=key_batch_stats,
            opt_state=opt_state,
            queue=queue.enqueue(state.queue, result.pooled_key, state.step),
        )
        return new_state, metrics.PretrainMetrics.single_from_model_output(
            loss=result.loss,
            loss_instance=result.loss_instance,
            loss_dense=result.loss_dense,
            accuracy_instance=result.accuracy_instance,
            accuracy_dense=result.accuracy_dense,
            feature_std=metrics.feature_std(result.pooled_query),
            gradient_norm=optax.tree.norm(gradients),
            skipped_samples=result.skipped,
            queue_age=queue.age(new_state.queue, new_state.step),
            learning_rate=schedule(state.step),
        )

    return update


def make_train(
    config: ConfigDict, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[..., tuple[State, metrics.PretrainMetrics]]:
    """Return `train(state, batch, seed)`: one whole training step, from crops on (see `make_step` for the batch).

    `seed` (int, may be traced) is what augmentation and shuffling draw from: one compiled program serves many seeds.
    """
    update = make_update(config, optimizer, schedule)
    options = AugmentOptions.from_config(config.augment)

    def train(state: State, batch: dict[str, Array], seed: int | Int[Array, ""]):
        key = rngs.key(seed, "augment", state.step)
        pair = compose.compose_pairs(key, batch["foreground"], batch["background"], options)
        permutation = None
        if config.key_shuffle == "permutation":
            permutation = jax.random.permutation(rngs.key(seed, "shuffle", state.step), config.batch_size)
        return update(state, pair, permutation)

    return train


def make_step(config: ConfigDict, total_steps: int, steps_per_epoch: int, device_mesh: Mesh):
    """Return `(initial_state, step)`: the placed state and the jitted step that donates it.

    Args:
      config: a validated pretraining config.
      total_steps, steps_per_epoch: the length of the run, for the schedule.
      device_mesh: from `mesh.make_mesh`.

    Returns:
      initial_state: function of optional variables (see `init_state`) giving a `State` placed on the mesh.
      step: `(state, batch) -> (state, PretrainMetrics)`; batch is {'foreground', 'background'}: uint8
        [batch, 2, height, width, 3], the two crops of a sample's image and one crop for each of its backgrounds.
    """
    schedule = optim.schedule(config.optimizer, total_steps, steps_per_epoch)
    optimizer = optim.make(config.optimizer, schedule)
    train = make_train(config, optimizer, schedule)

    shardings = state_sharding(device_mesh, jax.eval_shape(lambda: init_state(config, optimizer)))

    def initial_state(variables=None) -> State:
        return jax.jit(lambda v: init_state(config, optimizer, v), out_shardings=shardings)(variables)

    data = mesh.batch_sharding(device_mesh)
    jitted = jax.jit(
        lambda state, batch: train(state, batch, config.seed),
        in_shardings=(shardings, {"foreground": data, "background": data}),
        out_shardings=(shardings, mesh.replicated(device_mesh)),
        donate_argnums=0,
    )
    return initial_state, jitted
