"""The earlier name of `configs/quick_tune.py:vit,fcn`, which has the paper reference, command and expected figure."""

from cp2_jax.configs import quick_tune


def get_config(variants: str = ""):
    """Return `configs/quick_tune.py:vit,fcn` with more variants."""
    return quick_tune.get_config(f"vit,fcn,{variants}")
