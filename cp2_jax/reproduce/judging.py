"""How a study judges a pretrained model: finetuned on few labels, by a linear classifier on frozen features, by the probes.

Everything is compiled once for all methods and seeds of a study.
"""

import dataclasses
import functools
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from cp2_jax.augment import compose
from cp2_jax.convert import warm_start
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.labelled import examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.models import inputs
from cp2_jax.pretraining import forward, hooks, probes
from cp2_jax.runs import mesh, rngs
from cp2_jax.segmentation import confusion, evaluation, frozen
from cp2_jax.segmentation import step as finetune_step


def crops(config: ConfigDict, source: TfdsSource, batch_size: int, seed: int, start_step: int = 0) -> Iterator[dict]:
    """Yield batches of crops as the pretraining step takes them.

    Args:
      config: a pretraining config.
      source: the images.
      batch_size: samples in a batch.
      seed: of crops and order.
      start_step: number of the first batch.
    """
    options = dict(
        image_size=config.image_size, crop_scale=config.data.crop_scale, backgrounds=config.data.backgrounds, threads=2
    )
    for batch in pretrain_dataset(source, batch_size=batch_size, seed=seed, start_step=start_step, **options):
        yield {key: value for key, value in batch.items() if key != "unreadable"}


class Judge:
    """Judges the models of one study.

    Args:
      config: has `pretrain` and `finetune`, two configs.
      device_mesh: of the finetuning.
    """

    def __init__(self, config: ConfigDict, device_mesh: jax.sharding.Mesh):
        self.config, self.device_mesh = config, device_mesh
        self.evaluator = evaluation.Evaluator(config.finetune, device_mesh)

    @functools.cached_property
    def _finetuning(self):
        """(initial state, step, initial variables of a seed) of finetuning: compiled once, whatever the seed."""
        config = self.config.finetune
        start, step = finetune_step.make_step(config, config.steps, 1, self.device_mesh)
        model = finetune_step.build_model(config)
        images = jnp.zeros((1, config.image_size, config.image_size, 3))
        return start, step, jax.jit(lambda key: model.init(key, images, train=False))

    def finetuned(self, variables: dict | None, head: str, seed: int) -> float:
        """Return the mean IoU after finetuning.

        Args:
          variables: {'params', 'batch_stats'} of a pretraining; None: from scratch.
          head: what the head starts from, "checkpoint" or "random".
          seed: of initial weights, labels and their order.
        """
        config = self.config.finetune
        start, step, init = self._finetuning
        initial = init(rngs.key(seed, "init"))
        if variables is not None:
            initial, _ = warm_start.merge(initial, variables, head)
        state = start(initial)
        options = training_options(config.data)
        batches = iter(training_dataset(self._labelled(seed), batch_size=config.batch_size, seed=seed, options=options))
        for _ in range(config.steps):
            state, _ = step(state, mesh.place_batch(self.device_mesh, next(batches)))
        result = self.evaluator({"params": state.params, "batch_stats": state.batch_stats})
        return float(result.scores.mean_iou)

    def _labelled(self, seed: int) -> examples.Examples:
        data = self.config.finetune.data
        return examples.open_examples(data, data.split, data.limit, seed)

    def frozen(self, variables: dict, seed: int) -> float:
        """Return the mean IoU of a linear classifier on the backbone's last map, frozen, from the same few labels."""
        classes = len(self.evaluator.names)
        # The architecture that finetuning has, so that a classifier's output stride is no handicap.
        features = _backbone_features(self.config.pretrain.to_json())
        parts = {kind: {"backbone": held["backbone"]} for kind, held in variables.items() if "backbone" in held}
        train_maps, train_labels = self._maps(self._labelled(seed), features, parts)
        test_maps, test_labels = self._maps(self.evaluator.examples, features, parts)
        stride = train_labels.shape[1] // train_maps.shape[1]
        shares = frozen.cell_shares(train_labels, stride, classes)
        kernel, bias = jax.jit(frozen.fit)(train_maps.reshape(-1, train_maps.shape[-1]), shares.reshape(-1, classes))
        size = test_labels.shape[1:]
        predicted = jnp.concatenate([frozen.predict(m, kernel, bias, size) for m in jnp.array_split(test_maps, 4)])
        matrices = confusion.confusion_matrix(test_labels, predicted, classes)
        return float(confusion.scores(np.asarray(matrices, np.int64).sum(axis=0)).mean_iou)

    def _maps(self, examples, features, variables):
        model = self.config.finetune.model
        images, labels = arrays(examples)
        size = self.config.finetune.evaluation.batch_size
        chunks = (jnp.asarray(images[i : i + size]) for i in range(0, len(images), size))
        chunks = [inputs.normalize(chunk, model.mean, model.std) for chunk in chunks]
        return jnp.concatenate([features(variables, chunk) for chunk in chunks]), jnp.asarray(labels)

    @functools.cached_property
    def _held_out(self) -> dict:
        config = self.config.pretrain
        held_out = TfdsSource(config.data.path, config.data.probe_split)
        return next(crops(config, held_out, config.probe_images, seed=0))

    @functools.cached_property
    def _pair(self) -> compose.Pair:
        """Held-out pairs, the same for all methods and seeds."""
        return hooks.probe_pairs(self.config.pretrain, self._held_out)

    @functools.cached_property
    def _scattered(self) -> compose.Pair:
        """The same images pasted by random blocks, which are as often at the border as in the middle."""
        options = dataclasses.replace(compose.AugmentOptions.from_config(self.config.pretrain), mask="blocks")
        return jax.jit(compose.compose_batch, static_argnums=2)(rngs.key(0, "probe"), self._held_out, options)

    def probes(self, config: ConfigDict, variables: dict) -> dict[str, float]:
        """Return what the probes measure, by name.

        `…_auc_anywhere` is the AUC on pairs that are pasted by random blocks. A rectangle of half an image or more covers
        the middle, so that position alone tells much of its pixels from the others'; of blocks it tells nothing.

        Args:
          config: of the model's pretraining.
          variables: {'params', 'batch_stats'}.
        """
        config = config.copy_and_resolve_references()
        # The same weights at the output stride that finetuning has (parameters do not depend on it).
        config.model[config.model.backbone] = self.config.pretrain.model[config.model.backbone]
        probe = _probe(config.to_json())
        found = probes.scalars(probe(variables, self._pair))
        scattered = probes.scalars(probe(variables, self._scattered))
        return found | {f"{name}_anywhere": scattered[name] for name in scattered if name.endswith("_auc")}


def arrays(found: examples.Examples) -> tuple[UInt8[np.ndarray, "count h w 3"], UInt8[np.ndarray, "count h w"]]:
    """Return all images and labels of a split whose images are of one size."""
    images, labels = zip(*(found.load(index) for index in range(len(found))), strict=True)
    return np.stack(images), np.stack(labels)


# Compiled functions by the config they are made from (JSON, for it can be hashed): once a process.


@functools.lru_cache(maxsize=4)
def _backbone_features(config: str):
    model, _ = forward.build_models(ConfigDict(json.loads(config)))
    return jax.jit(lambda variables, images: model.apply(variables, images, method="stages")[-1])


@functools.lru_cache(maxsize=4)
def _probe(config: str):
    return hooks.make_probe(ConfigDict(json.loads(config)))
