"""CP2: copy-paste contrastive pretraining for semantic segmentation, in JAX and Flax.

    import cp2_jax

    cp2_jax.pretrain("photos", "runs/photos")                             # images without labels
    cp2_jax.finetune("my_data", "runs/mine", checkpoint="runs/photos")    # images with masks
    result = cp2_jax.load_segmenter("runs/mine").predict("photo.jpg")
    result.show()

`evaluate`, `predict` and `export` do what the commands of these names do. `load` gives a jit-able function from images
to dense features, `embed` writes the features of a folder, `convert_checkpoint` reads somebody else's checkpoint.
Everything is imported when it is used first.
"""

__version__ = "0.2.0"

# Name → the module that has it. Not imported here: JAX takes a second, and reads its settings when it is imported.
_HOMES = {
    "pretrain": "cp2_jax.interface.training",
    "finetune": "cp2_jax.interface.training",
    "evaluate": "cp2_jax.interface.testing",
    "predict": "cp2_jax.interface.testing",
    "load_segmenter": "cp2_jax.interface.segmenter",
    "embed": "cp2_jax.interface.embedding",
    "probe": "cp2_jax.interface.probing",
    "convert_checkpoint": "cp2_jax.interface.converting",
    "export": "cp2_jax.interface.exporting",
    "export_program": "cp2_jax.interface.exporting",
    "load": "cp2_jax.features",
}
__all__ = [*_HOMES]


def __getattr__(name):
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__():
    return sorted({*(name for name in globals() if name[:1] != "_" or name[:2] == "__"), *__all__})
