"""The table of backbones by their name in `config.model.backbone`."""

from cp2_jax.models import resnet, vit
from cp2_jax.models.interface import Backbone

BACKBONES: dict[str, Backbone] = {"resnet": resnet.BACKBONE, "vit": vit.BACKBONE}


def finetuning_decay(backbone: str, head: str) -> float:
    """Return the weight decay of finetuning, which follows the head (section 4.1).

    The paper turns it off for CP2 models, whose head is pretrained, and keeps it for heads that start at random.

    Args:
      backbone: a name in `BACKBONES`.
      head: what the head starts from, `config.init.head`: "checkpoint" or "random".
    """
    return BACKBONES[backbone].random_head_decay if head == "random" else 0.0
