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

from cp2_jax.augment import compose
from cp2_jax.augment.compose import AugmentOptions, Pair
from cp2_jax.pretraining import memory_bank, metrics
from cp2_jax.pretraining.forward import Learned, build_models, make_encode_keys, make_learn
from cp2_jax.pretraining.placement import Placement
from cp2_jax.runs import mesh, optim, rngs


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


def init_variables(config: ConfigDict, seed: int | Int[Array, ""] | None = None) -> dict:
    """Return the query encoder's variables {'params', 'batch_stats'}, initialised at random.

    `seed` (int, may be traced) is drawn from instead of `config.seed`.
    """
    model, _ = build_models(config)
    images = jnp.zeros((config.bn_groups, config.image_size, config.image_size, 3))
    variables = model.init(rngs.key(config.seed if seed is None else seed, "init"), images, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
    variables: Any = None,
    seed: int | Int[Array, ""] | None = None,
) -> State:
    """Return the state before the first step.

    Args:
      config: a pretraining config (see `configs/`).
      optimizer: from `optim.make`.
      variables: {'params', 'batch_stats'} to start from instead of `init_variables` (see `warm_start`).
      seed: drawn from instead of `config.seed`; may be traced.

    The key encoder starts as a copy of the query encoder, the queue as random unit vectors; `loss.queue_start` says
    whether these count as negatives.
    """
    seed = config.seed if seed is None else seed
    if variables is None:
        variables = init_variables(config, seed)
    params, batch_stats = variables["params"], variables["batch_stats"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        # Copies, not aliases: a donated buffer may appear only once in a state.
        key_params=jax.tree.map(jnp.copy, params),
        key_batch_stats=jax.tree.map(jnp.copy, batch_stats),
        opt_state=optimizer.init(params),
        queue=memory_bank.init(
            rngs.key(seed, "queue"), config.loss.queue_size, config.batch_size, config.model.projection_dim
        ),
    )


def state_sharding(device_mesh: Mesh, state: State, split: bool = False) -> State:
    """Return the placement of a state: the queue's rows are split as a batch is, the rest is replicated.

    With `split` (`config.shard_state`), both encoders' parameters and the optimiser's state are split over the devices.
    """
    everywhere = jax.tree.map(lambda _: mesh.replicated(device_mesh), state)
    names = ("params", "key_params", "opt_state")
    large = {name: mesh.split_largest(device_mesh, getattr(state, name), split) for name in names}
    return everywhere.replace(queue=mesh.batch_sharding(device_mesh, axis=1), **large)


def make_update(
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    device_mesh: Mesh | None = None,
) -> Callable[..., tuple[State, metrics.PretrainMetrics]]:
    """Return `update(state, pair, permutation=None)`: one training step on composed images (the paper's section 3.1).

    `permutation` (int [batch]) applies to the key images before the key encoder and is undone after it, which is how
    MoCo shuffles; None leaves them in place. `device_mesh` is what the arrays are spread over.
    """
    place = Placement(device_mesh, config.shard_state)
    encode_keys, learn = make_encode_keys(config, place), make_learn(config, place)

    def update(state: State, pair: Pair, permutation: Int[Array, " batch"] | None = None):
        # The key encoder moves towards the query encoder, then gives the features of I_k.
        moved = optax.incremental_update(state.params, state.key_params, 1.0 - config.loss.momentum)
        key_params = place.split(moved)
        keys, key_batch_stats = encode_keys(place.whole(key_params), state.key_batch_stats, pair.image_key, permutation)
        # The features of I_q, the losses (equations 2 to 5) and their gradient.
        learned = learn(place.whole(state.params), state.batch_stats, pair, keys, state.queue, state.step)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(learned.gradients, state.opt_state, place.split(state.params))
            params = optax.apply_updates(state.params, updates)
        new_state = State(
            step=state.step + 1,
            params=params,
            batch_stats=learned.batch_stats,
            key_params=key_params,
            key_batch_stats=key_batch_stats,
            opt_state=opt_state,
            queue=memory_bank.enqueue(state.queue, learned.result.pooled_key, state.step),
        )
        return new_state, _metrics(config, learned, new_state, schedule(state.step))

    return update


def _metrics(
    config: ConfigDict, learned: Learned, new_state: State, learning_rate: Float[Array, ""]
) -> metrics.PretrainMetrics:
    """Return what is logged of a step."""
    result = learned.result
    return metrics.PretrainMetrics.single_from_model_output(
        loss=result.loss,
        loss_instance=result.loss_instance,
        loss_dense=result.loss_dense,
        accuracy_instance=result.accuracy_instance,
        accuracy_dense=result.accuracy_dense,
        learned_dense=result.learned_dense,
        feature_std=metrics.feature_std(result.pooled_query),
        gradient_norm=optax.tree.norm(learned.gradients),
        skipped_samples=result.skipped * config.accumulate,
        queue_age=memory_bank.age(new_state.queue, new_state.step),
        learning_rate=learning_rate,
    )


def make_train(
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    device_mesh: Mesh | None = None,
) -> Callable[..., tuple[State, metrics.PretrainMetrics]]:
    """Return `train(state, batch, seed)`: one whole training step, from crops on (see `make_step` for the batch).

    `seed` (int, may be traced) is what augmentation and shuffling draw from: one compiled program serves many seeds.
    """
    update = make_update(config, optimizer, schedule, device_mesh)
    options = AugmentOptions.from_config(config)

    def train(state: State, batch: dict[str, Array], seed: int | Int[Array, ""]):
        key = rngs.key(seed, "augment", state.step)
        pair = jax.named_scope("augment")(compose.compose_batch)(key, batch, options, config.model.dtype)
        pair = mesh.constrain_batch(pair, device_mesh)
        permutation = None
        if config.key_shuffle == "permutation":
            permutation = jax.random.permutation(rngs.key(seed, "shuffle", state.step), config.batch_size)
        return update(state, pair, permutation)

    return train


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a global batch as the step of `make_step` takes it."""
    crops = jax.ShapeDtypeStruct((config.batch_size, 2, config.image_size, config.image_size, 3), jnp.uint8)
    batch = {"foreground": crops}
    if config.data.backgrounds == "independent":
        batch["background"] = crops
    if config.augment.mask == "attention":
        batch["attention"] = jax.ShapeDtypeStruct(crops.shape[:-1], jnp.uint8)
    return batch


def make_step(config: ConfigDict, total_steps: int, steps_per_epoch: int, device_mesh: Mesh):
    """Return `(initial_state, step)`: the placed state and the jitted step that donates it.

    Args:
      config: a validated pretraining config.
      total_steps, steps_per_epoch: the length of the run, for the schedule.
      device_mesh: from `mesh.make_mesh`.

    Returns:
      initial_state: function of optional variables (see `init_state`) giving a `State` placed on the mesh.
      step: `(state, batch) -> (state, PretrainMetrics)`; batch is {'foreground', 'background'}: uint8
        [batch, 2, height, width, 3], the two crops of a sample's image and one crop for each of its backgrounds
        (without 'background' where `config.data.backgrounds` is "in_batch"; with 'attention', uint8 [batch, 2, height,
        width], for the mask of that name).
    """
    schedule = optim.schedule(config.optimizer, total_steps, steps_per_epoch)
    optimizer = optim.make(config.optimizer, schedule)
    train = make_train(config, optimizer, schedule, device_mesh)

    shapes = jax.eval_shape(lambda: init_state(config, optimizer))
    shardings = state_sharding(device_mesh, shapes, config.shard_state)

    def initial_state(variables=None) -> State:
        return jax.jit(lambda v: init_state(config, optimizer, v), out_shardings=shardings)(variables)

    data = mesh.batch_sharding(device_mesh)
    jitted = jax.jit(
        lambda state, batch: train(state, batch, config.seed),
        in_shardings=(shardings, dict.fromkeys(abstract_batch(config), data)),
        out_shardings=(shardings, mesh.replicated(device_mesh)),
        donate_argnums=0,
    )
    return initial_state, jitted
