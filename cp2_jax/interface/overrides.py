"""Values of a config, changed by name: keywords of the Python functions, and what is typed after `--config.`"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from cp2_jax.options import ConfigError, flatten, require
from cp2_jax.runs.settings import RENAMED

# What other programs call a key, by its last part.
ALIASES = {
    "lr": "optimizer.learning_rate",
    "base_lr": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "optim": "optimizer.name",
    "lr_schedule": "optimizer.schedule",
    "scheduler": "optimizer.schedule",
    "warmup": "optimizer.warmup_steps",
    "bs": "batch_size",
    "batch": "batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "iterations": "steps",
    "max_iters": "steps",
    "max_steps": "steps",
    "num_steps": "steps",
    "num_workers": "data.workers",
    "img_size": "image_size",
    "crop": "data.crop_size",
    "arch": "model.backbone",
    "temperature": "loss.temperature_instance",
    "tau": "loss.temperature_instance",
    "k": "loss.queue_size",
    "pretrained": "init.checkpoint",
    "checkpoint": "init.checkpoint",
    "classes": "data.classes",
    "precision": "model.dtype",
}

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "True or False",
    "str": "a text",
}


def _expected(name: str, now: Any) -> str:
    """Return what a key takes in place of the value that it has."""
    if isinstance(now, ConfigDict):
        return f"no value itself, but its keys do, such as {name}.{'name' if 'name' in now else next(iter(now), '…')}"
    if isinstance(now, tuple | list):
        return f"a {type(now).__name__}, such as {tuple(now) or (0.2, 1.0)}"
    return _EXPECTED.get(type(now).__name__, type(now).__name__)


def likely(name: str, known: Sequence[str]) -> str | None:
    """Return the key that somebody who typed `name` most likely means, or None.

    Args:
      name: such as "lr", "optimizer.lr", "learning_rate".
      known: the keys of a config, such as "optimizer.learning_rate".
    """
    last = name.rpartition(".")[2].replace("-", "_").lower()
    same = [key for key in known if key.rpartition(".")[2] == last]
    if same:  # the one in a section of the most similar name; else that nearest to the top
        return max(same, key=lambda key: (_alike(name, key) if "." in name else -key.count("."), _alike(name, key)))
    if ALIASES.get(last) in known:
        return ALIASES[last]
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.6)), None)


def _alike(name: str, key: str) -> float:
    return difflib.SequenceMatcher(None, name, key).ratio()


def check(config: ConfigDict, name: str, prefix: str = "") -> None:
    """Refuse a key that the config does not have.

    Args:
      name: such as "optimizer.learning_rate".
      prefix: what stands before a key where it was typed, such as "--config.".

    Raises:
      ConfigError: with the key that is probably meant.
    """
    known = flatten(config)
    if name in RENAMED and name not in known:
        raise ConfigError(f"{prefix}{name} is now {prefix}{RENAMED[name]}")
    sections = {key[: place.start()] for key in known for place in re.finditer(r"\.", key)}
    if name in known or name in sections:
        return
    # Such as a dict of values and labels for data.label_map.
    if parent := next((key for key in known if name.startswith(f"{key}.")), None):
        pairs = "; pairs, such as ((0, 1), (255, 0)), in place of a dict" if isinstance(known[parent], tuple) else ""
        raise ConfigError(f"{prefix}{name}: {parent} has no keys, it takes {_expected(parent, known[parent])}{pairs}")
    meant = likely(name, list(known))
    alike = sorted(key for key in known if "." not in name and key.endswith(f".{name}"))
    meant = " or ".join(alike) if 1 < len(alike) <= 3 else meant
    hint = f" (did you mean {meant}?)" if meant else f"; `cp2 {config.get('kind', 'pretrain')} --help` lists all keys"
    raise ConfigError(f"{prefix}{name}: there is no such key{hint}")


def update(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Change values of a config in place. `epochs` without `steps` also sets `steps` to 0, so that the epochs count.

    Args:
      config: with the keys to change.
      changes: by key; sections are mappings or dotted names, and both may be mixed: `{"epochs": 3, "loss": {"alpha": 0.1},
        "optimizer.learning_rate": 0.01}`.

    Raises:
      ConfigError: a key that the config does not have, or a value of another type.
    """
    for name, value in flatten(changes).items():
        check(config, name)
        now = _lookup(config, name)
        if value is None and now is not None:  # which a ConfigDict takes for any key, a whole section included
            raise ConfigError(f"{name}=None: {name} takes {_expected(name, now)}; leave it out for what the config has")
        value = _as_config_has_it(name, value, now)
        try:
            config.update_from_flattened_dict({name: value})
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}={value!r}: {name} takes {_expected(name, now)}") from error
    _count_epochs(config, flatten(changes))
    expand_user(config)


def _as_config_has_it(name: str, value: Any, now: Any) -> Any:
    """Return what Python and NumPy have other types for (arrays, dtypes, paths, 1e4) as a config has it."""
    if isinstance(value, np.ndarray | np.number) and value.dtype.kind in "biuf":
        value = value.tolist()
    if isinstance(now, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(now, int) and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(now, str) and isinstance(value, os.PathLike):
        return os.fspath(value)
    return dtype_name(value) if name.endswith("dtype") else value


def dtype_name(value: Any) -> Any:
    """Return a type of numbers (`jnp.bfloat16`, `numpy.float32`, a dtype) by its name; anything else as it is."""
    if value is None or isinstance(value, str):
        return value
    try:
        return np.dtype(value).name
    except TypeError:
        return value


def merged(changes: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return `changes` and the keywords of a call as one; keywords go before.

    Raises:
      ConfigError: `changes` is no mapping.
    """
    if changes is not None and not isinstance(changes, Mapping | ConfigDict):
        kind = type(changes).__name__
        raise ConfigError(
            f"changes is a {kind}: give a dict of keys and values, such as {{'optimizer.learning_rate': 0.01}}"
        )
    return dict(changes or {}) | dict(keys)


def parse(config: ConfigDict, typed: Sequence[tuple[str, str]]) -> None:
    """Change values of a config in place to what was typed; `epochs` as in `update`.

    Args:
      config: with the keys to change.
      typed: pairs (key, text), such as ("data.crop_scale", "(0.2, 1.0)").

    Raises:
      ConfigError: a key that the config does not have, or a text that is no value of its type.
    """
    for name, text in typed:
        check(config, name, "--config.")
        if isinstance(_lookup(config, name), ConfigDict):
            raise ConfigError(f"--config.{name}={text}: {name} takes {_expected(name, _lookup(config, name))}")
        try:
            argument = f"--config.{name}={text}"
            values = flags.FlagValues()
            config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=["", argument])
            values(["", argument])
        except Exception as error:  # absl's own, and what the conversion raises
            raise ConfigError(f"--config.{name}={text}: {name} takes {_expected(name, _lookup(config, name))}") from error
    _count_epochs(config, dict(typed))
    expand_user(config)


def _count_epochs(config: ConfigDict, asked: Mapping[str, Any]) -> None:
    """Let `epochs` that are asked for count, where the config's own length is in steps, which go before epochs."""
    if "epochs" in asked and "steps" not in asked and config.epochs >= 0:
        require(config.epochs > 0, "epochs", config.epochs, "give a length above 0, or steps")
        config.steps = 0


def expand_user(config: ConfigDict) -> None:
    """Put the home directory in place of a leading `~` in every text of a config: all of them are paths."""
    for name, value in flatten(config).items():
        if isinstance(value, str) and value.startswith("~"):
            config.update_from_flattened_dict({name: os.path.expanduser(value)})


def _lookup(config: ConfigDict, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config
