"""Chip-hours of a recipe: an estimate from operation counts and an assumed utilisation, never a measurement."""

from cp2_jax.reproduce.recipes import Recipe, Run

# Operations of one training step per image, in GFLOP (multiply and add count as two), counted by XLA in the lowered step
# (before optimisation, hence with multiplications by padding) at 224 x 224. Pretraining has two forward passes and one
# backward; finetuning has one of each.
PRETRAIN = {("resnet", "aspp"): 78.9, ("resnet", "fcn"): 52.3, ("vit", "aspp"): 58.1, ("vit", "fcn"): 39.6}
FINETUNE_SHARE = 3 / 4  # forward and backward (twice a forward) of one network, against those and a key's forward
ASSUMED = "a TPU v4 chip (275 TFLOP/s in bfloat16) at 35 % utilisation, input never the bottleneck"
_CHIP = 275e12 * 0.35
_IMAGENET = 1_281_167
# Pixels a step sees and the number of steps (section 4.1).
_FINETUNE = {"PASCAL": (16 * 512 * 512, 40_000), "Cityscapes": (8 * 512 * 1024, 60_000), "ADE20k": (16 * 512 * 512, 80_000)}
_EPOCHS = {"pretrain": 200, "quick_tune": 20}


def _network(run: Run) -> tuple[str, str]:
    """Return (backbone, head) from a config's name and overrides."""
    overrides, config = run.overrides, run.config
    vit = "vit" in config or overrides.get("model.backbone") == "vit"
    return ("vit" if vit else "resnet", "fcn" if "fcn" in config or overrides.get("model.head") == "fcn" else "aspp")


def chip_hours(recipe: Recipe) -> dict[str, float]:
    """Return {'pretrain': hours, 'finetune': hours} of one seed on one chip, see `ASSUMED`."""
    hours = {"pretrain": 0.0}
    if recipe.pretrain:
        kind = recipe.pretrain.config.removeprefix("configs/")
        epochs = recipe.pretrain.overrides.get("epochs", _EPOCHS["quick_tune" if kind.startswith("quick") else "pretrain"])
        hours["pretrain"] = PRETRAIN[_network(recipe.pretrain)] * 1e9 * _IMAGENET * epochs / _CHIP / 3600
    pixels, steps = _FINETUNE[recipe.data]
    per_pixel = PRETRAIN[_network(recipe.finetune)] * 1e9 * FINETUNE_SHARE / 224**2
    hours["finetune"] = per_pixel * pixels * steps / _CHIP / 3600
    return hours
