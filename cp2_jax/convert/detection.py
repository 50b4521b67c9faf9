"""Find which of `formats.FORMATS` a file's contents are, and which of its tensors are which of ours."""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any

from cp2_jax.convert import formats, layouts, trees
from cp2_jax.convert.containers import files
from cp2_jax.convert.containers.values import Inert, Refused
from cp2_jax.convert.format import Format
from cp2_jax.convert.layouts import Layout

# By the number of convolutions, all that SimCLR's names tell of the depth.
_TENSORFLOW_DEPTHS = {
    21: ((2, 2, 2, 2), False),
    37: ((3, 4, 6, 3), False),
    53: ((3, 4, 6, 3), True),
    104: ((3, 4, 23, 3), True),
    155: ((3, 8, 36, 3), True),
}


@dataclasses.dataclass
class Match:
    """A format found in a file: its tensors by the source's names, and the canonical name of each that is understood."""

    format: Format
    where: tuple[str, ...]
    prefix: str
    tensors: dict[str, Any]
    assigned: dict[str, tuple[str, layouts.Turn]]


def detect(tree: Any, container: str, name: str | None = None, prefix: str = "") -> Match:
    """Return the first format that fits a file's contents, or the one that is asked for.

    Args:
      tree, container: from `files.read`. name: of a format.
      prefix: what the names of the network's tensors begin with; it is taken off, and others are not looked at.

    Raises:
      Refused: nothing fits (with the names that came nearest), or the file is of a kind that is known and not supported.
    """
    whole, tree = tree, _under(tree, prefix) if prefix else tree
    known = {f.name: f for f in [*formats.FORMATS, formats.SIMCLR_TENSORFLOW]}
    if name and name not in known:
        near = difflib.get_close_matches(name, known, 1, 0)
        raise Refused(f"no format is called {name!r} (nearest: {near[0]}); there are {', '.join(sorted(known))}")
    if container == "tensorflow" and name in (None, formats.SIMCLR_TENSORFLOW.name):
        return _match_tensorflow(tree)
    for form in [known[name]] if name else [f for f in formats.FORMATS if f.automatic]:
        match = _match(form, tree, forced=bool(name))
        if match:
            return match
    if not name and (match := _match_elsewhere(tree)):
        return match
    if prefix and not _all_tensors(tree):
        shown = ", ".join(list(_all_tensors(whole))[:3]) or "no named tensors"
        raise Refused(f"--prefix {prefix}: no tensor's name begins so; it has {shown}, …")
    if not name and (prefixes := _prefixes(tree)):
        under = prefixes[0] if len(prefixes) == 1 else "one of " + ", ".join(prefixes)
        raise Refused(
            f"no known format has such names, but a known network lies under names that begin with {under}: take that off "
            f"with --prefix {prefixes[0]}"
        )
    raise Refused(_nothing_matches(tree, name))


def _under(tree: Any, prefix: str) -> Any:
    """Return the tree with the prefix taken off the names of its tensors; tensors of other names are left out."""
    if not isinstance(tree, Mapping):
        return tree
    kept = {}
    for key, value in tree.items():
        if isinstance(key, str) and files.is_array(value):
            if key.startswith(prefix):
                kept[key.removeprefix(prefix)] = value
        else:
            kept[key] = _under_names(value, prefix)
    return kept


def _under_names(value: Any, prefix: str) -> Any:
    """Do so one level down, where `state_dict` has its names."""
    if not isinstance(value, Mapping):
        return value
    names = [key for key, inner in value.items() if isinstance(key, str) and files.is_array(inner)]
    if not names:
        return value
    return {key.removeprefix(prefix): value[key] for key in names if key.startswith(prefix)}


def _all_tensors(tree: Any) -> dict[str, Any]:
    """Return the named tensors at the root and under each of its entries."""
    found = {}
    for where in ((), *((key,) for key in (tree if isinstance(tree, Mapping) else ()) if isinstance(key, str))):
        found |= _tensors_at(tree, where, layouts.TORCHVISION)
    return found


_FIRST = ("conv1.weight", "layer1.0.conv1.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "0.weight")
_BEGINNINGS = rf"(.+?\.)({'|'.join(map(re.escape, _FIRST))})"


def _prefixes(tree: Any) -> list[str]:
    """Return the prefixes under which a known network lies, though no format has them."""
    tensors = _all_tensors(tree)
    candidates = dict.fromkeys(match[1] for name in tensors if (match := re.fullmatch(_BEGINNINGS, name)))
    forms = [form for form in formats.FORMATS if form.automatic and trees.HAIKU not in form.layouts]
    found = []
    # Shorter ones first: `model.` before `model.layer1.0.`, after which `conv1.weight` comes as well.
    for prefix in sorted(candidates, key=lambda prefix: prefix.count("."))[:20]:
        stripped = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if any(_match(form, stripped, forced=False) for form in forms):
            found.append(prefix)
    return found


def _match_elsewhere(tree: Any) -> Match | None:
    """Look for the formats under entries of other names than those they are known by, such as `net`."""
    found = {}
    # No training file has hundreds of entries beside each other. Haiku's trees are searched from their root alone.
    known = [form for form in formats.FORMATS if form.automatic and trees.HAIKU not in form.layouts]
    for key, value in tree.items() if isinstance(tree, Mapping) and len(tree) < 100 else ():
        if not isinstance(key, str) or not isinstance(value, Mapping):
            continue
        matches = (_match(form, value, forced=False) for form in known)
        if match := next(filter(None, matches), None):
            found[key] = dataclasses.replace(match, where=(key, *match.where))
    if len(found) > 1:
        raise Refused(f"there are networks under {', '.join(found)}: save the one that is meant alone, under state_dict")
    return next(iter(found.values()), None)


def _unwrapped(tensors: dict[str, Any]) -> dict[str, Any]:
    """Leave out what wrappers add to every name: torch.compile's `_orig_mod`, and `module` more than once."""
    names = {name: re.sub(r"^(module\.)+", "module.", name.replace("_orig_mod.", "")) for name in tensors}
    return {names[n]: v for n, v in tensors.items()} if len(set(names.values())) == len(tensors) else tensors


def _tensors_at(tree: Any, where: tuple[str, ...], layout: Layout) -> dict[str, Any]:
    for key in where:
        if not isinstance(tree, Mapping) or key not in tree:
            return {}
        tree = tree[key]
    if layout is trees.HAIKU:
        return _haiku_tensors(tree)
    if not isinstance(tree, Mapping):
        return {}
    return _unwrapped({k: v for k, v in tree.items() if isinstance(k, str) and files.is_array(v)})


def _haiku_tensors(tree: Any) -> dict[str, Any]:
    """Return the online network's parameters and averages, by module/parameter."""
    if isinstance(tree, Inert) and len(tree.args) >= 4:
        # BYOL's named tuple (online_params, target_params, online_state, target_state, opt_state).
        parts = [tree.args[0], tree.args[2]]
    else:
        tree = trees.mapping(tree)
        parts = [tree[k] for k in ("online_params", "online_state", "params", "state") if k in tree] or [tree]
    flat: dict[str, Any] = {}
    for part in parts:
        flat |= trees.flatten(part, files.is_array)
    return flat


def _match(form: Format, tree: Any, forced: bool) -> Match | None:
    for where in form.at:
        for layout in form.layouts:
            tensors = _tensors_at(tree, where, layout)
            names = frozenset(tensors)
            if form.name == "insloc":
                tensors = {_insloc_c4(n): v for n, v in tensors.items()}
            if not tensors or not (forced or form.evidence(names, tree)):
                continue
            for prefix in form.prefixes:
                under = {n[len(prefix) :]: n for n in tensors if n.startswith(prefix)}
                assigned = {under[n]: hit for n, hit in layout.assign(under).items()}
                # A few names in common are no match: `conv1.weight` is in every second network.
                if len(assigned) >= 8:
                    if form.head is not None:
                        assigned |= _head(form, prefix, tensors)
                    return Match(form, where, prefix, tensors, assigned)
    return None


def _insloc_c4(name: str) -> str:
    """The C4 variant of InsLoc keeps the last stage in its detection head."""
    return name.replace("roi_head.shared_head.layer4.", "backbone.layer4.", 1)


def _head(form: Format, prefix: str, tensors: Mapping) -> dict:
    base = prefix.removesuffix("backbone.") + form.head
    under = {n[len(base) :]: n for n in tensors if n.startswith(base)}
    return {under[n]: hit for n, hit in layouts.HEAD.assign(under).items()}


def _match_tensorflow(tree: Mapping) -> Match:
    probe = layouts.tensorflow((), True)
    convolutions = sum(p.startswith("conv/") for p in probe.prepare(tree).values())
    if convolutions not in _TENSORFLOW_DEPTHS:
        kernels = sorted(name for name in tree if "conv" in name.lower())[:3]
        raise Refused(
            f"a TensorFlow checkpoint with {convolutions} convolutions in SimCLR's naming; ResNet-18, 34, 50, 101 and 152 "
            f"have {', '.join(map(str, _TENSORFLOW_DEPTHS))}. Selective-kernel variants (sk1) are another network and are "
            f"not supported{'; it has ' + ', '.join(kernels) if kernels else ''}"
        )
    assigned = layouts.tensorflow(*_TENSORFLOW_DEPTHS[convolutions]).assign(tree)
    return Match(formats.SIMCLR_TENSORFLOW, (), "", dict(tree), assigned)


def _nothing_matches(tree: Any, name: str | None) -> str:
    entries = list(tree) if isinstance(tree, Mapping) else []
    flat = _all_tensors(tree)
    what = f"it is not as {name} would have it" if name else "no known format has such names"
    if not flat:
        shown = ", ".join(str(entry)[:40] for entry in entries[:6]) or type(tree).__name__
        return f"{what}: it holds no named tensors (its entries: {shown})"
    typical = ("conv1.weight", "layer1.0.conv1.weight", "bn1.weight", "blocks.0.attn.qkv.weight", "patch_embed.proj.weight")
    near = [close for t in typical for close in difflib.get_close_matches(t, flat, 1, 0.6)]
    names = f"nearest: {', '.join(list(dict.fromkeys(near))[:3])}" if near else f"it has {', '.join(list(flat)[:3])}, …"
    return f"{what} ({len(flat)} tensors; {names}). A backbone has names such as {', '.join(typical[:2])} or {typical[3]}"
