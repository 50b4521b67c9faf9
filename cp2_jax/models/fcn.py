"""The fully convolutional head (FCN)."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cp2_jax.models.conv import ConvBnRelu
from cp2_jax.models.interface import Described, Head, Masking, Shapes, axis, count, limit, read
from cp2_jax.models.norm import BatchNorm
from cp2_jax.models.tops import Features
from cp2_jax.options import positive


@dataclasses.dataclass(frozen=True)
class FCNOptions:
    """`config.model.fcn`; the defaults are the paper's.

    channels: of each convolution. num_convs: 3x3 convolutions. dilation: their rate. concat_input: add MMSegmentation's
    last convolution over input and output joined (`conv_cat`).
    """

    channels: int = 256
    num_convs: int = 2
    dilation: int = 6
    concat_input: bool = False

    @classmethod
    def from_config(cls, section: Mapping) -> "FCNOptions":
        """Read and check the section; raises `ConfigError`."""
        options = read(cls, "fcn", section)
        for key in ("channels", "num_convs", "dilation"):
            positive(f"model.fcn.{key}", getattr(options, key))
        return options


class FCNHead(nn.Module):
    """Dilated 3x3 convolutions, each with batch norm and ReLU."""

    options: FCNOptions = FCNOptions()
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Features, train: bool) -> Features:
        options, layer = self.options, dict(norm=self.norm, dtype=self.dtype)
        y = x
        for index in range(options.num_convs):
            y = ConvBnRelu(options.channels, dilation=options.dilation, name=f"convs_{index}", **layer)(y, train)
        if options.concat_input:
            y = ConvBnRelu(options.channels, name="conv_cat", **layer)(jnp.concatenate([x, y], axis=-1), train)
        return y


def _masking(options: FCNOptions) -> Masking:
    return Masking()


def describe(shapes: Shapes) -> Described | None:
    """Return the head that these weights are of; they do not tell the rate.

    Raises:
      ValueError: for sizes that no such head has.
    """
    convs = count(shapes, r"convs_(\d{1,6})/")
    if not convs:
        return None
    limit("convolutions of an FCN head:", convs, 32)
    channels = axis(shapes, "convs_0/conv/kernel", -1, 256)
    limit("FCN channels:", channels, 2**15)
    joined = any(path.startswith("conv_cat/") for path in shapes)
    section = {"channels": channels, "num_convs": convs, "dilation": 6, "concat_input": joined}
    return Described(section, unknown=("dilation",))


def in_mmsegmentation(options: FCNOptions) -> dict[str, Any]:
    """Return the arguments of MMSegmentation's head that computes the same."""
    return {"type": "FCNHead"} | dataclasses.asdict(options)


HEAD = Head(
    options=FCNOptions,
    build=FCNHead,
    masking=_masking,
    may_differ=("dilation",),
    describe=describe,
    in_mmsegmentation=in_mmsegmentation,
)
