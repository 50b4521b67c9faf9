"""Pictures of a pretraining run while it runs: composed pairs, and what the model finds similar in them."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax import mesh, pictures, pretrain, rngs
from cp2_jax.augment import compose
from cp2_jax.writers import Writer


def pretrain_pictures(
    config: ConfigDict, crops: dict[str, np.ndarray], writer: Writer, device_mesh: Mesh
) -> Callable[[int, pretrain.State], None]:
    """Return a hook `(step, state)` that draws, every `config.picture_every` steps, the same few samples.

    Args:
      config: a pretraining config.
      crops: {'foreground'[, 'background']}: uint8 [count, 2, height, width, 3], as the training step takes them.
      writer: where the pictures go: `pairs` once, `similarity` each time. In the latter, the query's point is the centre of
        its foreground, and the heat map shows the cosine similarity of its feature to every pixel of the key.
      device_mesh: of the state. All processes call the hook; the first draws, on a device of its own.
    """
    options = compose.AugmentOptions.from_config(config.augment)
    foreground = crops["foreground"]
    background = crops["background"] if "background" in crops else compose.in_batch_backgrounds(foreground)
    pair = jax.jit(compose.compose_pairs, static_argnums=3)(
        rngs.key(config.seed, "augment"), foreground, background, options
    )
    query, key = (
        pictures.denormalize(np.asarray(x), options.mean, options.std) for x in (pair.image_query, pair.image_key)
    )
    points = [_centre(mask) for mask in np.asarray(pair.mask_query)]
    model, _ = pretrain.build_models(config)

    @jax.jit
    def features(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return [model.apply(variables, images, train=False) for images in (pair.image_query, pair.image_key)]

    def hook(step: int, state: pretrain.State) -> None:
        if step % config.picture_every and step != 1:
            return
        params, batch_stats = mesh.local_copy(device_mesh, (state.params, state.batch_stats))
        if jax.process_index():
            return
        if step == 1:
            writer.image(step, "pairs", pictures.pairs(query, key, pair.mask_query, pair.mask_key))
        found = [np.asarray(f) for f in features(params, batch_stats)]
        rows = [pictures.dense_similarity(*sample) for sample in zip(query, key, *found, points, strict=True)]
        writer.image(step, "similarity", np.concatenate(rows))

    return hook


def _centre(mask: np.ndarray) -> tuple[int, int]:
    """Return the mean position (y, x) of a mask's foreground, the image's centre for an empty one."""
    where = np.argwhere(mask > 0)
    y, x = where.mean(axis=0) if len(where) else np.array(mask.shape) / 2
    return int(y), int(x)
