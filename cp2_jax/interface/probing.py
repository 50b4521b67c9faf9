"""What the features of a checkpoint know about a labelled data set, without any finetuning."""

import dataclasses
import logging
import os

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cp2_jax import config_files
from cp2_jax.data.labelled import classes, survey
from cp2_jax.data.labelled.examples import open_examples
from cp2_jax.features import load
from cp2_jax.interface import kinds, ranges
from cp2_jax.interface.embedding import one_map
from cp2_jax.options import ConfigError, at_least_1, nearest_multiples
from cp2_jax.segmentation import frozen
from cp2_jax.segmentation.confusion import Scores


def probe(
    checkpoint: str | os.PathLike,
    data: str | os.PathLike | None = None,
    *,
    config: str | ConfigDict = "finetune_folder",
    features: str = "backbone",
    size: int = 224,
    cells: int = 20_000,
    k: int = 20,
) -> dict[str, Scores]:
    """Score frozen features by a linear classifier and by nearest neighbours on labelled images.

    Example:
      cp2_jax.probe("runs/photos", "my_data")["linear"].mean_iou

    Args:
      checkpoint: a run, one step of it, or a converted checkpoint.
      data: folder with images/{train,val}, labels/{train,val} and classes.txt; None: `config.data.path`.
      config: name of a finetuning config, or a config; its section `data` says what the images and classes are.
      features: see `load`; not "stages".
      size, cells, k: see `segmentation.frozen.score`.

    Returns:
      {"linear": scores, "knn": scores}.

    Raises:
      CheckpointError: there is no checkpoint, or it has no such features.
      ConfigError: there is no such kind of features, the size is no multiple of their stride, a number is below 1, or the
        config is no finetuning config.
      SegmentationError, SourceError: the images or masks cannot be opened.
    """
    one_map(features)
    for key, value in (("size", size), ("cells", cells), ("k", k)):
        at_least_1(key, value)
    config = config.copy_and_resolve_references() if isinstance(config, ConfigDict) else config_files.load(config)
    if data:
        kinds.refuse_a_model(data, "a folder of labelled images")
        config.data.path = os.path.expanduser(os.fspath(data))
    if config.kind != "finetune":
        raise ConfigError("a probe needs labelled images: give a finetuning config")
    classes.resolve(config)
    kinds.refuse_images(checkpoint)
    model, variables = load(checkpoint, features)
    if size % model.stride:
        raise ConfigError(f"size={size}: must be a multiple of {model.stride}; use {nearest_multiples(size, model.stride)}")
    ranges.follow(config, ranges.of_checkpoint(checkpoint), checkpoint)
    train = open_examples(config.data, config.data.split, config.data.limit, config.data.limit_seed)
    test = open_examples(config.data, config.data.eval_split, config.evaluation.limit)
    if shared := survey.shared_images(train, test, config.data.split, config.data.eval_split):
        logging.warning(shared)
    compute = jax.jit(model)
    numbers = {"size": size, "cells": cells, "k": k}
    found = frozen.score(
        lambda images: compute(variables, jnp.asarray(images)), train, test, config.data.num_classes, **numbers
    )
    return {kind: dataclasses.replace(scores, class_names=tuple(config.data.class_names)) for kind, scores in found.items()}
