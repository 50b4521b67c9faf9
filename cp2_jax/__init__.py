"""CP2: copy-paste contrastive pretraining for semantic segmentation, in JAX and Flax.

`model, variables = cp2_jax.load(path)` gives a jit-able function from images to dense features; see `cp2_jax.features`.
"""

__all__ = ["load"]


def __getattr__(name):
    # Not at import: entry points set JAX's flags before anything imports JAX.
    if name == "load":
        from cp2_jax.features import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
