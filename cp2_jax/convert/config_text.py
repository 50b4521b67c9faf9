"""Read the config text inside OpenMMLab's checkpoints: Python assignments of plain values. Nothing is executed.

MMEngine (MMSegmentation 1.x) writes its keys sorted and its tuples over several lines, MMCV (0.x) in the order of the file;
older projects keep the files themselves, one after the other, each after a line with its path.
"""

import ast
import re
import warnings
from collections.abc import Mapping
from typing import Any

from cp2_jax.convert.containers.values import Refused

# The longest that MMSegmentation's own configs give has some 20,000 characters.
_LONGEST = 1 << 18
_WAY_OUT = "pass --config-text ignore, and say with --heads and --input what it would have told"


class _Unknown:
    """A value that is no literal, such as a function's result."""


UNKNOWN = _Unknown()


def find(tree: Any) -> str | None:
    """Return the config text of a checkpoint's contents, or None if it has none."""
    meta = tree.get("meta") if isinstance(tree, Mapping) else None
    if not isinstance(meta, Mapping):
        return None
    text = meta.get("config", meta.get("cfg"))
    return text if isinstance(text, str) and text.strip() else None


def parse(text: str) -> dict[str, Any]:
    """Return the variables that a config text assigns: dicts, lists, tuples, numbers, text, and `UNKNOWN`.

    Raises:
      Refused: the text is no list of assignments; with the line and what to do.
    """
    if len(text) > _LONGEST:
        raise refuse(f"it has {len(text)} characters")
    text = re.sub(r"(?m)^\S+\.py[ \t]*$", "", text)  # the path of a file whose text follows
    try:
        with warnings.catch_warnings(action="ignore"):
            return _variables(ast.parse(text).body)
    except (SyntaxError, ValueError) as error:
        raise refuse(f"it is no Python ({getattr(error, 'msg', error)}, line {getattr(error, 'lineno', '?')})") from error
    except (MemoryError, RecursionError) as error:  # what the parser raises where its stack would not do
        raise refuse("it is nested too deep") from error


def _variables(statements: list[ast.stmt]) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    inherits = any(isinstance(s, ast.Assign) and _names(s) == ["_base_"] for s in statements)
    for statement in statements:
        if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
            continue
        names = _names(statement) if isinstance(statement, ast.Assign) else []
        if not names:
            raise refuse(f"line {statement.lineno} is no assignment of a plain value")
        value = _value(statement.value, variables)
        for name in names:
            variables[name] = _merge(variables.get(name), value) if inherits else value
    return variables


def refuse(why: str) -> Refused:
    """Return the error that says why a config text is not understood, and what to do."""
    return Refused(f"the config text inside is not understood: {why}. Without it the network would be guessed: {_WAY_OUT}")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names(statement: ast.Assign) -> list[str]:
    """Return the names that a statement assigns to, or none if any of its targets is something else."""
    names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return names if len(names) == len(statement.targets) else []


def _value(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    """Return the value of an expression; `UNKNOWN` for what is neither a literal nor a `dict(…)` of such."""
    match node:
        case ast.Constant(value):
            return value
        case ast.Name(name):
            return variables.get(name, UNKNOWN)
        case ast.List(parts):
            return [_value(part, variables) for part in parts]
        case ast.Tuple(parts):
            return tuple(_value(part, variables) for part in parts)
        case ast.Dict(keys, values) if all(isinstance(k, ast.Constant) and isinstance(k.value, str) for k in keys):
            return {k.value: _value(v, variables) for k, v in zip(keys, values, strict=True)}
        case ast.Call(ast.Name("dict"), [], keywords) if all(keyword.arg for keyword in keywords):
            return {keyword.arg: _value(keyword.value, variables) for keyword in keywords}
        case ast.UnaryOp(ast.USub(), operand):
            value = _value(operand, variables)
            return -value if type(value) in (int, float) else UNKNOWN
    return UNKNOWN


def _merge(old: Any, new: Any) -> Any:
    """Return what an inheriting config makes of a value: dicts are merged unless the new one says `_delete_`."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    kept = {} if new.get("_delete_") else old
    return kept | {key: _merge(kept.get(key), value) for key, value in new.items() if key != "_delete_"}
