"""PyTorch's names and layouts and ours, both ways: a pure renaming with transposes, no guessing.

PyTorch's side is the original's (MMSegmentation's): `backbone.layer1.0.conv1.weight`, `decode_head.bottleneck.bn.bias`, …
"""

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

# (PyTorch's module, our path); the rest of each name is a leaf, below. Groups are carried over by number.
_MODULES = [
    (r"backbone\.layer(\d+)\.(\d+)\.downsample\.0", r"backbone/layer\1_\2/downsample_conv"),
    (r"backbone\.layer(\d+)\.(\d+)\.downsample\.1", r"backbone/layer\1_\2/downsample_bn"),
    (r"backbone\.layer(\d+)\.(\d+)\.((?:conv|bn)\d)", r"backbone/layer\1_\2/\3"),
    (r"backbone\.((?:conv|bn)1)", r"backbone/\1"),
    (r"backbone\.patch_embed\.proj", r"backbone/patch_embed"),
    (r"backbone\.blocks\.(\d+)\.(norm\d)", r"backbone/blocks_\1/\2"),
    (r"backbone\.blocks\.(\d+)\.(attn|mlp)\.(\w+)", r"backbone/blocks_\1/\2/\3"),
    (r"backbone\.norm", r"backbone/norm"),
    (r"decode_head\.image_pool\.1\.(conv|bn)", r"head/image_pool/\1"),
    (r"decode_head\.aspp_modules\.(\d+)\.(conv|bn)", r"head/aspp_\1/\2"),
    (r"decode_head\.bottleneck\.(conv|bn)", r"head/bottleneck/\1"),
    (r"decode_head\.convs\.(\d+)\.(conv|bn)", r"head/convs_\1/\2"),
    (r"decode_head\.conv_cat\.(conv|bn)", r"head/conv_cat/\1"),
    (r"decode_head\.contrast_conv\.0", r"projection/conv1"),
    (r"decode_head\.contrast_conv\.2", r"projection/conv2"),
    (r"decode_head\.conv_seg", r"classifier/conv_seg"),
]
_BARE = {"backbone.cls_token": "backbone/cls_token", "backbone.pos_embed": "backbone/pos_embed"}
_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def our_name(name: str) -> tuple[str, str] | None:
    """Return (collection, path) of a state_dict name, or None if the model has no such variable.

    `num_batches_tracked` has no counterpart. A one-dimensional `weight` is a norm's scale; that is told by the module.
    """
    if name in _BARE:
        return "params", _BARE[name]
    module, _, leaf = name.rpartition(".")
    for pattern, path in _MODULES:
        if re.fullmatch(pattern, module):
            path = re.sub(pattern, path, module)
            if leaf in _STATISTICS:
                return "batch_stats", f"{path}/{_STATISTICS[leaf]}"
            norm = re.search(r"(bn|norm)\d?$", path) is not None
            renamed = {"weight": "scale" if norm else "kernel", "bias": "bias"}.get(leaf)
            return ("params", f"{path}/{renamed}") if renamed else None
    return None


def variables_from_torch(state_dict: Mapping[str, Shaped[np.ndarray, "..."]]) -> dict:
    """Return {'params', 'batch_stats'} from arrays under MMSegmentation's names.

    Convolutions go from OIHW to HWIO, linear layers are transposed, dtypes stay. `num_batches_tracked` is dropped.

    Raises:
      KeyError: for a name that has no counterpart.
    """
    variables: dict = {"params": {}, "batch_stats": {}}
    for name, array in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        where = our_name(name)
        if where is None:
            raise KeyError(f"{name}: no such variable in a CP2 model")
        collection, path = where
        *parents, leaf = path.split("/")
        node = variables[collection]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _transpose(np.asarray(array), leaf, to_ours=True)
    return variables


def torch_from_variables(variables: Mapping) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The inverse of `variables_from_torch`.

    Raises:
      KeyError: for a variable that has no counterpart.
    """
    state_dict = {}
    for collection in ("params", "batch_stats"):
        for path, array in _leaves(variables.get(collection, {})):
            name = torch_name(collection, path)
            state_dict[name] = _transpose(np.asarray(array), path.rpartition("/")[2], to_ours=False)
    return state_dict


def torch_name(collection: str, path: str) -> str:
    """Return the state_dict name of one of our variables: the inverse of `our_name`.

    Raises:
      KeyError: for a variable that has no counterpart.
    """
    for name, bare in _BARE.items():
        if path == bare:
            return name
    module, _, leaf = path.rpartition("/")
    for pattern, ours in _MODULES:
        matched = re.fullmatch(_as_pattern(ours, pattern), module)
        if matched:
            name = _fill(pattern, matched.groups())
            inverse = {v: k for k, v in _STATISTICS.items()} if collection == "batch_stats" else {}
            leaves = inverse or {"scale": "weight", "kernel": "weight", "bias": "bias"}
            if leaf in leaves:
                return f"{name}.{leaves[leaf]}"
    raise KeyError(f"{collection}/{path}: no counterpart in PyTorch's names")


def our_shape(name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
    """Return (path, shape) of the variable that an array of a state_dict becomes; ("", …) if there is no such variable."""
    where = our_name(name)
    if where is None:
        return "", shape
    return where[1], _turned(shape, where[1], (2, 3, 1, 0))


def torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that a variable at this path has in PyTorch."""
    return _turned(shape, path, (3, 2, 0, 1))


def _turned(shape, path, order):
    shape = tuple(shape)
    if not path.endswith("/kernel"):
        return shape
    return tuple(shape[axis] for axis in order) if len(shape) == 4 else shape[::-1] if len(shape) == 2 else shape


def _as_pattern(ours: str, theirs: str) -> str:
    """Turn our template into a pattern, each `\\n` becoming the n-th group of the other side's pattern."""
    groups = re.findall(r"\((?!\?:)((?:[^()]|\(\?:[^()]*\))*)\)", theirs)
    return re.sub(r"\\(\d)", lambda m: f"({groups[int(m[1]) - 1]})", ours)


def _fill(pattern: str, groups: tuple[str, ...]) -> str:
    """Put values in place of a pattern's groups."""
    values = iter(groups)
    filled = re.sub(r"\((?!\?:)(?:[^()]|\(\?:[^()]*\))*\)", lambda _: next(values), pattern)
    return filled.replace("\\.", ".")


def _leaves(tree: Mapping, prefix: str = ""):
    for key, value in tree.items():
        path = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from _leaves(value, path)
        else:
            yield path, value


def _transpose(array: np.ndarray, leaf: str, to_ours: bool) -> np.ndarray:
    if leaf == "kernel" and array.ndim == 4:
        return array.transpose(2, 3, 1, 0) if to_ours else array.transpose(3, 2, 0, 1)
    if leaf == "kernel" and array.ndim == 2:
        return array.T
    return array
