"""The earlier name of `configs/pretrain.py:r50,aspp`, which has the paper reference, command and expected figure."""

from cp2_jax.configs import pretrain


def get_config(variants: str = ""):
    """Return `configs/pretrain.py:r50,aspp` with more variants."""
    return pretrain.get_config(f"r50,aspp,{variants}")
