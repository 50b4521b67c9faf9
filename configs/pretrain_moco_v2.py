"""The earlier name of `configs/pretrain.py:moco_v2`, which has the paper reference, command and expected figure."""

from cp2_jax.configs import pretrain


def get_config(variants: str = ""):
    """Return `configs/pretrain.py:moco_v2` with more variants."""
    return pretrain.get_config(f"moco_v2,{variants}")
