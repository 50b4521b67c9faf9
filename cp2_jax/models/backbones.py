"""The table of backbones by their name in `config.model.backbone`."""

from cp2_jax.models import resnet, vit
from cp2_jax.models.interface import Backbone

BACKBONES: dict[str, Backbone] = {"resnet": resnet.BACKBONE, "vit": vit.BACKBONE}
