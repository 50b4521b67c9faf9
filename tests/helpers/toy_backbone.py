"""A backbone that the package does not know, as a newcomer would write it: options, module, description."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from cp2_jax.models.conv import Conv
from cp2_jax.models.interface import Backbone, Masking, read
from cp2_jax.options import positive


@dataclasses.dataclass(frozen=True)
class ToyOptions:
    """`config.model.toy`: channels of its two stages."""

    channels: int = 6

    @classmethod
    def from_config(cls, section, dtype="float32"):
        options = read(cls, "toy", section)
        positive("model.toy.channels", options.channels)
        return options


class Toy(nn.Module):
    """Two strided convolutions."""

    options: ToyOptions
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        first = nn.relu(Conv(self.options.channels, stride=2, dtype=self.dtype, name="first")(x))
        return first, nn.relu(Conv(self.options.channels, stride=2, dtype=self.dtype, name="second")(first))


def _build_toy(options, *, image_size, norm, dtype, remat):
    return Toy(options, dtype)


def _four(options):
    return 4


def _convolutions_alone(options):
    return Masking()


BACKBONE = Backbone(
    options=ToyOptions,
    build=_build_toy,
    stages=2,
    stride=_four,
    masking=_convolutions_alone,
    must_agree=("channels",),
    finetune_optimizer={"learning_rate": 0.5},
)


def choose(model: ConfigDict) -> None:
    """Make a config's section `model` that of this backbone and a small FCN head; it has to be in `BACKBONES` as "toy"."""
    with model.unlocked():
        model.toy = ConfigDict({"channels": 6})
    model.update(backbone="toy", head="fcn")
    model.fcn.channels = 8
