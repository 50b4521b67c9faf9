"""Chip-hours of a recipe: an estimate from operation counts and an assumed utilisation, never a measurement."""

from ml_collections import ConfigDict

from cp2_jax.reproduce.recipes import Recipe

# Operations of one training step per image, in GFLOP (multiply and add count as two), counted by XLA in the lowered step
# (before optimisation, hence with multiplications by padding) at 224 x 224. Pretraining has two forward passes and one
# backward; finetuning has one of each.
PRETRAIN = {("resnet", "aspp"): 78.9, ("resnet", "fcn"): 52.3, ("vit", "aspp"): 58.1, ("vit", "fcn"): 39.6}
FINETUNE_SHARE = 3 / 4  # forward and backward (twice a forward) of one network, against those and a key's forward
ASSUMED = "a TPU v4 chip (275 TFLOP/s in bfloat16) at 35 % utilisation, input never the bottleneck"
_CHIP = 275e12 * 0.35
_IMAGENET = 1_281_167


def _network(config: ConfigDict) -> tuple[str, str]:
    return config.model.backbone, config.model.head


def chip_hours(recipe: Recipe) -> dict[str, float]:
    """Return the estimated hours of one seed on one chip, see `ASSUMED`.

    Args:
      recipe: of one of the paper's cells, without changes: `PRETRAIN` knows the paper's networks alone.

    Returns:
      {'pretrain': hours, 'finetune': hours}.
    """
    hours = {"pretrain": 0.0}
    if recipe.pretrain:
        config = recipe.pretrain.resolve()
        hours["pretrain"] = PRETRAIN[_network(config)] * 1e9 * _IMAGENET * config.epochs / _CHIP / 3600
    config = recipe.finetune.resolve()
    per_pixel = PRETRAIN[_network(config)] * 1e9 * FINETUNE_SHARE / 224**2
    pixels = config.batch_size * config.data.crop_size[0] * config.data.crop_size[1]
    hours["finetune"] = per_pixel * pixels * config.steps / _CHIP / 3600
    return hours
