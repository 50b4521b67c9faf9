"""Configs by name: "pretrain:vit,fcn" → the config, from any directory; and what each of its keys means.

A config is a Python file with `get_config`. The package brings its own (`cp2_jax.configs`, the folder `configs` of a
checkout); users write theirs. A name is `FILE` or `FILE:VARIANTS`, where FILE is a path (`my/config.py`) or the name of a
config that the package brings, with or without `configs/` and `.py`.

Nothing else in the package imports configs: this module finds them by name, for the command line and the functions that
users call.
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import io
import itertools
import os
import pathlib
import sys
import tokenize
import types
from typing import Any

from ml_collections import ConfigDict

from cp2_jax.options import ConfigError, flatten, nearest

FOLDER = pathlib.Path(__file__).with_name("configs")

# Names of earlier versions, which go on working, and what they are called now.
EARLIER_NAMES = {
    "pretrain_r50_aspp": "pretrain:r50,aspp",
    "pretrain_r50_fcn": "pretrain:r50,fcn",
    "pretrain_vit_aspp": "pretrain:vit,aspp",
    "pretrain_vit_fcn": "pretrain:vit,fcn",
    "pretrain_moco_v2": "pretrain:moco_v2",
    "pretrain_demo": "pretrain:demo",
    "quick_tune_r50_aspp": "quick_tune:r50,aspp",
    "quick_tune_r50_fcn": "quick_tune:r50,fcn",
    "quick_tune_vit_aspp": "quick_tune:vit,aspp",
    "quick_tune_vit_fcn": "quick_tune:vit,fcn",
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      name: as it is typed after `--config.`, such as "optimizer.learning_rate".
      default: its value in the config, variants applied.
      comment: what the config's source says about it, in one line; "" where it says nothing.
      heading: what the source says about this key and those that follow it, in one line; "" for most keys.
    """

    name: str
    default: Any
    comment: str
    heading: str = ""


def names() -> list[str]:
    """Return the names of the configs that the package brings, sorted; earlier names are left out."""
    stems = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(stem for stem in stems if not stem.startswith("_") and stem not in EARLIER_NAMES)


def variants(name: str) -> list[str]:
    """Return the variants that a config takes after its colon.

    Args:
      name: such as "pretrain" or "finetune_voc".

    Raises:
      ConfigError: if there is no such config, or it cannot be loaded.
    """
    for module in _with_imports(_module(name)):
        if hasattr(module, "VARIANTS"):
            return list(module.VARIANTS)
    return []


def load(name: str) -> ConfigDict:
    """Return a config by its name.

    Example:
      config = load("pretrain:vit,fcn")

    Args:
      name: "pretrain", "finetune_voc:vit,baseline", "configs/quick_tune.py:fcn", "my/config.py", an earlier name.

    Returns:
      The config, locked: a key that it does not have cannot be set.

    Raises:
      ConfigError: there is no such config (with the nearest names), no such variant, or the file cannot be loaded.
    """
    file, colon, text = name.partition(":")
    get_config = getattr(_module(name), "get_config", None)
    if get_config is None:
        raise ConfigError(f"{file} is no config: it has no function get_config")
    if colon and not inspect.signature(get_config).parameters:
        raise ConfigError(f"{name}: {file} has no variants; leave out :{text}")
    try:
        config = get_config(*[text] * bool(colon))
        if not isinstance(config, ConfigDict):
            raise ConfigError(f"get_config gives a {type(config).__name__}, not an ml_collections.ConfigDict")
        return config.lock()
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    except Exception as error:
        raise ConfigError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def keys_with_comments(name: str) -> list[Key]:
    """Return every key of a config with its default and the comment that stands beside it in the source.

    Comments are looked for in the config's own file first, then in the configs that it imports. The keys come in the order
    of the source: that of the nearest file that says what kind of config it is.

    Args:
      name: as for `load`.

    Raises:
      ConfigError: as `load`.
    """
    config, comments, place = load(name), {}, {}
    found = [_comments(pathlib.Path(module.__file__).read_text("utf-8")) for module in _with_imports(_module(name))]
    for one in reversed(found):
        comments |= {key: text for key, text in one.items() if any(text)}
    for one in sorted(found, key=lambda one: "kind" not in one):
        place |= {key: len(place) + number for number, key in enumerate(one) if key not in place}
    keys, opened = [], set()
    values = flatten(config)
    for key in sorted(values, key=lambda key: [place.get(section, len(place)) for section in _sections(key)]):
        headings = [comments.get(section, ("", ""))[0] for section in _sections(key) if section not in opened]
        opened.update(_sections(key))
        keys.append(Key(key, values[key], comments.get(key, ("", ""))[1], " ".join(filter(None, headings))))
    return keys


def _sections(key: str) -> list[str]:
    """Return ["model", "model.vit", "model.vit.width"] for "model.vit.width"."""
    return list(itertools.accumulate(key.split("."), "{}.{}".format))


def path(name: str) -> pathlib.Path:
    """Return the file of a config, without its variants.

    Raises:
      ConfigError: if there is none, with the nearest names that there are.
    """
    file = name.partition(":")[0]
    given = pathlib.Path(os.path.expanduser(file))
    if given.suffix == ".py" and given.is_file():
        return given
    packaged = FOLDER / f"{given.stem if given.suffix == '.py' else given.name}.py"
    if given.parent in (pathlib.Path("."), pathlib.Path("configs")) and packaged.is_file() and given.name[:1] != "_":
        return packaged
    what = f"file {file}, and no config of that name" if given.suffix == ".py" else f"config {file}"
    raise ConfigError(f"there is no {what}{nearest(given.stem, names())}")


def _module(name: str) -> types.ModuleType:
    file = path(name)
    if file.resolve().parent == FOLDER.resolve():
        return importlib.import_module(f"cp2_jax.configs.{file.stem}")
    if importlib.util.find_spec("configs") is None:  # so that a user's file can build on ours from any directory
        sys.modules["configs"] = importlib.import_module("cp2_jax.configs")
    spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _with_imports(module: types.ModuleType) -> list[types.ModuleType]:
    """Return a config's module, then the configs that it imports, nearest first."""
    found = [module]
    for one in found:  # grows while it is read
        imported = (value for value in vars(one).values() if isinstance(value, types.ModuleType))
        found += [value for value in imported if hasattr(value, "get_config") and value not in found]
    return found


def _comments(source: str) -> dict[str, tuple[str, str]]:
    """Return {'optimizer.name': (heading, comment), …} of the assignments `config.optimizer.name = …` in a config's source.

    A comment stands behind the value or, on lines of its own, above it. If there are both, the upper one is a heading, and
    so is that of a whole section. A section that a function of its own makes is named as in the config:
    `optimizer.name = …` in a function means `config.optimizer.name`.
    """
    beside, above = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            own_line = not token.line[: token.start[1]].strip()
            (above if own_line else beside)[token.start[0]] = token.string.lstrip("# ")
    found = {}
    # Variants change single keys of some runs: what they say of them is left out.
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    bodies = [node.body for node in functions if node.name == "get_config" or node.name.startswith("_")]
    for node in itertools.chain(*bodies):
        if not isinstance(node, ast.Assign):
            continue
        key, section = ast.unparse(node.targets[0]), ast.unparse(node.value) == "ConfigDict()"
        if key == "config" or not (section or key.count(".")):
            continue
        lines, number = [], node.lineno - 1
        while number in above:
            lines.insert(0, above[number])
            number -= 1
        upper, lower = " ".join(lines), beside.get(node.end_lineno, "")
        if section:
            upper, lower = f"{upper} {lower}".strip(), ""
        elif not lower:
            upper, lower = "", upper
        key = key.removeprefix("config.")
        found[key] = found.get(key) if any(found.get(key, ())) else (upper, lower)
    return found
