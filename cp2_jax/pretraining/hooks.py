"""A pretraining run while it runs: pictures of pairs and of what the model finds similar, probes of its features."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cp2_jax import pictures
from cp2_jax.augment import compose
from cp2_jax.models.inputs import denormalize
from cp2_jax.pretraining import forward, probes
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.runs import mesh, rngs
from cp2_jax.runs.writers import Writer


def pretrain_pictures(
    config: ConfigDict, crops: dict[str, np.ndarray], writer: Writer, device_mesh: Mesh, last: int
) -> Callable[[int, pretrain_step.State], None]:
    """Return a hook `(step, state)` that draws, every `config.picture_every` steps and at the end, the same few samples.

    Args:
      config: a pretraining config.
      crops: {'foreground'[, 'background']}: uint8 [count, 2, height, width, 3], as the training step takes them.
      writer: where the pictures go: `pairs` once, `similarity` each time. In the latter, the query's point is the centre of
        its foreground, and the heat map shows the cosine similarity of its feature to every pixel of the key.
      device_mesh: of the state. All processes call the hook; the first draws, on a device of its own.
      last: number of the run's last step.
    """
    options = compose.AugmentOptions.from_config(config)
    pair = jax.jit(compose.compose_batch, static_argnums=2)(rngs.key(config.seed, "augment"), crops, options)
    query, key = (denormalize(np.asarray(x), options.mean, options.std) for x in (pair.image_query, pair.image_key))
    points = [_centre(mask) for mask in np.asarray(pair.mask_query)]
    model, _ = forward.build_models(config)

    @jax.jit
    def features(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        levels = [model.apply(variables, i, method="levels") for i in (pair.image_query, pair.image_key)]
        # MoCo's output is one pixel: there the backbone's map is shown.
        return [level.get("output", level["backbone"]) for level in levels]

    def hook(step: int, state: pretrain_step.State) -> None:
        if step % config.picture_every and step not in (1, last):
            return
        params, batch_stats = mesh.local_copy(device_mesh, (state.params, state.batch_stats))
        if jax.process_index():
            return
        if step == 1:
            writer.image(step, "pairs", pictures.pairs(query, key, pair.mask_query, pair.mask_key))
        found = [np.asarray(f) for f in features(params, batch_stats)]
        title = f"After step {step}: what in the key resembles one point of the query (outlined: the same foreground)"
        drawn = pictures.dense_similarity(query, key, *found, points, np.asarray(pair.mask_key), title)
        writer.image(step, "similarity", drawn)

    return hook


def probe_pairs(config: ConfigDict, crops: dict[str, np.ndarray]) -> compose.Pair:
    """Return the pairs that probes look at. Their masks are rectangles in every run, so that runs can be compared.

    Args:
      config: of a pretraining.
      crops: what the pipeline yields: uint8 'foreground' (batch, 2, height, width, 3), and the backgrounds.
    """
    options = dataclasses.replace(compose.AugmentOptions.from_config(config), mask="rectangle")
    return jax.jit(compose.compose_batch, static_argnums=2)(rngs.key(0, "probe"), crops, options)


def make_probe(config: ConfigDict) -> Callable[[dict, compose.Pair], dict[str, dict[str, jax.Array]]]:
    """Return a compiled `(variables, pair) -> {level: what probes.measure gives}`.

    Levels are the 'backbone' and, if it is dense, the 'output'. Features are computed in pieces of `config.batch_size`
    pairs, which are known to fit into memory.
    """
    model, _ = forward.build_models(config)

    @jax.jit
    def probe(variables, pair):
        def look(image):
            return jax.tree.map(lambda x: x[0], model.apply(variables, image[None], method="levels"))

        images = (pair.image_query, pair.image_key)
        query, key = (jax.lax.map(look, i, batch_size=min(config.batch_size, len(i))) for i in images)
        found = {}
        for level in query:
            stride = pair.mask_query.shape[1] // query[level].shape[1]
            masks = [compose.feature_mask(mask, stride) for mask in (pair.mask_query, pair.mask_key)]
            found[level] = probes.measure(query[level], key[level], *masks)
        return found

    return probe


def pretrain_probes(
    config: ConfigDict, crops: dict[str, np.ndarray], writer: Writer, device_mesh: Mesh, last: int
) -> Callable[[int, pretrain_step.State], None]:
    """Return a hook `(step, state)` that probes the query encoder every `config.probe_every` steps and at the end.

    Args:
      config: a pretraining config.
      crops: as of `pretrain_pictures`, of `config.probe_images` samples, best of images that are not trained on.
      writer: gets `probe/<level>_<probe>`, and a warning where a level has collapsed.
      device_mesh: of the state. All processes call the hook; the first probes, on a device of its own.
      last: number of the run's last step.
    """
    pair, probe = probe_pairs(config, crops), make_probe(config)

    def hook(step: int, state: pretrain_step.State) -> None:
        if step % config.probe_every and step != last:
            return
        params, batch_stats = mesh.local_copy(device_mesh, (state.params, state.batch_stats))
        if jax.process_index():
            return
        found = probe({"params": params, "batch_stats": batch_stats}, pair)
        values = {f"probe/{name}": value for name, value in probes.scalars(found).items()}
        writer.scalars(step, values)
        if collapsed := collapse(values, len(pair.mask_query)):
            writer.text(f"step {step}: the features have collapsed ({collapsed}); see docs/results.md")

    return hook


def collapse(values: dict[str, float], count: int) -> str:
    """Return which level of probed values has collapsed: its features all point nearly one way, and find their own among
    `count` no better than by chance. "" for none."""
    levels = {name.removesuffix("_effective_rank") for name in values if name.endswith("_effective_rank")}
    bad = [
        f"{level.removeprefix('probe/')}: effective rank {values[f'{level}_effective_rank']:.2f}, retrieval "
        f"{values[f'{level}_retrieval']:.1%}"
        for level in sorted(levels)
        if values[f"{level}_effective_rank"] < 1.5 and values[f"{level}_retrieval"] <= 2 / count
    ]
    return "; ".join(bad)


def _centre(mask: np.ndarray) -> tuple[int, int]:
    """Return the mean position (y, x) of a mask's foreground, the image's centre for an empty one."""
    where = np.argwhere(mask > 0)
    y, x = where.mean(axis=0) if len(where) else np.array(mask.shape) / 2
    return int(y), int(x)
