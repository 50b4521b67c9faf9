"""Reads the source code as text: who imports whom, how long functions are, what their docstrings promise.

Nothing here imports what it reads, so that a module with a mistake can still be judged.
"""

import ast
import dataclasses
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

Function = ast.FunctionDef | ast.AsyncFunctionDef

# Array types that say nothing of the shape. `Float[Array, "h w 3"]` of jaxtyping does.
ARRAYS = {"Array", "ndarray", "ArrayLike"}
SHAPED = re.compile(r"(Float|Int|UInt|BFloat|Bool|Num|Shaped|Inexact|Integer|Real|Complex|Key)\d*")


@dataclasses.dataclass(frozen=True)
class Module:
    """One file of Python: its dotted name, its path and its syntax tree."""

    name: str
    path: pathlib.Path
    tree: ast.Module

    @classmethod
    def parse(cls, name: str, source: str, path: pathlib.Path = pathlib.Path("none.py")) -> "Module":
        return cls(name, path, ast.parse(source))


def read(root: pathlib.Path, package: str) -> list[Module]:
    """All modules of a package that lies in `root`; links to folders elsewhere (`cp2_jax/configs`) are left out."""
    modules = []
    for folder, folders, files in os.walk(root / package):
        folders.sort()
        for file in sorted(files):
            if file.endswith(".py"):
                path = pathlib.Path(folder, file)
                parts = path.relative_to(root).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                modules.append(Module.parse(name, path.read_text(), path))
    return modules


def imports(module: Module, known: set[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports anywhere in it, also inside functions.

    `from a import b` is the module `a.b` where that is one of the `known` modules, and `a` otherwise.
    """
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = module.name.split(".") + [""] * (module.path.name == "__init__.py")
                base = ".".join([*inside[: -node.level], *([node.module] if node.module else [])])
            for name in node.names:
                whole = f"{base}.{name.name}"
                yield node.lineno, whole if whole in known else base


def within(name: str, room: str) -> bool:
    """Say whether a dotted name is the room or lies in it."""
    return name == room or name.startswith(f"{room}.")


def climbs(modules: list[Module], layers: Mapping[str, tuple[str, ...]], package: str) -> list[str]:
    """Imports of `package` from within itself that the layers do not allow, a line for each.

    Args:
      modules: all modules of the package.
      layers: room to the names (rooms or single modules, without the package's name) that it may import.
      package: what is imported here without being named in `layers` comes from elsewhere and is not judged.
    """
    known, found = {module.name for module in modules}, []
    for module in modules:
        if module.name == package:  # the public interface, above all rooms
            continue
        room = room_of(module.name, layers, package)
        if room is None:
            found.append(f"{module.path}: belongs to no room in the list of layers")
            continue
        for line, name in imports(module, known):
            if not within(name, package):
                continue
            allowed = (room, *layers[room])
            if not any(within(name, f"{package}.{other}") for other in allowed):
                found.append(f"{module.path}:{line}: {room} may not import {name}")
    return found


def room_of(name: str, layers: Mapping[str, tuple[str, ...]], package: str) -> str | None:
    """The room that a module belongs to."""
    return next((room for room in layers if within(name, f"{package}.{room}")), None)


def cycle(modules: list[Module]) -> list[str]:
    """The names of modules that import each other in a circle, the first one again at the end; empty if there is none."""
    known = {module.name for module in modules}
    graph = {m.name: sorted({name for _, name in imports(m, known) if name in known and name != m.name}) for m in modules}
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in graph[name]:
            if circle := visit(other, [*trail, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in graph if (circle := visit(name, []))), [])


def functions(module: Module) -> Iterator[tuple[str, Function, list[ast.ClassDef]]]:
    """(qualified name, function, classes around it) of every function in a module, nested ones included."""

    def visit(node, names, classes):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield ".".join([module.name, *names, child.name]), child, classes
                yield from visit(child, [*names, child.name, "<locals>"], classes)
            elif isinstance(child, ast.ClassDef):
                yield from visit(child, [*names, child.name], [*classes, child])
            else:
                yield from visit(child, names, classes)

    yield from visit(module.tree, [], [])


def length(function: Function) -> int:
    """Lines from `def` to the end, docstring included, decorators not."""
    return function.end_lineno - function.lineno + 1


def is_public(qualified: str) -> bool:
    """Say whether a name is for use from outside: no part of it begins with an underscore (`__call__` and its like may)."""
    parts = qualified.split(".")
    return not any(part == "<locals>" or (part.startswith("_") and not part.endswith("__")) for part in parts)


def raised(function: Function) -> set[str]:
    """Names of the exceptions that a function's own body raises, without functions inside it."""
    names, waiting = set(), list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = error.attr if isinstance(error, ast.Attribute) else getattr(error, "id", "")
            if name[:1].isupper():  # not `raise error`, which passes on what came
                names.add(name)
        waiting += ast.iter_child_nodes(node)
    return names


def undocumented_errors(module: Module) -> tuple[list[str], int]:
    """(public functions whose docstring does not name what they raise, number of public functions that raise).

    For a method the docstring of its class counts as well. Special methods other than `__init__`, `__post_init__` and
    `__call__` are left out: they raise what Python asks of them.
    """
    missing, count = [], 0
    for name, function, classes in functions(module):
        special = function.name.startswith("__") and function.name not in ("__init__", "__post_init__", "__call__")
        errors = set() if special or not is_public(name) else raised(function)
        if not errors:
            continue
        count += 1
        said = [ast.get_docstring(node) or "" for node in (function, *classes)]
        if any(not any(re.search(rf"\b{error}\b", text) for text in said) for error in errors):
            missing.append(name)
    return missing, count


def _bare_arrays(annotation: ast.expr | None) -> tuple[bool, bool]:
    """(names an array type without a shape, names an array type at all)."""
    bare = any_array = False
    waiting = [annotation] if annotation is not None else []
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name | ast.Attribute):
            name = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
            if SHAPED.fullmatch(name):
                any_array = True
                continue
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        if name in ARRAYS:
            bare = any_array = True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            waiting.append(ast.parse(node.value, mode="eval").body)
        waiting += ast.iter_child_nodes(node)
    return bare, any_array


def shapeless(module: Module) -> tuple[list[str], int]:
    """(public functions that take or return arrays and say no shape, number of public functions with arrays).

    The shape stands in the annotation, `Float[Array, "batch dim"]`; or, where a dictionary holds arrays of many shapes, in
    the docstring: `(batch, dim)`, or "any shape".
    """
    missing, count = [], 0
    for name, function, classes in functions(module):
        if not is_public(name):
            continue
        arguments = function.args
        named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        found = [_bare_arrays(a.annotation) for a in named if a is not None] + [_bare_arrays(function.returns)]
        if not any(array for _, array in found):
            continue
        count += 1
        said = " ".join(ast.get_docstring(node) or "" for node in (function, *classes))
        if any(bare for bare, _ in found) and not re.search(r"\([\w.* +/]+,[\w.,* +/]*\)|any shape", said):
            missing.append(name)
    return missing, count


def hard_wraps(text: str) -> list[str]:
    """Lines of Markdown that go on with the paragraph or list item of the line before. Code, tables and comments may."""
    found, code, before = [], False, ""
    other = re.compile(r"#|\||    |<|```|\s*[-*>] |\s*\d+\. |!\[")
    for line in text.splitlines():
        if line.startswith("```"):
            code = not code
        prose = before.strip() and not re.match(r"#|\||    |<|```|!\[", before)
        if not code and prose and line.strip() and not other.match(line):
            found.append(line)
        before = line
    return found


def silencers(text: str) -> int:
    """Number of lines with a comment that silences a tool."""
    comment = re.compile(r"#.*\b(no[q]a|fmt: (ski[p]|of[f])|type: i[g]nore|prag[m]a)")  # brackets: not such a line itself
    return sum(comment.search(line) is not None for line in text.splitlines())


def may_import(module: Module) -> list[str]:
    """The names in backticks in the sentence "May import …" of a module's docstring, up to the first `.`, `;` or `:`.

    Raises:
      ValueError: there is no such sentence.
    """
    sentence = re.search(r"[Mm]ay import\s((?:`[^`]*`|[^`.;:])*)", ast.get_docstring(module.tree) or "")
    if sentence is None:
        raise ValueError(f"{module.path}: no sentence says what it may import")
    return re.findall(r"`([\w.]+)`", sentence[1])
