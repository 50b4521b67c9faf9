"""A labelled data set whose images say where their classes are: bright on the left of a border, dark on its right."""

import numpy as np
from PIL import Image

from cp2_jax.models.backbones import BACKBONES
from helpers import toy_backbone
from helpers.miniatures import write_pair
from helpers.tiny import tiny_config


def halves_on_disk(root, split, count, size=(32, 40), sizes=None):
    """Write `count` images and masks (value 2 left, 5 right); with `sizes`, image n has the n-th of them, in turn."""
    rng = np.random.default_rng(len(split))
    for number in range(count):
        height, width = sizes[number % len(sizes)] if sizes else size
        border = int(rng.integers(10, width - 10))
        mask = np.ones((height, width), np.uint8) * 5
        mask[:, :border] = 2
        image_path, _ = write_pair(root, f"{number}", size=(height, width), mask=mask, split=split)
        image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8)
        image[:, :border] += 150
        Image.fromarray(image).save(image_path)


def folder_config(root, **changes):
    """Return a tiny finetuning config for `halves_on_disk`."""
    config = tiny_config(**changes)
    config.data.update(path=str(root), images="images", labels="labels", split="train", eval_split="val", resize=())
    config.data.update(label_map=((2, 0), (5, 1)), workers=0)
    config.evaluation.update(resize=(), batch_size=1)
    return config


def finetuned(root, workdir, monkeypatch, steps=2, **changes):
    """Finetune the toy network on `root` for a few steps and return the config; `workdir` is then a run with scores."""
    from cp2_jax.segmentation import run

    config = folder_config(root, steps=steps, batch_size=4, save_every=1, keep=9, eval_every=1)
    monkeypatch.setitem(BACKBONES, "toy", toy_backbone.BACKBONE)
    toy_backbone.choose(config.model)
    config.data.update(num_classes=2, class_names=("left", "right"))
    config.model.num_classes = 2
    config.update_from_flattened_dict(changes)
    run.train(config, workdir)
    return config
