"""`cp2 preview`: pictures of what a run will see, or of what it has learned."""

import types

from cp2_jax.cli import command
from cp2_jax.cli.errors import UsageError
from cp2_jax.paths import at

TEXT = """\
Look before or after training: composed pairs and masks of a folder of images;
what a trained model finds similar.

  cp2 preview photos preview [--config NAME]
  cp2 preview photos preview --checkpoint WORKDIR [--point y,x]

The first writes pairs.png and masks.png; the second similarity.png and, from
the run's metrics, curves.png."""


def _options(made):
    command.place(made, "images", "folder of images, nested or flat")
    command.place(made, "output", "folder for the pictures")
    made.add_argument("--checkpoint", metavar="WORKDIR", type=command.path, help="work directory of a pretraining")
    made.add_argument("--point", metavar="Y,X", type=_point, help="pixel of the query image; default: its middle")
    made.add_argument("--count", metavar="N", type=command.whole(1), default=4, help="how many samples (%(default)s)")


def _point(text):
    try:
        y, x = map(int, text.split(","))
    except ValueError as error:
        raise UsageError(f"--point={text}: give two whole numbers, such as 100,80") from error
    return y, x


def _opened(images, split):
    """Open a folder of images, shards, or a TFDS data set, as `cp2 pretrain IMAGES …` does."""
    from cp2_jax.data.images.sources import open_source, source_of
    from cp2_jax.interface.kinds import is_tfds

    kind = "tfds" if is_tfds(images) else source_of(images)
    return open_source(types.SimpleNamespace(source=kind, path=str(images), split=split))


def _run(arguments):
    import dataclasses

    import jax
    import numpy as np
    from ml_collections import ConfigDict

    from cp2_jax import pictures
    from cp2_jax.augment import compose, masks
    from cp2_jax.data.images.stream import pretrain_dataset
    from cp2_jax.interface import kinds
    from cp2_jax.models import segmenter
    from cp2_jax.models.inputs import denormalize
    from cp2_jax.runs import checkpoints, rngs, settings, writers

    output = at(arguments.output)
    kinds.refuse_a_model(arguments.images)
    kinds.refuse_images(arguments.checkpoint)
    config = command.changed(arguments.config or COMMAND.config, arguments.changes)
    settings.check_kind(config, "pretrain")
    if arguments.checkpoint:
        variables, meta = checkpoints.read_variables(arguments.checkpoint)
        if meta.get("kind") != "pretrain":
            raise UsageError(f"--checkpoint={arguments.checkpoint} is not of a pretraining run")
        config = ConfigDict(meta["config"])
    size, options = config.image_size, compose.AugmentOptions.from_config(config)
    read = dict(batch_size=arguments.count, image_size=size, seed=config.seed, crop_scale=config.data.crop_scale)
    crops = next(pretrain_dataset(_opened(arguments.images, config.data.split), **read))

    def composed(options):
        pair = jax.jit(compose.compose_batch, static_argnums=2)(rngs.key(config.seed, "augment"), crops, options)
        images = (denormalize(x, options.mean, options.std) for x in (pair.image_query, pair.image_key))
        return jax.tree.map(np.asarray, pair), *images

    pair, query, key = composed(options)
    if not arguments.checkpoint:
        pictures.save_png(output / "pairs.png", pictures.pairs(query, key, pair.mask_query, pair.mask_key))
        kinds = {kind: composed(dataclasses.replace(options, mask=kind)) for kind in masks.MASKS}
        kinds = {kind: (pair.mask_query[:2], query[:2]) for kind, (pair, query, _) in kinds.items()}
        pictures.save_png(output / "masks.png", pictures.mask_kinds(kinds))
        chosen = f" --config {arguments.config}" if arguments.config else ""
        print(f"pairs.png and masks.png in {output}\nnext: cp2 pretrain {arguments.images} WORKDIR{chosen}")
        return
    model = segmenter.build(config.model, top="projection", image_size=size)
    features = jax.jit(lambda images: model.apply(variables, images, train=False))
    found = [np.asarray(features(images)) for images in (pair.image_query, pair.image_key)]
    try:
        y, x = arguments.point or (size // 2, size // 2)
        title = f"{arguments.checkpoint}: what in the key resembles one point of the query (outlined: the same foreground)"
        drawn = pictures.dense_similarity(query, key, *found, [(y, x)] * len(query), pair.mask_key, title)
    except ValueError as error:
        raise UsageError(f"--point: {error}") from error
    pictures.save_png(output / "similarity.png", drawn)
    print(f"similarity.png in {output}")
    if (metrics := at(arguments.checkpoint) / "metrics.jsonl").exists():
        pictures.save_png(output / "curves.png", pictures.curves(writers.read_metrics(metrics)))


COMMAND = command.Command(TEXT, _options, _run, config="pretrain")
