"""DeepLab v3's head: atrous spatial pyramid pooling with image pooling."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cp2_jax.models.conv import ConvBnRelu
from cp2_jax.models.interface import Described, Head, Masking, Shapes, axis, count, limit, read
from cp2_jax.models.norm import BatchNorm
from cp2_jax.models.tops import Features
from cp2_jax.options import positive, require


@dataclasses.dataclass(frozen=True)
class ASPPOptions:
    """`config.model.aspp`; the defaults are the paper's.

    channels: of each branch and of the result. dilations: rate of each branch; 1 is a 1x1 convolution, others 3x3.
    """

    channels: int = 512
    dilations: tuple[int, ...] = (1, 6, 12, 18)

    @classmethod
    def from_config(cls, section: Mapping) -> "ASPPOptions":
        """Read and check the section; raises `ConfigError`."""
        options = read(cls, "aspp", section)
        positive("model.aspp.channels", options.channels)
        rates = options.dilations
        good = len(rates) > 0 and all(isinstance(r, int) and r > 0 for r in rates)
        require(good, "model.aspp.dilations", rates, "give one whole number above 0 for each branch, e.g. (1, 6, 12, 18)")
        return options


class ASPPHead(nn.Module):
    """DeepLab v3 head as in MMSegmentation: branches and pooled image joined, then one 3x3 convolution."""

    options: ASPPOptions = ASPPOptions()
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        channels = self.options.channels

        def layer(name, size=3, dilation=1):
            return ConvBnRelu(channels, size, dilation, norm=self.norm, dtype=self.dtype, name=name)

        pooled = layer("image_pool", 1)(self.pool(x), train)
        branches = [jnp.broadcast_to(pooled, (*x.shape[:3], channels))]
        for index, dilation in enumerate(self.options.dilations):
            branches.append(layer(f"aspp_{index}", 1 if dilation == 1 else 3, dilation)(x, train))
        return layer("bottleneck")(jnp.concatenate(branches, axis=-1), train)

    def pool(self, x: Features) -> Features:
        """Return the mean over each image, [batch, 1, 1, channels]; a method of its own for `Masking.averaged`."""
        return jnp.mean(x, axis=(1, 2), keepdims=True)


def _masking(options: ASPPOptions) -> Masking:
    return Masking(averaged=((ASPPHead, "pool"),))


def describe(shapes: Shapes) -> Described | None:
    """Return the head that these weights are of; of the rates they tell which are 1, for those kernels are 1x1.

    Raises:
      ValueError: for sizes that no such head has.
    """
    if not any(path.startswith(("aspp_", "image_pool/")) for path in shapes):
        return None
    branches = count(shapes, r"aspp_(\d{1,6})/")
    limit("ASPP branches:", branches, 32)
    channels = axis(shapes, "bottleneck/conv/kernel", -1, 512)
    limit("ASPP channels:", channels, 2**15)
    default = ASPPOptions().dilations
    point = [axis(shapes, f"aspp_{index}/conv/kernel", 0, 3) == 1 for index in range(branches)]
    if point != [rate == 1 for rate in default]:
        default = tuple(1 if one else 6 * index or 6 for index, one in enumerate(point))
    return Described({"channels": channels, "dilations": default}, unknown=("dilations",))


def in_mmsegmentation(options: ASPPOptions) -> dict[str, Any]:
    """Return the arguments of MMSegmentation's head that computes the same."""
    return {"type": "ASPPHead", "channels": options.channels, "dilations": options.dilations}


HEAD = Head(
    options=ASPPOptions,
    build=ASPPHead,
    least_images=2,  # the pooled image is one value for each channel: normalised over a single image, that is zero
    masking=_masking,
    may_differ=("dilations",),
    describe=describe,
    in_mmsegmentation=in_mmsegmentation,
)
