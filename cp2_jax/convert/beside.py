"""What is written beside a file of weights: Hugging Face's config files."""

import json
import pathlib
from typing import Any

from cp2_jax.convert.containers.values import Refused


def config_files(path: pathlib.Path) -> dict[str, Any]:
    """Return what `config.json` and `preprocessor_config.json` of a Hugging Face folder say of heads and input.

    Raises:
      Refused: one of the two is there and is no JSON object.
    """
    found: dict[str, Any] = {}
    for name in ("config.json", "preprocessor_config.json"):
        file = path.with_name(name)
        if not file.is_file() or file.stat().st_size > 1 << 20:
            continue
        try:
            stated = json.loads(file.read_text("utf-8"))
            stated |= stated.get("pretrained_cfg") or {}
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise Refused(f"{file} beside it is no JSON object") from error
        heads = stated.get("num_attention_heads", stated.get("num_heads"))
        found |= {"heads": heads} if type(heads) is int and heads > 0 else {}
        mean, std = (stated.get(a) or stated.get(b) for a, b in (("image_mean", "mean"), ("image_std", "std")))
        if _three(mean) and _three(std):
            found |= {"mean": tuple(mean), "std": tuple(std), "source": name}
    return found


def _three(values):
    return isinstance(values, list | tuple) and len(values) == 3 and all(isinstance(v, int | float) for v in values)
