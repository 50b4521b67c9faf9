"""The earlier name of `configs/pretrain.py:vit,fcn`, which has the paper reference, command and expected figure."""

from cp2_jax.configs import pretrain


def get_config(variants: str = ""):
    """Return `configs/pretrain.py:vit,fcn` with more variants."""
    return pretrain.get_config(f"vit,fcn,{variants}")
