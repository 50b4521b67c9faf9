"""The losses of CP2, equations 2 to 5: pure functions of features, masks and queue.

Notation follows the paper: features f are l2-normalised per pixel, a superscript + means foreground. Everything is
computed in the dtype of the features, which the training step makes float32 (float64 in the parity tests).
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from cp2_jax.options import one_of

# How the dense loss normalises its softmax. "key": over the key's pixels for each query pixel, as equation 2 says.
# "query": over the query's pixels for each key pixel, as the released code computes it (main.py:293).
DENSE_AXES = {"key": 2, "query": 1}

# Without it, TPUs multiply float32 matrices in bfloat16 and recent GPUs in TensorFloat-32.
_EXACT = jax.lax.Precision.HIGHEST
_NO_NEGATIVE = -1e30  # its exponential is zero beside any logit's


def l2_normalize(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Divide by max(norm of the last axis, 1e-12), as `torch.nn.functional.normalize`; the gradient at zero is finite."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    # The inner `where` keeps sqrt's infinite slope at zero out of the backward pass.
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return x / jnp.where(square > 0, jnp.maximum(norm, 1e-12), 1.0)


def masked_pool(
    features: Float[Array, "batch height width channels"], mask: Float[Array, "batch height width"]
) -> Float[Array, "batch channels"]:
    """Normalised masked average of the foreground features (equation 4).

    Args:
      features: l2-normalised per pixel.
      mask: 1 = foreground, 0 = background, at the features' resolution.

    Returns:
      Unit vectors; zero for a sample without foreground.
    """
    return l2_normalize(jnp.einsum("bhwc,bhw->bc", features, mask, precision=_EXACT))


@flax.struct.dataclass
class InstanceLoss:
    """Result of `instance_loss`; `loss` and `correct` are per sample, `logits_positive` is already divided by tau."""

    loss: Float[Array, " batch"]
    correct: Bool[Array, " batch"]
    logits_positive: Float[Array, " batch"]


def instance_loss(
    query: Float[Array, "batch channels"],
    key: Float[Array, "batch channels"],
    queue: Float[Array, "rows row_size channels"],
    *,
    temperature: float,
    filled: Int[Array, ""] | None = None,
) -> InstanceLoss:
    """InfoNCE of each query against its key and the memory bank (equation 3).

    Args:
      query: pooled, normalised queries q+.
      key: pooled, normalised keys k+ of the same images.
      queue: the memory bank; any leading split of its vectors gives the same loss.
      temperature: tau_ins, 0.2 in the paper.
      filled: number of the queue's first rows that count as negatives; None: all. With 0 the loss is 0.

    Returns:
      Per-sample losses, and whether the positive has the highest logit.
    """
    positive = jnp.sum(query * key, axis=-1) / temperature
    negative = jnp.einsum("bc,rnc->brn", query, queue, precision=_EXACT) / temperature
    if filled is not None:
        # Not -inf: a log-sum-exp of nothing but that has no gradient.
        negative = jnp.where((jnp.arange(queue.shape[0]) < filled)[:, None], negative, _NO_NEGATIVE)
    # The positive enters the log-sum-exp by `logaddexp`, so that the big array of negatives is never copied to
    # append one column and stays split over devices as the queue is.
    loss = jnp.logaddexp(positive, jax.nn.logsumexp(negative, axis=(1, 2))) - positive
    return InstanceLoss(loss=loss, correct=positive > jnp.max(negative, axis=(1, 2)), logits_positive=positive)


@flax.struct.dataclass
class DenseLoss:
    """Result of `dense_loss`, per sample; `accuracy` is the share of foreground query pixels whose most similar key
    pixel is foreground, `learned` how far the loss went from `uniform` to `best` (see `dense_loss_range`)."""

    loss: Float[Array, " batch"]
    accuracy: Float[Array, " batch"]
    learned: Float[Array, " batch"]
    valid: Bool[Array, " batch"]


def dense_loss_range(
    count_query: Float[Array, " batch"],
    count_key: Float[Array, " batch"],
    pixels: tuple[int, int],
    temperature: float,
    axis: str = "key",
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """Return what the dense loss is when nothing is learned, and the lowest value that it can have.

    Nothing is learned when all similarities are equal: ln N for a softmax over N pixels. The lowest value has all positive
    pairs at similarity 1 and all others at -1, for the positives stand in each other's denominator: with n of N pixels
    foreground it is ln(n + (N - n) exp(-2/temperature)). At the paper's temperature of 1 that is close to ln N: of a
    14 x 14 map with a foreground of 65%, 4.92 and 5.28.

    Args:
      count_query, count_key: foreground pixels of each sample.
      pixels: of the query's map, of the key's.
      temperature, axis: see `dense_loss`.

    Raises:
      ConfigError: for an unknown axis.
    """
    one_of("axis", axis, DENSE_AXES)
    softmax_axis = DENSE_AXES[axis]
    count, total = ((count_query, pixels[0]), (count_key, pixels[1]))[softmax_axis - 1]
    uniform = jnp.full_like(count, jnp.log(total))
    return uniform, jnp.log(jnp.maximum(count + (total - count) * jnp.exp(-2 / temperature), 1e-30))


def dense_loss(
    query: Float[Array, "batch pixels channels"],
    key: Float[Array, "batch key_pixels channels"],
    mask_query: Float[Array, "batch pixels"],
    mask_key: Float[Array, "batch key_pixels"],
    *,
    temperature: float,
    axis: str = "key",
    skip_full: bool = True,
) -> DenseLoss:
    """Pixel-wise contrastive loss of each sample (equation 2).

    Args:
      query, key: features, l2-normalised per pixel.
      mask_query, mask_key: 1 = foreground, 0 = background.
      temperature: tau_dense, 1 in the paper.
      axis: "key" (equation 2) or "query" (the released code); see `DENSE_AXES`.
      skip_full: leave out samples with a full mask, which have no background to be told from. False computes their
        loss by the formula, as the released code does.

    Returns:
      Per-sample losses. A sample one of whose masks is empty (or full, see `skip_full`) has loss and accuracy 0, and
      its `valid` is False.

    Raises:
      ConfigError: for an unknown axis.
    """
    one_of("axis", axis, DENSE_AXES)
    softmax_axis = DENSE_AXES[axis]
    logits = jnp.einsum("bqc,bkc->bqk", query, key, precision=_EXACT) / temperature
    count_query, count_key = jnp.sum(mask_query, axis=1), jnp.sum(mask_key, axis=1)
    valid = (count_query > 0) & (count_key > 0)
    if skip_full:
        valid &= (count_query < mask_query.shape[1]) & (count_key < mask_key.shape[1])
    # -1/(|F+q||F+k|) sum log softmax splits into a mean of log-sum-exps less the mean of the positive logits, and that
    # mean is a product of pooled features: no second pass over the pixels-by-pixels array.
    safe_query, safe_key = jnp.where(valid, count_query, 1), jnp.where(valid, count_key, 1)
    mean_query = jnp.einsum("bqc,bq->bc", query, mask_query / safe_query[:, None], precision=_EXACT)
    mean_key = jnp.einsum("bkc,bk->bc", key, mask_key / safe_key[:, None], precision=_EXACT)
    positive = jnp.sum(mean_query * mean_key, axis=1)
    log_partition = jax.nn.logsumexp(logits, axis=softmax_axis)
    if axis == "key":
        mean_partition = jnp.sum(log_partition * mask_query, axis=1) / safe_query
    else:
        mean_partition = jnp.sum(log_partition * mask_key, axis=1) / safe_key
    loss = mean_partition - positive / temperature

    foreground = jnp.where(mask_key[:, None, :] > 0, logits, -jnp.inf).max(axis=2)
    background = jnp.where(mask_key[:, None, :] > 0, -jnp.inf, logits).max(axis=2)
    accuracy = jnp.sum((foreground > background) * mask_query, axis=1) / safe_query
    uniform, best = dense_loss_range(count_query, count_key, logits.shape[1:], temperature, axis)
    learned = (uniform - loss) / jnp.where(uniform > best, uniform - best, 1)
    loss, accuracy, learned = (jnp.where(valid, x, 0) for x in (loss, accuracy, learned))
    return DenseLoss(loss=loss, accuracy=accuracy, learned=learned, valid=valid)


@flax.struct.dataclass
class Cp2Loss:
    """Result of `cp2_loss`: scalars over the batch, and the pooled keys that go into the queue. All are means over the
    samples but for `learned_dense`, over the share `usable_dense` of them that has a dense loss, and `skipped`, a count."""

    loss: Float[Array, ""]
    loss_instance: Float[Array, ""]
    loss_dense: Float[Array, ""]
    accuracy_instance: Float[Array, ""]
    accuracy_dense: Float[Array, ""]
    learned_dense: Float[Array, ""]
    usable_dense: Float[Array, ""]
    skipped: Float[Array, ""]
    pooled_query: Float[Array, "batch channels"]
    pooled_key: Float[Array, "batch channels"]


def cp2_loss(
    query: Float[Array, "batch height width channels"],
    key: Float[Array, "batch height width channels"],
    mask_query: Float[Array, "batch height width"],
    mask_key: Float[Array, "batch height width"],
    queue: Float[Array, "rows row_size channels"],
    *,
    temperature_instance: float,
    temperature_dense: float,
    alpha: float,
    alpha_instance: float = 1.0,
    dense_axis: str = "key",
    skip_full_masks: bool = True,
    filled: Int[Array, ""] | None = None,
) -> Cp2Loss:
    """Total loss, L = L_ins + alpha L_dense (equation 5), averaged over the batch.

    Args:
      query, key: the model's outputs, not yet normalised; `key` from outside of what is differentiated.
      mask_query, mask_key: foreground masks at the features' resolution (`compose.feature_mask`), 1 = foreground.
      queue: the memory bank.
      temperature_instance, temperature_dense, alpha: 0.2, 1 and 0.2 in the paper.
      alpha_instance: weight of the instance loss; 0 gives the ablation "dense loss only" (Table 6).
      dense_axis, skip_full_masks: see `dense_loss`; measured only where `alpha` is 0. filled: see `instance_loss`.

    Returns:
      Scalars. An empty mask adds 0 to both losses, a full one adds 0 to the dense loss; both are counted in `skipped`,
      a full one only where the dense loss has a weight (without it, full masks are what was asked for).

    Raises:
      ValueError: shapes that do not fit; outside `jax.jit`, where values are known, also a mask above 1.
      ConfigError: for an unknown `dense_axis`.
    """
    _check(query, key, (mask_query, mask_key), queue)
    query, key = l2_normalize(query), l2_normalize(key)
    pooled_query, pooled_key = masked_pool(query, mask_query), masked_pool(key, mask_key)
    instance = instance_loss(pooled_query, pooled_key, queue, temperature=temperature_instance, filled=filled)
    dense = dense_loss(
        *map(as_pixels, (query, key, mask_query, mask_key)),
        temperature=temperature_dense,
        axis=dense_axis,
        skip_full=skip_full_masks,
    )
    present = (jnp.sum(mask_query, axis=(1, 2)) > 0) & (jnp.sum(mask_key, axis=(1, 2)) > 0)
    loss_instance = jnp.mean(jnp.where(present, instance.loss, 0))
    loss_dense = jnp.mean(dense.loss)
    usable = present & dense.valid if alpha else present
    dtype = loss_instance.dtype
    return Cp2Loss(
        loss=alpha_instance * loss_instance + alpha * loss_dense,
        loss_instance=loss_instance,
        loss_dense=loss_dense,
        accuracy_instance=jnp.mean((instance.correct & present).astype(dtype)),
        accuracy_dense=jnp.mean(dense.accuracy.astype(dtype)),
        learned_dense=(jnp.sum(dense.learned) / jnp.maximum(jnp.sum(dense.valid), 1)).astype(dtype),
        usable_dense=jnp.mean(dense.valid.astype(dtype)),
        skipped=jnp.sum(~usable).astype(dtype),
        pooled_query=pooled_query,
        pooled_key=pooled_key,
    )


def as_pixels(maps: Float[Array, "batch height width *channels"]) -> Float[Array, "batch pixels *channels"]:
    """Return features or masks with the pixels of an image in one axis."""
    return maps.reshape(len(maps), -1, *maps.shape[3:])


def _check(query: Array, key: Array, masks: tuple[Array, Array], queue: Array) -> None:
    """Refuse what has other shapes than `cp2_loss` takes, with what to do."""
    for name, features, mask in (("query", query, masks[0]), ("key", key, masks[1])):
        if features.ndim != 4:
            raise ValueError(f"{name} of shape {features.shape}: features [batch, height, width, channels] are needed")
        if mask.shape != features.shape[:3]:
            raise ValueError(
                f"mask_{name} of shape {mask.shape} does not fit features {features.shape} of [batch, height, width, "
                "channels]: `augment.compose.feature_mask` brings a mask of an image to their resolution"
            )
        if not isinstance(mask, jax.core.Tracer) and mask.size and float(mask.max()) > 1:
            raise ValueError(f"mask_{name} has values up to {float(mask.max()):g}: 1 is foreground, 0 background")
    if (query.shape[0], query.shape[-1]) != (key.shape[0], key.shape[-1]):
        raise ValueError(f"query of shape {query.shape} and key of shape {key.shape}: images and channels must be as many")
    if queue.ndim != 3 or queue.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"queue of shape {queue.shape}: [rows, row_size, channels] is needed, with the features' {query.shape[-1]} "
            "channels (`memory_bank.init`); of keys [size, channels] take queue[None]"
        )
