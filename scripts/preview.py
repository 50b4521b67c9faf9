"""Look before or after training: composed pairs and masks of a folder of images; what a trained model finds similar.

    python scripts/preview.py --images DIR --output DIR [--config configs/….py]
    python scripts/preview.py --images DIR --output DIR --checkpoint WORKDIR [--point y,x]
The first writes pairs.png and masks.png; the second similarity.png and, from the run's metrics, curves.png.
"""

import dataclasses
import pathlib

import _cli

DEFAULT = str(pathlib.Path(__file__).parents[1] / "configs" / "pretrain_r50_aspp.py")
CONFIG = _cli.config_flags.DEFINE_config_file("config", DEFAULT, "Pretraining config, see configs/.")
IMAGES = _cli.flags.DEFINE_string("images", None, "Folder of images, nested or flat.", required=True)
OUTPUT = _cli.flags.DEFINE_string("output", None, "Folder for the pictures.", required=True)
CHECKPOINT = _cli.flags.DEFINE_string("checkpoint", None, "Work directory of pretraining.")
POINT = _cli.flags.DEFINE_list("point", None, "Pixel y,x of the query image; default: its middle.")
COUNT = _cli.flags.DEFINE_integer("count", 4, "How many samples.", lower_bound=1)

import jax  # noqa: E402
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from cp2_jax import pictures  # noqa: E402
from cp2_jax.augment import compose, masks  # noqa: E402
from cp2_jax.data.images.sources import ImageFolder  # noqa: E402
from cp2_jax.data.images.stream import pretrain_dataset  # noqa: E402
from cp2_jax.models import segmenter  # noqa: E402
from cp2_jax.models.inputs import denormalize  # noqa: E402
from cp2_jax.options import ConfigError  # noqa: E402
from cp2_jax.runs import checkpoints, rngs, writers  # noqa: E402


def main(_):
    config, output = CONFIG.value, pathlib.Path(OUTPUT.value)
    if CHECKPOINT.value:
        variables, meta = checkpoints.read_variables(CHECKPOINT.value)
        if meta.get("kind") != "pretrain":
            raise ConfigError(f"--checkpoint={CHECKPOINT.value} is not of a pretraining run")
        config = ConfigDict(meta["config"])
    size, options = config.image_size, compose.AugmentOptions.from_config(config)
    read = dict(batch_size=COUNT.value, image_size=size, seed=config.seed, crop_scale=config.data.crop_scale)
    crops = next(pretrain_dataset(ImageFolder(IMAGES.value), **read))

    def composed(options):
        pair = jax.jit(compose.compose_batch, static_argnums=2)(rngs.key(config.seed, "augment"), crops, options)
        images = (denormalize(x, options.mean, options.std) for x in (pair.image_query, pair.image_key))
        return jax.tree.map(np.asarray, pair), *images

    pair, query, key = composed(options)
    if not CHECKPOINT.value:
        pictures.save_png(output / "pairs.png", pictures.pairs(query, key, pair.mask_query, pair.mask_key))
        kinds = {kind: composed(dataclasses.replace(options, mask=kind)) for kind in masks.MASKS}
        kinds = {kind: (pair.mask_query[:2], query[:2]) for kind, (pair, query, _) in kinds.items()}
        pictures.save_png(output / "masks.png", pictures.mask_kinds(kinds))
        return
    model = segmenter.build(config.model, top="projection", image_size=size)
    features = jax.jit(lambda images: model.apply(variables, images, train=False))
    found = [np.asarray(features(images)) for images in (pair.image_query, pair.image_key)]
    try:
        y, x = map(int, POINT.value or (size // 2, size // 2))
        rows = [pictures.dense_similarity(*sample, (y, x)) for sample in zip(query, key, *found, strict=True)]
    except ValueError as error:
        raise ConfigError(f"--point: {error}") from error
    pictures.save_png(output / "similarity.png", np.concatenate(rows))
    if (metrics := pathlib.Path(CHECKPOINT.value) / "metrics.jsonl").exists():
        pictures.save_png(output / "curves.png", pictures.curves(writers.read_metrics(metrics)))


if __name__ == "__main__":
    _cli.run(main)
