"""Your own images and masks, from a CP2 model; otherwise as finetune_voc.py.

    cp2 prepare folder --input my_data --check
    cp2 finetune --config finetune_folder --workdir runs/mine \
        --config.data.path=my_data --config.init.checkpoint=runs/cp2_r50_aspp

Expected: no figure, the data is yours. Reads images/{train,val}, labels/{train,val} (8-bit PNGs of class indices; 255 is
ignored) and classes.txt, a class a line: `name` or `name red green blue`. Split files instead of folders, a name a line:
--config.data.split=train.txt --config.data.eval_split=val.txt. See docs/data.md.
"""

from cp2_jax.configs import finetune_voc


def get_config(variants: str = ""):
    """Return the config; see `finetune_voc.with_variants`."""
    config = finetune_voc.get_config()
    config.steps = 20_000
    config.data.images = "images"
    config.data.labels = "labels"
    config.data.split = "train"
    config.data.eval_split = "val"
    config.data.classes = "classes.txt"
    config.data.num_classes = 0  # as many as classes.txt names
    config.data.class_names = ()
    config.model.num_classes = 0
    config.save_every = 500
    config.eval_every = 2000
    return finetune_voc.with_variants(config, variants)
