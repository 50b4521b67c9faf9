"""CP2 pretraining: the state, its initial value, and the one jitted step (the paper's section 3).

The order of a step: compose the pairs, move the key encoder towards the query encoder, key forward, query forward,
losses, gradient, optimiser, enqueue. The original runs the query first, which computes the same: the momentum update
reads the query parameters before this step's gradient in both.
"""

import dataclasses
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
from cp2_jax.models import segmenter
from cp2_jax.pretraining import losses, memory_bank, metrics, microbatches
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


def build_models(config: ConfigDict) -> tuple[segmenter.Segmenter, segmenter.Segmenter]:
    """Return the query and the key model: the same network, but for how the key's batch-norm groups are laid out.

    With `key_shuffle` "strided", group g of the key's batch norm holds samples g, g + G, g + 2G, …, whereas the query's
    holds a contiguous run. The batch being in random order, that mixes them as MoCo's shuffling does, without moving data.
    """
    # A microbatch holds its share of the groups.
    options = dict(bn_groups=config.bn_groups // config.accumulate, image_size=config.image_size, remat=config.remat)
    build = lambda strided: segmenter.build(config.model, top="projection", bn_strided=strided, **options)  # noqa: E731
    return build(False), build(config.key_shuffle == "strided")


def init_variables(config: ConfigDict, seed: int | Int[Array, ""] | None = None) -> dict:
    """Return the query encoder's variables {'params', 'batch_stats'}, initialised at random.

    `seed` (int, may be traced) is drawn from instead of `config.seed`.
    """
    model, _ = build_models(config)
    images = jnp.zeros((config.bn_groups, config.image_size, config.image_size, 3))
    variables = model.init(rngs.key(config.seed if seed is None else seed, "init"), images, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def init_state(config: ConfigDict, optimizer: optax.GradientTransformation, variables: Any = None) -> State:
    """Return the state before the first step.

    Args:
      config: a pretraining config (see `configs/`).
      optimizer: from `optim.make`.
      variables: {'params', 'batch_stats'} to start from instead of `init_variables` (see `warm_start`).

    The key encoder starts as a copy of the query encoder, the queue as random unit vectors; `loss.queue_start` says
    whether these count as negatives.
    """
    if variables is None:
        variables = init_variables(config)
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
            rngs.key(config.seed, "queue"), config.loss.queue_size, config.batch_size, config.model.projection_dim
        ),
    )


def state_sharding(device_mesh: Mesh, state: State, split: bool = False) -> State:
    """Return the placement of a state: the queue's rows are split as a batch is, the rest is replicated.

    With `split` (`config.shard_state`), both encoders' parameters and the optimiser's state are split over the devices.
    """
    everywhere = jax.tree.map(lambda _: mesh.replicated(device_mesh), state)
    large = {name: mesh.split_largest(device_mesh, getattr(state, name), split)
             for name in ("params", "key_params", "opt_state")}  # fmt: skip
    return everywhere.replace(queue=mesh.batch_sharding(device_mesh, axis=1), **large)


def make_update(
    config: ConfigDict,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    device_mesh: Mesh | None = None,
) -> Callable[..., tuple[State, metrics.PretrainMetrics]]:
    """Return `update(state, pair, permutation=None)`: one training step on composed images.

    `permutation` (int [batch]) applies to the key images before the key encoder and is undone after it, which is how
    MoCo shuffles; None leaves them in place. `device_mesh` is what the arrays are spread over.
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
    parts = microbatches.Microbatches(config.accumulate, config.bn_groups, device_mesh=device_mesh)
    key_parts = dataclasses.replace(parts, strided=config.key_shuffle == "strided")
    zero = config.shard_state and device_mesh is not None
    whole = lambda params: mesh.constrain(params, mesh.replicated(device_mesh)) if zero else params  # noqa: E731
    split = lambda params: mesh.constrain(params, mesh.split_largest(device_mesh, params)) if zero else params  # noqa: E731

    def forward(model, params, batch_stats, images):
        variables = {"params": params, "batch_stats": batch_stats}
        features, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return features, changed.get("batch_stats", {})

    def permute(x, order):
        # Told where to put the result, XLA moves the batch once; left alone, it gave every device the whole of it, to
        # encode all keys on each.
        gathered = x if device_mesh is None else mesh.constrain(x, mesh.replicated(device_mesh))
        return mesh.constrain_batch(gathered[order], device_mesh)

    def encode_keys(state, key_params, images):
        def encode(part):
            features, batch_stats = forward(key_model, key_params, state.key_batch_stats, part)
            return batch_stats, features

        batch_stats, features = microbatches.run(encode, key_parts.split(images))
        return key_parts.join(features), batch_stats

    def update(state: State, pair: Pair, permutation: Int[Array, " batch"] | None = None):
        params = whole(state.params)
        key_params = split(optax.incremental_update(state.params, state.key_params, 1.0 - config.loss.momentum))
        key_images = pair.image_key
        if permutation is not None:
            key_images = permute(key_images.astype(config.model.dtype), permutation)  # fewer bytes to move
        key_features, key_batch_stats = jax.named_scope("key_forward")(encode_keys)(state, whole(key_params), key_images)
        if permutation is not None:
            key_features = permute(key_features, jnp.argsort(permutation))
        key_features = jax.lax.stop_gradient(key_features)
        stride = pair.image_key.shape[1] // key_features.shape[1]
        mask_query = compose.feature_mask(pair.mask_query, stride)
        mask_key = compose.feature_mask(pair.mask_key, stride)
        filled = memory_bank.age(state.queue, state.step) if config.loss.queue_start == "keys" else None

        def learn(part):
            images, keys, *masks = part

            def loss_of(params):
                features, batch_stats = jax.named_scope("query")(forward)(query_model, params, state.batch_stats, images)
                cp2_loss = jax.named_scope("losses")(losses.cp2_loss)
                result = cp2_loss(features, keys, *masks, state.queue, filled=filled, **loss_options)
                return result.loss, (result, batch_stats)

            gradients, (result, batch_stats) = jax.grad(loss_of, has_aux=True)(params)
            pooled = result.pooled_query, result.pooled_key
            return (split(gradients), batch_stats, result.replace(pooled_query=None, pooled_key=None)), pooled

        batch = (pair.image_query, key_features, mask_query, mask_key)
        (gradients, batch_stats, result), pooled = microbatches.run(learn, parts.split(batch))
        pooled_query, pooled_key = parts.join(pooled)
        optimize = jax.named_scope("optimizer")(optimizer.update)
        updates, opt_state = optimize(gradients, state.opt_state, split(state.params))
        new_state = State(
            step=state.step + 1,
            params=jax.named_scope("optimizer")(optax.apply_updates)(state.params, updates),
            batch_stats=batch_stats,
            key_params=key_params,
            key_batch_stats=key_batch_stats,
            opt_state=opt_state,
            queue=memory_bank.enqueue(state.queue, pooled_key, state.step),
        )
        return new_state, metrics.PretrainMetrics.single_from_model_output(
            loss=result.loss,
            loss_instance=result.loss_instance,
            loss_dense=result.loss_dense,
            accuracy_instance=result.accuracy_instance,
            accuracy_dense=result.accuracy_dense,
            feature_std=metrics.feature_std(pooled_query),
            gradient_norm=optax.tree.norm(gradients),
            skipped_samples=result.skipped * config.accumulate,
            queue_age=memory_bank.age(new_state.queue, new_state.step),
            learning_rate=schedule(state.step),
        )

    return update


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
        pair = jax.named_scope("augment")(compose.compose_batch)(key, batch, options)
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
