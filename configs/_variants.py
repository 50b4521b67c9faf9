"""How the variants of a config compose: one rule for pretraining and finetuning.

Variants follow the name of a config after a colon, several with commas: `configs/pretrain.py:vit,fcn,original`. Each
variant is a function that changes the config, and each says what it chooses (the backbone, the head, …). The order in which
they are typed does not matter: they are applied in the order of the config's own table. Two variants that choose the same
thing are refused, because one of them would be lost without a word.
"""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from cp2_jax.options import ConfigError, nearest

# name → (what it chooses, function that changes a config), in the order of application.
Table = Mapping[str, tuple[tuple[str, ...], Callable[[ConfigDict], None]]]


def apply(config: ConfigDict, variants: str, table: Table) -> None:
    """Change a config as the named variants say.

    Args:
      config: is changed in place.
      variants: names with commas between them, such as "vit,fcn"; "" for none.
      table: the variants that this config has.

    Raises:
      ConfigError: for a name that is not in the table, or for two names that choose the same thing.
    """
    names = [name.strip() for name in variants.split(",") if name.strip()]
    for name in names:
        if name not in table:
            raise ConfigError(f"there is no variant {name!r}{nearest(name, table)}")
    chosen: dict[str, str] = {}
    for name in table:
        if name not in names:
            continue
        choices, change = table[name]
        for choice in choices:
            if choice in chosen:
                raise ConfigError(
                    f"the variants {chosen[choice]!r} and {name!r} exclude each other: both choose the {choice}"
                )
            chosen[choice] = name
        change(config)
