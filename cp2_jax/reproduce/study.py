"""The small study: the paper's ablations (Tables 1, 3, 4, 6) on data and models that fit a laptop.

A cell is a method and a seed. Its pretraining, then finetuning on few labels and a linear classifier on frozen features,
then the probes; the result is one JSON file. Cells of one seed see the same crops, labels and order of batches, so that
differences between methods are paired. A finished cell is skipped: a study that was stopped goes on where it was.
"""

import dataclasses
import datetime
import functools
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cp2_jax.augment import compose
from cp2_jax.convert import warm_start
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.images.stream import pretrain_dataset
from cp2_jax.data.labelled import examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.models import inputs
from cp2_jax.options import ConfigError, flatten
from cp2_jax.pretraining import forward, hooks, probes
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.reproduce.recipes import NO_COPY_PASTE
from cp2_jax.runs import checkpoints, mesh, optim, rngs, settings
from cp2_jax.segmentation import confusion, evaluation, frozen
from cp2_jax.segmentation import options as finetune_options
from cp2_jax.segmentation import step as finetune_step


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the study.

    title: for the tables. overrides: of the pretraining config; None: no pretraining. head: what finetuning starts its
    head from. pretrained: the method whose pretraining this one shares. equal_compute: as many steps as cost what CP2's
    do, rather than as many.
    """

    title: str
    overrides: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    head: str = "checkpoint"
    pretrained: str = ""
    equal_compute: bool = False


_MOCO = NO_COPY_PASTE | {"model.head": "pool", "model.resnet.output_stride": 32}

METHODS = {
    "scratch": Method("from scratch", None, "random"),
    "cp2": Method("entire CP²"),
    "moco_v2": Method("MoCo v2 mode", _MOCO, "random"),
    "moco_v2_compute": Method("MoCo v2 mode, CP²'s compute", _MOCO, "random", equal_compute=True),
    "no_copy_paste": Method("no copy-paste", NO_COPY_PASTE),
    "instance_only": Method("instance loss only", {"loss.alpha": 0.0}),
    "dense_only": Method("dense loss only", {"loss.alpha_instance": 0.0}),
    "cp2_random_head": Method("entire CP², random head", {}, "random", pretrained="cp2"),
    "query_softmax": Method("entire CP², the original's dense softmax", {"loss.dense_axis": "query"}),
    "polygon": Method("entire CP², polygon masks", {"augment.mask": "polygon"}),
    "blocks": Method("entire CP², random blocks", {"augment.mask": "blocks"}),
    "patches": Method("entire CP², random patches", {"augment.mask": "patches"}),
}


class Study:
    """The cells of one data set and scale.

    Args:
      config: has `pretrain` and `finetune`, two configs as in `configs/`, and `seeds`, `methods`.
      workdir: results go to `workdir/cells`, pretrained models to `workdir/models`.

    Raises:
      ConfigError: for an impossible config, an unknown method, or a work directory that holds another study.
    """

    def __init__(self, config: ConfigDict, workdir: str | pathlib.Path):
        unknown = [name for name in config.methods if name not in METHODS]
        if unknown:
            raise ConfigError(f"methods={unknown[0]}: must be one of {', '.join(METHODS)}")
        self.config, self.workdir = config, pathlib.Path(workdir).absolute()
        for method in METHODS.values():
            pretrain_options.check(self.pretrain_config(method, 0), jax.device_count())
        finetune_options.check(config.finetune, jax.device_count())
        self.device_mesh = mesh.make_mesh()
        data = config.pretrain.data
        self.source = TfdsSource(data.path, data.split)
        self.held_out = TfdsSource(data.path, data.probe_split)
        self.evaluator = evaluation.Evaluator(config.finetune, self.device_mesh)
        self._check_workdir()

    def _check_workdir(self) -> None:
        """Cells of another config must not be mixed with these; seeds and methods may be added."""
        path = self.workdir / "study.json"
        new = settings.as_plain(self.config)
        new = {name: flatten(new[name]) for name in ("pretrain", "finetune")}
        for values in new.values():
            values.pop("data.path")
        if path.exists() and (old := json.loads(path.read_text())) != new:
            changed = [f"{part}.{k}" for part in new for k in new[part] if old[part].get(k) != new[part][k]]
            raise ConfigError(f"{self.workdir} holds a study with another {', '.join(changed)}; use another --workdir")
        self.workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new, indent=1) + "\n")

    def pretrain_config(self, method: Method, seed: int) -> ConfigDict:
        """Return the pretraining config of a cell."""
        config = ConfigDict(self.config.pretrain.to_dict())
        config.update_from_flattened_dict({"seed": seed} | dict(method.overrides or {}))
        return config

    def cell_path(self, name: str, seed: int) -> pathlib.Path:
        """Return where a cell's result is, or will be."""
        return self.workdir / "cells" / f"{name}_{seed}.json"

    def run(self) -> None:
        """Make all cells that are not there yet, seed after seed, so that a part of a study compares all methods."""
        for seed in self.config.seeds:
            for name in self.config.methods:
                if not self.cell_path(name, seed).exists():
                    self.cell(name, seed)

    def cell(self, name: str, seed: int) -> dict:
        """Make one cell; return what its file holds."""
        method, begin = METHODS[name], time.monotonic()
        variables, how = self._pretrained(name, seed)
        loaded = self._initial(method, seed) if variables is None else variables
        result = {
            "table": "study", "row": method.title, "method": name, "seed": seed,
            "values": {
                "finetuned": self._finetune(variables, method.head, seed),
                "frozen": self._frozen(loaded, seed),
            }
            | self._probes(method, loaded),
            "pretraining": how,
            "seconds": round(time.monotonic() - begin, 1),
            "date": datetime.date.today().isoformat(),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
        }  # fmt: skip
        path = self.cell_path(name, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result, indent=1) + "\n")
        temporary.replace(path)
        shown = " ".join(f"{key} {value:.4f}" for key, value in result["values"].items())
        print(f"{name} seed {seed}: {shown} ({result['seconds']} s)", flush=True)
        return result

    # Pretraining.

    def _initial(self, method: Method, seed: int) -> dict:
        return _init(self.pretrain_config(method, 0).to_json())(seed)

    def _pretrained(self, name: str, seed: int) -> tuple[dict | None, dict]:
        """Return the variables of a method's pretraining, from disk if it was done, and how they came about."""
        method = METHODS[name]
        if method.overrides is None:
            return None, {"steps": 0, "images": 0}
        if method.pretrained:
            return self._pretrained(method.pretrained, seed)
        folder = self.workdir / "models" / f"{name}_{seed}"
        if not folder.exists() or not any(folder.glob("*/state")):
            variables, how = self._train(method, seed)
            checkpoints.write_variables(folder, variables, {"kind": "study", "how": how})
        variables, meta = checkpoints.read_variables(folder)
        return variables, meta["how"]

    def _train(self, method: Method, seed: int) -> tuple[dict, dict]:
        config = self.pretrain_config(method, seed)
        steps, flops = config.steps, self._flops(method)
        if method.equal_compute:
            steps = round(steps * self._flops(METHODS["cp2"]) / flops)
        schedule = optim.schedule(config.optimizer, steps, settings.steps_per_epoch(len(self.source), config.batch_size))
        optimizer = optim.make(config.optimizer, schedule)
        state = pretrain_step.init_state(config, optimizer, self._initial(method, seed))
        train = jax.jit(pretrain_step.make_train(config, optimizer, schedule), donate_argnums=0)
        begin, last = time.monotonic(), None
        for batch in self._crops(seed, steps):
            state, last = train(state, batch, seed)
        values = {key: float(value) for key, value in last.compute().items()}
        if not np.isfinite(values["loss"]):
            raise RuntimeError(f"{method.title}, seed {seed}: the loss is {values['loss']}")
        how = {
            "steps": steps, "images": steps * config.batch_size, "flops": steps * flops,
            "seconds": round(time.monotonic() - begin, 1), "last": values,
        }  # fmt: skip
        return {"params": state.params, "batch_stats": state.batch_stats}, how

    def _flops(self, method: Method) -> float:
        """Return the operations of one step, by XLA's count of the program before optimisation."""
        config = self.pretrain_config(method, 0)
        schedule = optim.schedule(config.optimizer, config.steps, 1)
        optimizer = optim.make(config.optimizer, schedule)
        state = jax.eval_shape(lambda: pretrain_step.init_state(config, optimizer))
        lowered = jax.jit(pretrain_step.make_train(config, optimizer, schedule)).lower(
            state, pretrain_step.abstract_batch(config), 0
        )
        return float(lowered.cost_analysis()["flops"])

    def _crops(self, seed: int, steps: int):
        """Yield batches; those of the usual length are drawn once for all methods of a seed."""
        config = self.config.pretrain
        kept = self._kept(seed)
        yield from kept[:steps]
        if steps > config.steps:
            rest = self._read(self.source, config.batch_size, seed, start_step=config.steps)
            yield from (next(rest) for _ in range(steps - config.steps))

    @functools.lru_cache(maxsize=1)  # noqa: B019 one study a process
    def _kept(self, seed: int) -> list[dict]:
        batches = self._read(self.source, self.config.pretrain.batch_size, seed)
        return [next(batches) for _ in range(self.config.pretrain.steps)]

    def _read(self, source, batch_size: int, seed: int, start_step: int = 0):
        config = self.config.pretrain
        options = dict(
            image_size=config.image_size, crop_scale=config.data.crop_scale, backgrounds=config.data.backgrounds, threads=2
        )
        for batch in pretrain_dataset(source, batch_size=batch_size, seed=seed, start_step=start_step, **options):
            yield {key: value for key, value in batch.items() if key != "unreadable"}

    # Judging.

    @functools.cached_property
    def _finetuning(self):
        """(initial state, step, initial variables of a seed) of finetuning: compiled once, whatever the seed."""
        config = self.config.finetune
        start, step = finetune_step.make_step(config, config.steps, 1, self.device_mesh)
        model = finetune_step.build_model(config)
        images = jnp.zeros((1, config.image_size, config.image_size, 3))
        return start, step, jax.jit(lambda key: model.init(key, images, train=False))

    def _finetune(self, variables: dict | None, head: str, seed: int) -> float:
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

    def _frozen(self, variables: dict, seed: int) -> float:
        """Return the mean IoU of a linear classifier on the backbone's last map, frozen, from the same few labels."""
        classes = len(self.evaluator.names)
        # The architecture that finetuning has, so that a classifier's output stride is no handicap.
        features = _backbone_features(self.config.pretrain.to_json())
        parts = {kind: {"backbone": parts["backbone"]} for kind, parts in variables.items()}
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
        images, labels = (np.stack(x) for x in zip(*(examples.load(i) for i in range(len(examples))), strict=True))
        size = self.config.finetune.evaluation.batch_size
        chunks = (jnp.asarray(images[i : i + size]) for i in range(0, len(images), size))
        chunks = [inputs.normalize(chunk, model.mean, model.std) for chunk in chunks]
        return jnp.concatenate([features(variables, chunk) for chunk in chunks]), jnp.asarray(labels)

    @functools.cached_property
    def _pair(self) -> compose.Pair:
        """Held-out pairs, the same for all methods and seeds."""
        config = self.config.pretrain
        return hooks.probe_pairs(config, next(self._read(self.held_out, config.probe_images, seed=0)))

    def _probes(self, method: Method, variables: dict) -> dict[str, float]:
        config = self.pretrain_config(method, 0)
        # The same weights at the output stride that finetuning has (parameters do not depend on it).
        config.model[config.model.backbone] = self.config.pretrain.model[config.model.backbone]
        return probes.scalars(_probe(config.to_json())(variables, self._pair))


# Compiled functions by the config they are made from (JSON, for it can be hashed): once a process.


@functools.lru_cache(maxsize=4)
def _init(config: str):
    return jax.jit(functools.partial(pretrain_step.init_variables, ConfigDict(json.loads(config))))


@functools.lru_cache(maxsize=4)
def _backbone_features(config: str):
    model, _ = forward.build_models(ConfigDict(json.loads(config)))
    return jax.jit(lambda variables, images: model.apply(variables, images, method="stages")[-1])


@functools.lru_cache(maxsize=4)
def _probe(config: str):
    return hooks.make_probe(ConfigDict(json.loads(config)))
