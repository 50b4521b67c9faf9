"""The study of Quick Tuning: does CP² pay, as a short pretraining from a checkpoint that image-level contrast has made?

For each seed one MoCo v2 pretraining; from that checkpoint each arm of `ARMS` goes on for as many images (or as many
operations); then each is finetuned on few labels, of two numbers, with the same batches, and judged by a linear classifier
on frozen maps and by the probes. A finished arm of a seed is one JSON file in `workdir/cells`, and is not made again; the
checkpoints are in `workdir/models`. Seeds are trained together where that is faster (`seeds`).
"""

import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cp2_jax.convert import warm_start
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.data.labelled import examples
from cp2_jax.data.labelled.stream import training_dataset, training_options
from cp2_jax.options import ConfigError
from cp2_jax.pretraining import options as pretrain_options
from cp2_jax.reproduce import judging, seeds, study
from cp2_jax.reproduce.recipes import NO_COPY_PASTE
from cp2_jax.runs import checkpoints, mesh, settings
from cp2_jax.segmentation import options as finetune_options

MOCO = NO_COPY_PASTE | {"model.head": "pool", "model.resnet.output_stride": 32}
# Random vectors in the bank would reward a fresh projection for making all images alike (configs/pretrain.py:quick_tune).
_TUNED = {"loss.queue_start": "keys"}


@dataclasses.dataclass(frozen=True)
class Arm:
    """What becomes of a seed's MoCo v2 checkpoint.

    Attributes:
      title: for the tables.
      overrides: of the pretraining config; None: nothing is trained.
      head: what finetuning starts its head from.
      trained: the arm whose training this one shares.
      equal_compute: as many steps as cost what CP²'s do, rather than as many.
      start: "tuned": backbone from the checkpoint, the rest at random; "continued": all of it; "scratch": nothing.
      later: added when the results of the others were known; the studies make it on request alone.
    """

    title: str
    overrides: Mapping[str, Any] | None = None
    head: str = "checkpoint"
    trained: str = ""
    equal_compute: bool = False
    start: str = "tuned"
    later: bool = False


ARMS = {
    "scratch": Arm("from scratch", head="random", start="scratch"),
    "nothing": Arm("the checkpoint, nothing more", head="random", start="continued"),
    "continued": Arm("MoCo v2 continued, equal images", MOCO | _TUNED, "random", start="continued"),
    "continued_compute": Arm(
        "MoCo v2 continued, equal compute", MOCO | _TUNED, "random", equal_compute=True, start="continued"
    ),
    # Of the network that will be finetuned the stride alone: what of CP²'s gain does it explain?
    "continued_fine": Arm(
        "MoCo v2 continued, finetuning's stride",
        NO_COPY_PASTE | {"model.head": "pool"} | _TUNED,
        "random",
        start="continued",
        later=True,
    ),
    "no_copy_paste": Arm("no copy-paste", NO_COPY_PASTE | _TUNED),
    "instance_only": Arm("instance loss only", {"loss.alpha": 0.0} | _TUNED),
    "dense_only": Arm("dense loss only", {"loss.alpha_instance": 0.0} | _TUNED),
    "cp2": Arm("entire CP²", _TUNED),
    "cp2_random_head": Arm("entire CP², random head", _TUNED, "random", trained="cp2"),
}


class QuickTuning:
    """One study.

    Args:
      config: see `configs/study_cpu.py`.
      workdir: see the head of this module.

    Raises:
      ConfigError: for an impossible config, an unknown arm, or a work directory that holds another study.
    """

    def __init__(self, config: ConfigDict, workdir: str | pathlib.Path):
        if unknown := [name for name in config.methods if name not in ARMS]:
            raise ConfigError(f"methods={unknown[0]}: must be one of {', '.join(ARMS)}")
        if len(config.labels) != 2 or min(config.labels) < 1:
            raise ConfigError(f"labels={config.labels}: give two numbers of labelled images, e.g. (20, 80)")
        self.config, self.workdir = config, pathlib.Path(workdir).absolute()
        for overrides in (MOCO, *(arm.overrides or {} for arm in ARMS.values())):
            pretrain_options.check(self.pretraining(overrides), jax.device_count())
        finetune_options.check(config.finetune, jax.device_count())
        self.source = TfdsSource(config.pretrain.data.path, config.pretrain.data.split)
        self.judge = judging.Judge(config, mesh.make_mesh())
        self._kept: dict[tuple, list] = {}  # batches of the group that is at work
        own = {"base_steps": config.base_steps, "labels": list(config.labels)}
        study.claim(self.workdir, config, {"study": own})

    def run(self) -> None:
        """Make all cells that are not there yet, one group of seeds after the other.

        Raises:
          NonFiniteLoss: naming the step; cells that are finished stay.
        """
        for group in seeds.groups(self.config.seeds, self.config.seeds_at_once):
            self._kept.clear()
            for name in self.config.methods:
                if not all(self.cell_path(name, seed).exists() for seed in group):
                    self.arm(name, group)

    def cell_path(self, name: str, seed: int) -> pathlib.Path:
        """Return where an arm's result of one seed is, or will be."""
        return self.workdir / "cells" / f"{name}_{seed}.json"

    def pretraining(self, overrides: Mapping[str, Any], steps: int = 0) -> ConfigDict:
        """Return the pretraining config with these changes, and this length if it is given."""
        config = ConfigDict(self.config.pretrain.to_dict())
        config.update_from_flattened_dict(dict(overrides) | ({"steps": steps} if steps else {}))
        return config

    def arm(self, name: str, group: Sequence[int]) -> list[dict]:
        """Make one arm for a group of seeds; return what its files hold.

        Args:
          name: in `ARMS`.
          group: seeds of initial weights, crops and labels.

        Raises:
          NonFiniteLoss: see `run`.
        """
        arm, begin = ARMS[name], time.monotonic()
        variables, how = self._trained(name, group)
        less, more = (self._finetuned(variables, arm, group, labels) for labels in self.config.labels)
        frozen = self._frozen(variables, group)
        cells = []
        for index, seed in enumerate(group):
            found = self.judge.probes(self._probed(arm), seeds.of_seed(variables, index))
            scores = {"finetuned": less[index], "finetuned_more": more[index], "frozen": frozen[index]}
            result = {
                "table": "quick_tuning",
                "row": arm.title,
                "method": name,
                "seed": seed,
                "values": {key: float(value) for key, value in (scores | found).items()},
                "pretraining": how,
                "seconds": round((time.monotonic() - begin) / len(group), 1),
                "together": len(group),
            }
            cells.append(study.write_cell(self.cell_path(name, seed), result))
        return cells

    # Training.

    def _trained(self, name: str, group: Sequence[int]) -> tuple[dict, dict]:
        """Return the variables of an arm, from disk if they are there, and how they came about."""
        arm = ARMS[name]
        if arm.trained:
            return self._trained(arm.trained, group)
        if arm.start == "scratch":
            return seeds.initial_variables(self.pretraining({}), group), {"steps": 0, "images": 0, "last": {}}
        if arm.overrides is None:
            return self._base(group)
        return self._stored(name, group, lambda: self._train(name, group))

    def _base(self, group: Sequence[int]) -> tuple[dict, dict]:
        """Return the checkpoint that all arms start from: MoCo v2's."""

        def make():
            config = self.pretraining(MOCO, self.config.base_steps)
            return self._pretrain(config, group, seeds.initial_variables(config, group), "base", 0)

        return self._stored("base", group, make)

    def _train(self, name: str, group: Sequence[int]) -> tuple[dict, dict]:
        arm = ARMS[name]
        config = self.pretraining(arm.overrides)
        if arm.equal_compute:
            config.steps = round(config.steps * self._step_ratio)
        start, _ = self._base(group)
        if arm.start == "tuned":
            start, _ = warm_start.merge(seeds.initial_variables(config, group), start, "random", "random")
        return self._pretrain(config, group, start, name, self.config.base_steps)

    def _pretrain(self, config: ConfigDict, group: Sequence[int], start: dict, name: str, first: int) -> tuple[dict, dict]:
        """Train on the batches from number `first` on."""
        begin, per_epoch = time.monotonic(), settings.steps_per_epoch(len(self.source), config.batch_size)
        folder = self.workdir / "stages" / f"{name}_{'_'.join(map(str, group))}"
        batches = self._crops(group, first, config.steps)
        variables, last = seeds.pretrain(config, group, start, batches, per_epoch, folder)
        how = {"steps": config.steps, "images": config.steps * config.batch_size, "last": last}
        return variables, how | {"seconds": round(time.monotonic() - begin, 1)}

    def _stored(self, name: str, group: Sequence[int], make: Callable[[], tuple[dict, dict]]) -> tuple[dict, dict]:
        """Return what `make` gives, kept on disk for each seed."""
        folders = [self.workdir / "models" / f"{name}_{seed}" for seed in group]
        if not all(any(folder.glob("*/state")) for folder in folders):
            variables, how = make()
            for index, folder in enumerate(folders):
                if not any(folder.glob("*/state")):
                    one = jax.tree.map(np.asarray, seeds.of_seed(variables, index))
                    checkpoints.write_variables(folder, one, {"kind": "study", "how": how})
        read = [checkpoints.read_variables(folder) for folder in folders]
        return seeds.stack([variables for variables, _ in read]), read[0][1]["how"]

    @functools.cached_property
    def _step_ratio(self) -> float:
        """Steps of MoCo v2 that cost what one of CP² does."""
        cp2, moco = (study.flops(self.pretraining(ARMS[name].overrides)) for name in ("cp2", "continued_compute"))
        return cp2 / moco

    # Batches: drawn once for all arms of a group.

    def _crops(self, group: Sequence[int], first: int, steps: int) -> Iterator[dict]:
        config = self.config.pretrain
        keep = config.steps if first else 0  # what all arms see; the checkpoint's own batches are used once

        def draw(start):
            each = [judging.crops(config, self.source, config.batch_size, seed, start) for seed in group]
            return map(seeds.stack, zip(*each, strict=True))

        if keep and ("crops", first) not in self._kept:
            self._kept["crops", first] = list(itertools.islice(draw(first), keep))
        yield from self._kept.get(("crops", first), [])[:steps]
        if steps > keep:
            yield from itertools.islice(draw(first + keep), steps - keep)

    def _labelled(self, seed: int, labels: int) -> examples.Examples:
        data = self.config.finetune.data
        return examples.open_examples(data, data.split, labels, seed)

    def _batches(self, group: Sequence[int], labels: int) -> list[dict]:
        if ("labelled", labels) not in self._kept:
            config = self.config.finetune
            options = training_options(config.data)
            each = [
                training_dataset(self._labelled(seed, labels), batch_size=config.batch_size, seed=seed, options=options)
                for seed in group
            ]
            drawn = zip(*map(iter, each), strict=True)
            self._kept["labelled", labels] = [seeds.stack(b) for b in itertools.islice(drawn, config.steps)]
        return self._kept["labelled", labels]

    # Judging.

    def _finetuned(self, variables: dict, arm: Arm, group: Sequence[int], labels: int) -> list[float]:
        """Return the mean IoU of each seed after finetuning on so many labels."""
        config = self.config.finetune
        start = seeds.initial_segmenters(config, group)
        if arm.start != "scratch":
            start, _ = warm_start.merge(start, variables, arm.head)
        folder = self.workdir / "stages" / "finetuning"
        tuned, _ = seeds.finetune(config, group, start, iter(self._batches(group, labels)), folder)
        each = (self.judge.evaluator(seeds.of_seed(tuned, index)) for index in range(len(group)))
        return [float(result.scores.mean_iou) for result in each]

    def _frozen(self, variables: dict, group: Sequence[int]) -> np.ndarray:
        """Return the mean IoU of a linear classifier on frozen maps, from the smaller number of labels."""
        few = min(self.config.labels)
        train = [judging.arrays(self._labelled(seed, few)) for seed in group]
        test = judging.arrays(self.judge.evaluator.examples)
        stacked = tuple(np.stack(part) for part in zip(*train, strict=True))
        return seeds.frozen_scores(self.config.pretrain, variables, stacked, test, len(self.judge.evaluator.names))

    def _probed(self, arm: Arm) -> ConfigDict:
        """Return the config whose network an arm's variables are."""
        nothing = MOCO if arm.start == "continued" else {}
        return self.pretraining(nothing if arm.overrides is None else arm.overrides)
