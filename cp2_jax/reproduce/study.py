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
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.options import ConfigError, flatten
from cp2_jax.paths import save_json
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.pretraining import step as pretrain_step
from cp2_jax.reproduce import judging
from cp2_jax.reproduce.recipes import NO_COPY_PASTE
from cp2_jax.runs import checkpoints, mesh, optim, settings
from cp2_jax.runs.loop import NonFiniteLoss
from cp2_jax.segmentation import options as finetune_options


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the study.

    Attributes:
      title: for the tables.
      overrides: of the pretraining config; None: no pretraining.
      head: what finetuning starts its head from.
      pretrained: the method whose pretraining this one shares.
      equal_compute: as many steps as cost what CP2's do, rather than as many.
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
        self.source = TfdsSource(config.pretrain.data.path, config.pretrain.data.split)
        self.judge = judging.Judge(config, mesh.make_mesh())
        self._kept: tuple[int | None, list[dict]] = (None, [])  # the crops of one seed
        claim(self.workdir, self.config)

    def pretrain_config(self, method: Method, seed: int) -> ConfigDict:
        """Return the pretraining config of a cell."""
        config = ConfigDict(self.config.pretrain.to_dict())
        config.update_from_flattened_dict({"seed": seed} | dict(method.overrides or {}))
        return config

    def cell_path(self, name: str, seed: int) -> pathlib.Path:
        """Return where a cell's result is, or will be."""
        return self.workdir / "cells" / f"{name}_{seed}.json"

    def run(self) -> None:
        """Make all cells that are not there yet, seed after seed, so that a part of a study compares all methods.

        Raises:
          NonFiniteLoss: naming the method and the seed; cells that are finished stay.
        """
        for seed in self.config.seeds:
            for name in self.config.methods:
                if not self.cell_path(name, seed).exists():
                    self.cell(name, seed)

    def cell(self, name: str, seed: int) -> dict:
        """Make one cell; return what its file holds.

        Args:
          name: of a method, in `METHODS`.
          seed: of initial weights, crops and labels.

        Raises:
          NonFiniteLoss: see `run`.
        """
        method, begin = METHODS[name], time.monotonic()
        variables, how = self._pretrained(name, seed)
        loaded = self._initial(method, seed) if variables is None else variables
        result = {
            "table": "study",
            "row": method.title,
            "method": name,
            "seed": seed,
            "values": {
                "finetuned": self.judge.finetuned(variables, method.head, seed),
                "frozen": self.judge.frozen(loaded, seed),
            }
            | self.judge.probes(self.pretrain_config(method, 0), loaded),
            "pretraining": how,
            "seconds": round(time.monotonic() - begin, 1),
        }
        return write_cell(self.cell_path(name, seed), result)

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
            raise NonFiniteLoss(f"{method.title}, seed {seed}: the loss is {values['loss']}")
        how = {
            "steps": steps,
            "images": steps * config.batch_size,
            "flops": steps * flops,
            "seconds": round(time.monotonic() - begin, 1),
            "last": values,
        }
        return {"params": state.params, "batch_stats": state.batch_stats}, how

    def _flops(self, method: Method) -> float:
        return flops(self.pretrain_config(method, 0))

    def _crops(self, seed: int, steps: int) -> Iterator[dict]:
        """Yield batches; those of the usual length are drawn once for all methods of a seed."""
        config = self.config.pretrain
        if self._kept[0] != seed:
            batches = judging.crops(config, self.source, config.batch_size, seed)
            self._kept = seed, [next(batches) for _ in range(config.steps)]
        yield from self._kept[1][:steps]
        if steps > config.steps:
            rest = judging.crops(config, self.source, config.batch_size, seed, start_step=config.steps)
            yield from (next(rest) for _ in range(steps - config.steps))


def flops(config: ConfigDict) -> float:
    """Return the operations of one pretraining step, by XLA's count of the program before optimisation."""
    schedule = optim.schedule(config.optimizer, config.steps, 1)
    optimizer = optim.make(config.optimizer, schedule)
    state = jax.eval_shape(lambda: pretrain_step.init_state(config, optimizer))
    lowered = jax.jit(pretrain_step.make_train(config, optimizer, schedule)).lower(
        state, pretrain_step.abstract_batch(config), 0
    )
    return float(lowered.cost_analysis()["flops"])


def claim(workdir: pathlib.Path, config: ConfigDict, more: Mapping[str, Mapping] | None = None) -> None:
    """Write `study.json`: cells of another config must not be mixed with these; seeds and methods may be added.

    Args:
      workdir: made if absent.
      config: its parts `pretrain` and `finetune` are compared, but for where the data are.
      more: other values that must agree.

    Raises:
      ConfigError: if the work directory holds another study.
    """
    path = workdir / "study.json"
    new = settings.as_plain(config)
    new = {name: flatten(new[name]) for name in ("pretrain", "finetune")}
    for values in new.values():
        values.pop("data.path")
    new |= {part: dict(values) for part, values in (more or {}).items()}
    if path.exists() and (old := _upgraded(json.loads(path.read_text("utf-8")))) != new:
        changed = [f"{part}.{k}" for part in new for k in new[part] if old.get(part, {}).get(k) != new[part][k]]
        raise ConfigError(f"{workdir} holds a study with another {', '.join(changed)}; use another --workdir")
    save_json(path, new)


def write_cell(path: pathlib.Path, cell: Mapping) -> dict:
    """Write a cell's result with when and on what it was made, show its values, and return what was written."""
    made = {"date": datetime.date.today().isoformat(), "jax": jax.__version__, "device": jax.devices()[0].device_kind}
    cell = dict(cell) | made
    save_json(path, cell)
    shown = " ".join(f"{key} {value:.4f}" for key, value in cell["values"].items())
    print(f"{cell['method']} seed {cell['seed']}: {shown} ({cell['seconds']} s)", flush=True)
    return cell


def _upgraded(saved: Mapping[str, Mapping]) -> dict[str, dict]:
    """Return the flat configs of a `study.json`, which an older version may have written, as this version has them."""
    nested = {part: traverse_util.unflatten_dict(dict(values), sep=".") for part, values in saved.items()}
    return {
        part: flatten(settings.upgrade(values)) if part in ("pretrain", "finetune") else values
        for part, values in nested.items()
    }


@functools.lru_cache(maxsize=4)
def _init(config: str):
    """Return the compiled initial variables of a seed, by the config as JSON: once a process."""
    return jax.jit(functools.partial(pretrain_step.init_variables, ConfigDict(json.loads(config))))
