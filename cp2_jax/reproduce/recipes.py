"""How each cell of the paper is made: start, pretraining, finetuning; as configs of this project and overrides of them.

A recipe is plain data and knows nothing of tables: cells that the paper got from the same runs share one (CP2 QT r.800 on
PASCAL VOC stands in six tables) and are run once.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cp2_jax.models.backbones import BACKBONES
from cp2_jax.reproduce.needs import CHECKPOINTS, DATA_SETS
from cp2_jax.reproduce.paper import Cell, cells


@dataclasses.dataclass(frozen=True)
class Run:
    """A config and what changes in it."""

    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def name(self) -> str:
        """Return a name that two runs share exactly if they are the same."""
        stem = self.config.removeprefix("configs/").removesuffix(".py")
        changes = json.dumps(sorted(self.overrides.items()), default=list)
        return f"{stem}-{hashlib.sha256(changes.encode()).hexdigest()[:8]}"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The chain that makes one number.

    source: a key of `needs.CHECKPOINTS`, converted first; "" where pretraining starts from nothing.
    pretrain: None where the source itself is finetuned. data: a key of `needs.DATA_SETS`. seeds: how many runs the paper
    averages.
    """

    source: str
    pretrain: Run | None
    finetune: Run
    data: str
    seeds: int = 1


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
# The configs' name of a network: the name of its backbone.
_NAMES = {"r50": "resnet", "vit": "vit"}
_OTHERS = {
    "supervised": "supervised", "MoCo": "moco_200", "SimCLR": "simclr_1000", "BYOL": "byol_300", "InfoMin": "infomin_800",
    "InsLoc": "insloc_400", "DetCon": "detcon_1000", "PixPro": "pixpro_400",
}  # fmt: skip


def _finetune(data: str, backbone: str, head: str, pretrained_head: bool, extra: Mapping[str, Any] | None = None) -> Run:
    """Section 4.1: weight decay only where the head starts at random."""
    described = BACKBONES[_NAMES[backbone]]
    decay = described.random_head_decay
    overrides = {} if pretrained_head else {"init.head": "random", "optimizer.weight_decay": decay}
    if head != "aspp":
        overrides["model.head"] = head
    if _NAMES[backbone] != "resnet":  # the configs' own
        overrides["model.backbone"] = _NAMES[backbone]
    overrides |= {f"optimizer.{key}": value for key, value in described.finetune_optimizer.items()}
    return Run(DATA_SETS[data].finetune, overrides | dict(extra or {}))


def _baseline(source: str, data: str, backbone: str = "r50", head: str = "aspp") -> Recipe:
    return Recipe(source, None, _finetune(data, backbone, head, False, CHECKPOINTS[source].finetune), data)


def _scratch(data: str, head: str = "aspp", pretrained_head: bool = True) -> Recipe:
    return Recipe("", Run(f"configs/pretrain_r50_{head}.py"), _finetune(data, "r50", head, pretrained_head), data)


def _quick_tune(
    start: str,
    data: str,
    head: str = "aspp",
    changes: Mapping[str, Any] | None = None,
    pretrained_head: bool = True,
    seeds: int = 1,
) -> Recipe:
    backbone, source = _BACKBONES[start]
    pretrain = Run(f"configs/quick_tune_{backbone}_{head}.py", dict(changes or {}))
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


_FULL = {"augment.mask": "full", "loss.alpha": 0.0}
_MASKS = {
    "no copy-paste": _FULL, "rectangle": {}, "DINO self-attention": {"augment.mask": "attention"},
    "polygon": {"augment.mask": "polygon"}, "random blocks": {"augment.mask": "blocks"},
    "random patches": {"augment.mask": "patches"},
}  # fmt: skip


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
    "no copy-paste": _FULL, "instance loss only": {"loss.alpha": 0.0}, "dense loss only": {"loss.alpha_instance": 0.0},
    "entire CP2": {},
}  # fmt: skip


def _loss_table(row: str, column: str) -> Recipe:
    if row == "baseline":
        return _baseline("moco_v2_800", column)
    return _quick_tune("r.800", column, changes=_LOSSES[row])


_RECIPES = {
    "table1": functools.partial(_main_table, "aspp"),
    "table2": functools.partial(_main_table, "fcn"),
    "table3": _head_table,
    "table4": _mask_table,
    "table5a": _grid_table,
    "table5b": _epochs_table,
    "table6": _loss_table,
    "table7": lambda row, column: _quick_tune("r.800", column, seeds=3),
}
