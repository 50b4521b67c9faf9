"""Haiku's nested dicts (BYOL, DetCon): their ResNet's names, and how to flatten them."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from cp2_jax.convert.containers.values import Inert, Refused
from cp2_jax.convert.layouts import Layout, flat, oihw

_HAIKU = r".*/~/"
_HAIKU_BLOCK = rf"{_HAIKU}block_group_([0-3])/~/block_(\d+)/~/"
_HAIKU_LEAF = {"scale": "weight", "offset": "bias", "mean_ema": "running_mean", "var_ema": "running_var"}
_HAIKU_NORM = r"(?:/(scale|offset)|/~/(mean_ema|var_ema)/average)"


def _haiku_block(match: re.Match) -> str:
    layer = f"backbone.layer{int(match[1]) + 1}.{match[2]}"
    which = "downsample.1" if match[3] == "shortcut_batchnorm" else f"bn{int(match[3][-1]) + 1}"
    return f"{layer}.{which}.{_HAIKU_LEAF[match[4] or match[5]]}"


HAIKU = Layout(
    "Haiku's ResNet names",
    (
        (rf"{_HAIKU}initial_conv/w", r"backbone.conv1.weight", oihw),
        (
            rf"{_HAIKU}initial_batchnorm{_HAIKU_NORM}",
            lambda m: f"backbone.bn1.{_HAIKU_LEAF[m[1] or m[2]]}",
            flat,
        ),
        (
            rf"{_HAIKU_BLOCK}conv_(\d)/w",
            lambda m: f"backbone.layer{int(m[1]) + 1}.{m[2]}.conv{int(m[3]) + 1}.weight",
            oihw,
        ),
        (
            rf"{_HAIKU_BLOCK}shortcut_conv/w",
            lambda m: f"backbone.layer{int(m[1]) + 1}.{m[2]}.downsample.0.weight",
            oihw,
        ),
        (rf"{_HAIKU_BLOCK}(batchnorm_\d|shortcut_batchnorm){_HAIKU_NORM}", _haiku_block, flat),
    ),
)


def mapping(node: Any) -> Mapping:
    """Return a dict, or the dict from which an object such as Haiku's FlatMapping is made."""
    if isinstance(node, Inert):
        state = node.state if isinstance(node.state, Mapping) else {}
        return next((part for part in (*node.args, *state.values()) if isinstance(part, Mapping)), node.items)
    return node if isinstance(node, Mapping) else {}


def flatten(tree: Any, keep: Callable[[Any], bool]) -> dict[str, Any]:
    """Return {path joined by "/": array} of nested dicts (Haiku's trees); what `keep` refuses is left out.

    Depth and number are limited: no known tree is larger, and a hostile one may contain itself.

    Raises:
      Refused: more than 200,000 entries.
    """
    flat: dict[str, Any] = {}
    visited = itertools.count()

    def visit(node, path, depth):
        if next(visited) > 200_000:
            raise Refused("more than 200,000 entries in nested dicts: a bomb, not a checkpoint")
        if keep(node):
            flat[path] = node
        if depth < 4:
            for k, value in mapping(node).items():
                if isinstance(k, str):
                    visit(value, f"{path}/{k}" if path else k, depth + 1)

    visit(tree, "", 0)
    return flat
