"""The table that a conversion prints: what went where, what was left out and why, what keeps its initial value."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from cp2_jax.convert import names
from cp2_jax.lines import WIDTH, wrap

_LEAST = 27  # columns for the right side of two; with less, it goes below the left


def render(path, container, match, meta: Mapping, sources: Mapping, expected: Mapping, left_out: Mapping, tree: Any) -> str:
    """Return the table as text, in lines of 80 columns."""
    model = meta["model"]
    lines = [f"{path}", f"  {match.format.title} ({match.format.name}), {container}", *_lines(_model(model)), "", "loaded"]
    lines += _columns((_group(s), f"-> {_ours(n)}") for n, s in _by_group(sources, expected))
    lines += ["", "left out"]
    paths = (re.split(r"[./]", s) for group in sources.values() for s in group)
    loaded = {".".join(path[:k]) for path in paths for k in range(1, len(path))}
    table = [row for reason in dict.fromkeys(left_out.values()) for row in _left_out(reason, left_out, loaded)]
    lines += _columns(table + _entries(tree, match.where)) or ["  nothing"]
    initial = [part for part, there in _parts(model) if not there]
    lines += ["", "keeps its initial value", f"  {', '.join(initial) if initial else 'nothing'}"]
    mean, std = _three(meta["input"]["mean"]), _three(meta["input"]["std"])
    lines += ["", "input", f"  RGB in [0, 1], minus {mean}, divided by {std}"]
    if meta["notes"]:
        lines += ["", "mind", *(line for note in meta["notes"] for line in _lines(note))]
    return "\n".join(lines)


def _model(model: Mapping) -> str:
    def part(name: str) -> str:
        values = [f"{key} {value}" for key, value in model[name].items() if value != ()]
        return f" ({', '.join(values)})" if values else ""

    head = f"; {model['head']} head{part(model['head'])}" if "head" in model else ""
    return f"{model['backbone']}{part(model['backbone'])}{head}"


def _parts(model: Mapping):
    return [("head", "head" in model), ("projection", "projection_dim" in model), ("classifier", "num_classes" in model)]


def _by_group(sources: Mapping, expected: Mapping):
    """Yield one (canonical name, source names) for each group of tensors that share a module and its place."""
    groups: dict[str, list] = {}
    for name in expected:
        groups.setdefault(re.sub(r"\.[^.]+\.[^.]+$", "", _stage(name)), []).append(name)
    for members in groups.values():
        yield members, [s for name in members for s in sources[name]]


def _stage(name: str) -> str:
    """Shorten a canonical name to its stage, so that a ResNet-50 takes six lines, not 265."""
    match = re.match(r"(backbone\.layer\d|backbone\.blocks|decode_head\.\w+)\.", name)
    return f"{match[1]}.x.x" if match else f"{name.rpartition('.')[0]}.x.x"


def _ours(members: list[str]) -> str:
    located = [names.our_name(name) for name in members]
    paths = sorted({"/".join(path.split("/")[:2]) for _, path in located})
    if len(paths) == 1:
        return paths[0]
    stem, _, number = paths[-1].rpartition("_")  # layer3_0 … 5
    return f"{paths[0]} … {number if paths[0].startswith(f'{stem}_') else paths[-1].rpartition('/')[2]}"


def _group(members: list[str]) -> str:
    prefix = members[0]
    for name in members:
        while not name.startswith(prefix):
            prefix = prefix[:-1]
    rest = "" if len(members) == 1 else f"* ({len(members)} tensors)"
    return f"{prefix}{rest}"


def _left_out(reason: str, left_out: Mapping, loaded: set[str]) -> list[tuple[str, str]]:
    """Return the rows of one reason: a few names, or one row for all."""
    members = [name for name, why in left_out.items() if why == reason]
    counts = Counter(_top(name, loaded) for name in members)
    if len(counts) > 6:
        return [(f"{members[0]}, … ({len(members)} tensors)", reason)]
    return [(f"{name}{f' ({count} tensors)' if count > 1 else ''}", reason) for name, count in counts.items()]


def _top(name: str, loaded: set[str]) -> str:
    """Shorten a name to where it leaves the names that were loaded."""
    parts = re.split(r"[./]", name)
    keep = next((k for k in range(1, len(parts)) if ".".join(parts[:k]) not in loaded), len(parts))
    return ".".join(parts[:keep]) + (".*" if len(parts) > keep else "")


def _entries(tree: Any, where: tuple[str, ...]) -> list[tuple[str, str]]:
    """Return the file's other entries, beside the tensors."""
    if not where or not isinstance(tree, Mapping):
        return []
    return [(str(key)[:40], "an entry beside the model") for key in tree if key != where[0]][:20]


def _columns(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = min(max((len(left) for left, _ in rows), default=0), WIDTH - 4 - _LEAST)
    lines = []
    for left, right in rows:
        if len(left) <= width:
            lines += _lines(right, f"  {left:<{width}}  ", " " * (width + 4))
        else:
            lines += [f"  {left}", *_lines(right, " " * (width + 4), " " * (width + 4))]
    return lines


def _lines(text: str, first: str = "  ", further: str = "    ") -> list[str]:
    return wrap(text, first=first, further=further)


def _three(values: Iterable[float]) -> str:
    return f"({', '.join(f'{v:.4g}' for v in values)})"
