"""What sections of a config are read with: frozen options that check themselves, and one line for what is wrong.

Each section of a config has one owner, a frozen dataclass with `from_config` (see `runs.optim.OptimizerOptions`), which
knows the section's fields, their allowed values and their meaning. This module holds what the owners share.
"""

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


class ConfigError(Exception):
    """A config value is wrong; the message names the key, the value and what would work."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" with the nearest known name, or the list of all if none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else f" (known: {', '.join(known)})"


def flatten(config: ConfigDict | Mapping, prefix: str = "") -> dict[str, object]:
    """Return {'optimizer.learning_rate': 0.03, …}."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def fields(section: ConfigDict | Mapping) -> dict[str, Any]:
    """Return a section's values as arguments of a dataclass: lists, which a saved config has, become tuples."""
    return {key: tuple(value) if isinstance(value, list | tuple) else value for key, value in section.items()}


def known_fields(kind: type, section: ConfigDict | Mapping, prefix: str) -> dict[str, Any]:
    """Return a section's values as arguments of its dataclass; lists become tuples.

    Args:
      kind: the dataclass, whose fields are the keys that the section may have.
      prefix: of the keys, for the message, such as "optimizer.".

    Raises:
      ConfigError: for a key that the dataclass does not have.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    for key in section:
        if key not in known:
            raise ConfigError(f"{prefix}{key}: there is no such key{nearest(key, known)}")
    return fields(section)


def from_section(name: str, optional: bool = False) -> classmethod:
    """Return the class method `from_config` of the options that a section of a config is read with.

    Example:
      class LossOptions:
          from_config = from_section("loss")  # LossOptions.from_config(config) reads config.loss

    Args:
      name: of the section.
      optional: a config without the section gives the options' defaults.

    Returns:
      `(config) -> options`. The config is an ml_collections ConfigDict or a mapping. Raises ConfigError for an unknown key
      or a bad value.
    """

    def from_config(cls, config):
        return cls(**known_fields(cls, config.get(name, {}) if optional else config[name], f"{name}."))

    from_config.__doc__ = f"Read the section `{name}` of a config; raises `ConfigError` for an unknown key or a bad value."
    return classmethod(from_config)


def from_top_level() -> classmethod:
    """Return the class method `from_config` of options whose fields stand at the top level of a config, beside others."""

    def from_config(cls, config):
        """Read these keys from the top level of a config; raises `ConfigError` for a bad value."""
        return cls(**{field.name: config[field.name] for field in dataclasses.fields(cls)})

    return classmethod(from_config)


def require(condition: bool, key: str, value: object, fix: str) -> None:
    """Raise unless a condition holds.

    Args:
      key: as a user types it, such as "optimizer.momentum".
      value: what it is.
      fix: what would work, in words that follow "key=value: ".

    Raises:
      ConfigError: if `condition` is false.
    """
    if not condition:
        raise ConfigError(f"{key}={value}: {fix}")


def one_of(key: str, value: object, known: Iterable[str]) -> None:
    """Require one of the known names; raises `ConfigError` with all of them and the nearest."""
    known = list(known)
    suggestion = nearest(str(value), known) if difflib.get_close_matches(str(value), known, 1, 0.5) else ""
    require(value in known, key, value, f"must be one of {', '.join(known)}{suggestion}")


def is_number(value: object) -> bool:
    """Say whether a value is a finite number (True and False are none)."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def positive(key: str, value: object) -> None:
    """Require a number above 0; raises `ConfigError`."""
    require(is_number(value) and value > 0, key, value, "must be greater than 0")


def at_least_0(key: str, value: object) -> None:
    """Require a number of 0 or more; raises `ConfigError`."""
    require(is_number(value) and value >= 0, key, value, "must be 0 or more")


def whole(key: str, value: object) -> None:
    """Require a whole number; raises `ConfigError`."""
    require(isinstance(value, numbers.Integral) and not isinstance(value, bool), key, value, "must be a whole number")


def at_least_1(key: str, value: object) -> None:
    """Require a whole number of 1 or more, of Python or NumPy; raises `ConfigError`."""
    good = isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0
    require(good, key, value, "must be a whole number above 0")


def share(key: str, value: object) -> None:
    """Require a number from 0 to 1; raises `ConfigError`."""
    require(is_number(value) and 0 <= value <= 1, key, value, "must lie between 0 and 1")


def true_or_false(key: str, value: object) -> None:
    """Require a truth value; raises `ConfigError`."""
    require(isinstance(value, bool), key, value, "must be True or False")


def interval(key: str, value: object, what: str, highest: float = math.inf) -> None:
    """Require two numbers, 0 < low <= high <= highest; raises `ConfigError`."""
    good = isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    bound = "" if highest == math.inf else f" <= {highest:g}"
    require(good and 0 < value[0] <= value[1] <= highest, key, value, f"must be {what}, 0 < low <= high{bound}")


def sides(key: str, value: object) -> tuple[int, ...]:
    """Require two whole numbers above 0, or none; raises `ConfigError`. Returns them as a tuple."""
    value = tuple(value)
    good = len(value) in (0, 2) and all(isinstance(side, int) and side > 0 for side in value)
    require(good, key, value, "give two whole numbers above 0, e.g. (2048, 512), or none: ()")
    return value


def nearest_multiples(value: int, factor: int) -> str:
    """Return the multiples of `factor` beside a value, as text: "48 or 64"."""
    below, above = value // factor * factor, -(-value // factor) * factor
    return " or ".join(str(v) for v in sorted({below, above} - {0}))


def nearest_divisors(value: int, of: int) -> str:
    """Return the divisors of `of` beside a value, as text: "4 or 8"."""
    divisors = [d for d in range(1, of + 1) if of % d == 0]
    below = max((d for d in divisors if d <= value), default=1)
    above = min((d for d in divisors if d >= value), default=of)
    return " or ".join(str(d) for d in sorted({below, above}))
