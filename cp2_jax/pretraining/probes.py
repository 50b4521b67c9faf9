"""Probes of representation quality: what dense and pooled features can do, long before finetuning tells.

Pure functions of features and masks, float32. A collapsed encoder shows as an AUC of 0.5, chance retrieval and an
effective rank of 1; progress as all three rising.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cp2_jax.pretraining.losses import as_pixels, l2_normalize, masked_pool

_EXACT = jax.lax.Precision.HIGHEST


def separability(
    query: Float[Array, "batch pixels channels"],
    key: Float[Array, "batch key_pixels channels"],
    mask_query: Float[Array, "batch pixels"],
    mask_key: Float[Array, "batch key_pixels"],
) -> Float[Array, " batch"]:
    """AUC of dense similarity: how surely a foreground pixel of the query finds foreground in the key.

    For one foreground query pixel: the probability that a random foreground pixel of the key is more similar to it than a
    random background pixel is, ties counting half (the area under the ROC curve of the cosine similarity). Averaged over
    the query's foreground.

    Args:
      query, key: dense features, of any length.
      mask_query, mask_key: 1 = foreground, 0 = background, of the features' pixels.

    Returns:
      One value a sample, 0.5 by chance; nan where the query has no foreground or the key lacks either kind.
    """

    def of_pixel(similarity, mask):
        negatives = jnp.sort(jnp.where(mask > 0, jnp.inf, similarity))
        below = jnp.searchsorted(negatives, similarity, side="left")
        not_above = jnp.searchsorted(negatives, similarity, side="right")
        wins = jnp.sum(jnp.where(mask > 0, (below + not_above) / 2, 0))
        return wins / (jnp.sum(mask) * jnp.sum(1 - mask))

    def of_sample(query, key, mask_query, mask_key):
        similarity = jnp.einsum("qc,kc->qk", l2_normalize(query), l2_normalize(key), precision=_EXACT)
        areas = jax.vmap(of_pixel, (0, None))(similarity, mask_key)
        return jnp.sum(jnp.where(mask_query > 0, areas, 0)) / jnp.sum(mask_query)

    return jax.vmap(of_sample)(query, key, mask_query, mask_key)


def retrieval(query: Float[Array, "count channels"], key: Float[Array, "count channels"]) -> Float[Array, ""]:
    """Share of the queries whose most similar key, of all, is their own. Of equal ones the first counts: 1/count when
    all features are the same."""
    similarity = jnp.einsum("qc,kc->qk", l2_normalize(query), l2_normalize(key), precision=_EXACT)
    return jnp.mean(jnp.argmax(similarity, axis=1) == jnp.arange(query.shape[0]), dtype=similarity.dtype)


def spectrum(features: Float[Array, "count channels"]) -> Float[Array, " rank"]:
    """Singular values of the features, made unit vectors first, as shares of their sum, largest first."""
    values = jnp.linalg.svd(l2_normalize(features), compute_uv=False)
    return values / jnp.sum(values)


def effective_rank(shares: Float[Array, " rank"]) -> Float[Array, ""]:
    """exp(entropy) of a `spectrum` (Roy and Vetterli 2007; RankMe, Garrido et al. 2023): how many directions are in use.

    1 when all features point the same way, n when n directions are equally strong.
    """
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(shares, shares)))


def measure(
    query: Float[Array, "batch height width channels"],
    key: Float[Array, "batch height width channels"],
    mask_query: Float[Array, "batch height width"],
    mask_key: Float[Array, "batch height width"],
) -> dict[str, Array]:
    """All probes of a batch of pairs: scalars 'auc', 'retrieval' and 'effective_rank', and 'spectrum' of shape (rank,).

    Retrieval and spectrum are those of the pooled foreground (equation 4), of keys and queries respectively.
    """
    unit_query, unit_key = l2_normalize(query), l2_normalize(key)
    pooled_query, pooled_key = masked_pool(unit_query, mask_query), masked_pool(unit_key, mask_key)
    areas = separability(*map(as_pixels, (unit_query, unit_key, mask_query, mask_key)))
    shares = spectrum(pooled_query)
    return {
        "auc": jnp.nanmean(areas),
        "retrieval": retrieval(pooled_query, pooled_key),
        "effective_rank": effective_rank(shares),
        "spectrum": shares,
    }


def scalars(measured: Mapping[str, Mapping[str, Array]]) -> dict[str, float]:
    """Return {'<level>_<probe>': number} of what `measure` gave for each level of features, without the spectra.

    Args:
      measured: level to name to value, scalars and spectra (any shape).
    """
    named = ((f"{level}_{name}", value) for level, values in measured.items() for name, value in values.items())
    return {name: float(value) for name, value in named if not name.endswith("_spectrum")}
