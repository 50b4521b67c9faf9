"""The two halves of a training step that run the network: keys without gradient, then queries with loss and gradient.

Both work through the batch in microbatches (`microbatches`); where the arrays lie is `placement`'s business.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from cp2_jax.augment import compose
from cp2_jax.models import segmenter
from cp2_jax.pretraining import losses, memory_bank, microbatches
from cp2_jax.pretraining.placement import Placement


@flax.struct.dataclass
class Learned:
    """What the queries teach.

    Attributes:
      gradients: of equation 5 by the query encoder's parameters.
      batch_stats: the query encoder's new batch-norm averages.
      result: losses and accuracies, averaged over the microbatches; q+ and k+ (equation 4) of the whole batch.
    """

    gradients: Any
    batch_stats: Any
    result: losses.Cp2Loss


def build_models(config: ConfigDict) -> tuple[segmenter.Segmenter, segmenter.Segmenter]:
    """Return the query and the key model: the same network, but for how the key's batch-norm groups are laid out.

    With `key_shuffle` "strided", group g of the key's batch norm holds samples g, g + G, g + 2G, …, whereas the query's
    holds a contiguous run. The batch being in random order, that mixes them as MoCo's shuffling does, without moving data.
    """
    # A microbatch holds its share of the groups.
    groups = config.bn_groups // config.accumulate

    def build(strided: bool) -> segmenter.Segmenter:
        options = dict(bn_groups=groups, bn_strided=strided, image_size=config.image_size, remat=config.remat)
        return segmenter.build(config.model, top="projection", **options)

    return build(False), build(config.key_shuffle == "strided")


def make_encode_keys(config: ConfigDict, place: Placement) -> Callable[..., tuple[Float[Array, "batch h w channels"], Any]]:
    """Return `encode_keys(params, batch_stats, images, permutation=None)`: the key encoder's forward pass.

    It returns the dense features, float [batch, h, w, channels], cut off from the gradient, and the new batch statistics.
    `permutation`, int [batch], is the order in which the images are put before the encoder; it is undone afterwards, which
    is how MoCo shuffles. None leaves them in place.
    """
    _, model = build_models(config)
    strided = config.key_shuffle == "strided"
    parts = microbatches.Microbatches(config.accumulate, config.bn_groups, strided, place.device_mesh)

    def encode_keys(
        params: Any,
        batch_stats: Any,
        images: Float[Array, "batch height width 3"],
        permutation: Int[Array, " batch"] | None = None,
    ):
        def encode(part):
            features, changed = _forward(model, params, batch_stats, part)
            return changed, features

        if permutation is not None:
            images = place.permute(images.astype(config.model.dtype), permutation)  # fewer bytes to move
        with jax.named_scope("key_forward"):
            new_stats, features = parts.over(encode, images)
        if permutation is not None:
            features = place.permute(features, jnp.argsort(permutation))
        return jax.lax.stop_gradient(features), new_stats

    return encode_keys


def make_learn(config: ConfigDict, place: Placement) -> Callable[..., Learned]:
    """Return `learn(params, batch_stats, pair, keys, queue, step)`: the queries' forward pass, losses and gradient.

    Its arguments are the query encoder's parameters and statistics, the composed images (`augment.compose.Pair`), the keys'
    dense features, the memory bank before this step, and the number of finished steps.
    """
    model, _ = build_models(config)
    parts = microbatches.Microbatches(config.accumulate, config.bn_groups, device_mesh=place.device_mesh)
    loss_options = dict(
        temperature_instance=config.loss.temperature_instance,
        temperature_dense=config.loss.temperature_dense,
        alpha=config.loss.alpha,
        alpha_instance=config.loss.alpha_instance,
        dense_axis=config.loss.dense_axis,
        skip_full_masks=config.loss.skip_full_masks,
    )

    def learn(
        params: Any, batch_stats: Any, pair: compose.Pair, keys: Array, queue: Array, step: Int[Array, ""]
    ) -> Learned:
        stride = pair.image_key.shape[1] // keys.shape[1]
        # Of the booleans that the composition selects by: the masks themselves, 4 bytes a pixel, need not be written.
        masks = (compose.feature_mask(m > 0, stride).astype(m.dtype) for m in (pair.mask_query, pair.mask_key))
        filled = memory_bank.age(queue, step) if config.loss.queue_start == "keys" else None

        def learn_part(part):
            images, keys, *masks = part

            def loss_of(params):
                with jax.named_scope("query"):
                    features, changed = _forward(model, params, batch_stats, images)
                with jax.named_scope("losses"):
                    result = losses.cp2_loss(features, keys, *masks, queue, filled=filled, **loss_options)
                return result.loss, (result, changed)

            gradients, (result, changed) = jax.grad(loss_of, has_aux=True)(params)
            pooled = result.pooled_query, result.pooled_key
            # Microbatches differ in how many samples have a dense loss: their sums can be averaged, their means cannot.
            learned = result.learned_dense * result.usable_dense
            result = result.replace(learned_dense=learned, pooled_query=None, pooled_key=None)
            return (place.share_out(gradients), changed, result), pooled

        averages, pooled = parts.over(learn_part, (pair.image_query, keys, *masks))
        gradients, new_stats, result = averages
        pooled_query, pooled_key = pooled
        learned = result.learned_dense / jnp.where(result.usable_dense > 0, result.usable_dense, 1)
        result = result.replace(learned_dense=learned, pooled_query=pooled_query, pooled_key=pooled_key)
        return Learned(gradients, new_stats, result)

    return learn


def _forward(model: segmenter.Segmenter, params: Any, batch_stats: Any, images: Array) -> tuple[Array, Any]:
    """Return the dense features and the new batch statistics."""
    variables = {"params": params, "batch_stats": batch_stats}
    features, changed = model.apply(variables, images, train=True, mutable=["batch_stats"])
    return features, changed.get("batch_stats", {})
