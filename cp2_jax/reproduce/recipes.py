"""How each cell of the paper is made: start, pretraining, finetuning; as configs of this project and overrides of them.

A recipe is plain data and knows nothing of tables: cells that the paper got from the same runs share one (CP2 QT r.800 on
PASCAL VOC stands in six tables) and are run once. What the configs' variants know (weight decay follows the head, a ViT's
optimiser) is written there alone: a recipe only names variants.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from cp2_jax import config_files
from cp2_jax.reproduce.needs import CHECKPOINTS, DATA_SETS
from cp2_jax.reproduce.paper import Cell, cells


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and what changes in it.

    Attributes:
      config: with its variants, such as "finetune_voc:vit,baseline".
      overrides: key → value, as after `--config.`.
    """

    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def name(self) -> str:
        """Return a name for folders that two runs share exactly if they are the same."""
        return f"{self.config.replace(':', '-').replace(',', '-')}-{fingerprint(self.overrides)}"

    def resolve(self) -> ConfigDict:
        """Return the whole config.

        Raises:
          ConfigError: if there is no such config or variant.
        """
        config = config_files.load(self.config)
        config.update_from_flattened_dict(dict(self.overrides))
        return config


def fingerprint(changes: Mapping[str, Any]) -> str:
    """Return eight letters and digits that two sets of changes share exactly if they are the same."""
    return hashlib.sha256(json.dumps(sorted(changes.items()), default=list).encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The chain that makes one number.

    Attributes:
      source: a key of `needs.CHECKPOINTS`, converted first; "" where pretraining starts from nothing.
      pretrain: None where the source itself is finetuned.
      finetune: the run that is evaluated.
      data: a key of `needs.DATA_SETS`.
      seeds: how many runs the paper averages.
      convert: options of the converter beyond those of `needs.CHECKPOINTS`, such as {"heads": "12"}.
    """

    source: str
    pretrain: Run | None
    finetune: Run
    data: str
    seeds: int = 1
    convert: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def start(self) -> str:
        """Return the name of what the chain starts from, which two recipes share exactly if it is the same."""
        if not self.source:
            return "scratch"
        return f"{self.source}-{fingerprint(self.convert)}" if self.convert else self.source


def recipe(cell: Cell) -> Recipe:
    """Return how a cell is made.

    Raises:
      KeyError: for a cell that is not in the paper's tables.
    """
    return _RECIPES[cell.table](cell.row, cell.column)


@functools.cache
def all_recipes() -> dict[Cell, Recipe]:
    """Return every cell of the paper with its recipe."""
    return {cell: recipe(cell) for cell in cells()}


_BACKBONES = {"r.200": ("r50", "moco_v2_200"), "r.800": ("r50", "moco_v2_800"), "v.300": ("vit", "moco_v2_vit_300")}
_OTHERS = {
    "supervised": "supervised",
    "MoCo": "moco_200",
    "SimCLR": "simclr_1000",
    "BYOL": "byol_300",
    "InfoMin": "infomin_800",
    "InsLoc": "insloc_400",
    "DetCon": "detcon_1000",
    "PixPro": "pixpro_400",
}


def _finetune(data: str, backbone: str, head: str, pretrained_head: bool, extra: Mapping[str, Any] | None = None) -> Run:
    """Return the finetuning of a model on a data set; a head that starts at random is the variant `baseline`'s."""
    variants = [backbone, head] + ["baseline"] * (not pretrained_head)
    return Run(f"{DATA_SETS[data].finetune}:{','.join(variants)}", dict(extra or {}))


def _baseline(source: str, data: str, backbone: str = "r50", head: str = "aspp") -> Recipe:
    return Recipe(source, None, _finetune(data, backbone, head, False, CHECKPOINTS[source].finetune), data)


def _scratch(data: str, head: str = "aspp", pretrained_head: bool = True) -> Recipe:
    return Recipe("", Run(f"pretrain:r50,{head}"), _finetune(data, "r50", head, pretrained_head), data)


def _quick_tune(
    start: str,
    data: str,
    head: str = "aspp",
    changes: Mapping[str, Any] | None = None,
    pretrained_head: bool = True,
    seeds: int = 1,
) -> Recipe:
    backbone, source = _BACKBONES[start]
    pretrain = Run(f"quick_tune:{backbone},{head}", dict(changes or {}))
    return Recipe(source, pretrain, _finetune(data, backbone, head, pretrained_head), data, seeds)


def _main_table(head: str, row: str, column: str) -> Recipe:
    if row in _OTHERS:
        return _baseline(_OTHERS[row], column, head=head)
    if row == "CP2":
        return _scratch(column, head)
    method, _, start = row.rpartition(" ")
    if method == "CP2 QT":
        return _quick_tune(start, column, head)
    backbone, source = _BACKBONES[start]
    return _baseline(source, column, backbone, head)


def _head_table(row: str, column: str) -> Recipe:
    parts, head = row.split(", ")
    start, _, method = parts.partition(" ")
    if method == "MoCo v2":
        return _baseline(_BACKBONES[start][1], column, _BACKBONES[start][0])
    if method == "CP2":
        return _scratch(column, pretrained_head=head != "random")
    return _quick_tune(start, column, pretrained_head=head != "random")


# The whole model under a mask that is full everywhere: no copy-paste, hence no dense loss.
NO_COPY_PASTE = {"augment.mask": "full", "loss.alpha": 0.0}
_MASKS = {
    "no copy-paste": NO_COPY_PASTE,
    "rectangle": {},
    "DINO self-attention": {"augment.mask": "attention"},
    "polygon": {"augment.mask": "polygon"},
    "random blocks": {"augment.mask": "blocks"},
    "random patches": {"augment.mask": "patches"},
}


def _mask_table(row: str, column: str) -> Recipe:
    start = {"ResNet-50": "r.800", "ViT-S/16": "v.300"}[column]
    if row == "baseline MoCo v2":
        return _baseline(_BACKBONES[start][1], "PASCAL", _BACKBONES[start][0])
    return _quick_tune(start, "PASCAL", changes=_MASKS[row])


def _grid_table(row: str, column: str) -> Recipe:
    changes = {"loss.alpha": float(row), "loss.temperature_dense": float(column)}
    default = {"loss.alpha": 0.2, "loss.temperature_dense": 1.0}
    # Only what differs from the default, so that the default shares its runs with the other tables.
    return _quick_tune("r.800", "PASCAL", changes={k: v for k, v in changes.items() if v != default[k]})


def _epochs_table(row: str, column: str) -> Recipe:
    if row == "0":
        return _baseline("moco_v2_800", column)
    return _quick_tune("r.800", column, changes={} if row == "20" else {"epochs": int(row)})


_LOSSES = {
    "no copy-paste": NO_COPY_PASTE,
    "instance loss only": {"loss.alpha": 0.0},
    "dense loss only": {"loss.alpha_instance": 0.0},
    "entire CP2": {},
}


def _loss_table(row: str, column: str) -> Recipe:
    if row == "baseline":
        return _baseline("moco_v2_800", column)
    return _quick_tune("r.800", column, changes=_LOSSES[row])


def _deviation_table(row: str, column: str) -> Recipe:
    return _quick_tune("r.800", column, seeds=3)


_RECIPES = {
    "table1": functools.partial(_main_table, "aspp"),
    "table2": functools.partial(_main_table, "fcn"),
    "table3": _head_table,
    "table4": _mask_table,
    "table5a": _grid_table,
    "table5b": _epochs_table,
    "table6": _loss_table,
    "table7": _deviation_table,
}
