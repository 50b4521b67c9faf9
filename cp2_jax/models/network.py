"""`config.model` as the rest of the package asks for it: one object that knows backbone, head and their options."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp

from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.heads import HEADS
from cp2_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from cp2_jax.models.interface import Backbone, Head, Masking
from cp2_jax.options import ConfigError, nearest_multiples, one_of, require


@dataclasses.dataclass(frozen=True)
class Network:
    """A model as its config describes it, checked.

    Attributes:
      backbone_name, head_name: in the tables `backbones.BACKBONES` and `heads.HEADS`.
      backbone_options, head_options: see `interface.Backbone.options`.
      dtype: of the computation; parameters and statistics are float32 all the same.
      projection_dim: channels of the projection. num_classes, dropout: of the classifier; 0 classes in pretraining.
      mean, std: of the inputs, RGB on [0, 1].
    """

    backbone_name: str
    backbone_options: Any
    head_name: str
    head_options: Any
    dtype: jnp.dtype = jnp.dtype("float32")
    projection_dim: int = 128
    num_classes: int = 0
    dropout: float = 0.0
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @classmethod
    def from_config(cls, model: Mapping) -> "Network":
        """Read `config.model`, of a config or of what a converted checkpoint says of itself.

        Args:
          model: the names `backbone` and `head` ("aspp" where there is none), a section for each of the two by its name,
            and the other attributes of this class. What is absent is as the classes' defaults have it; sections of other
            backbones and heads are not looked at.

        Raises:
          ConfigError: for an unknown name or an impossible value, with what would work.
        """
        backbone, head, dtype = model["backbone"], model.get("head", "aspp"), model.get("dtype", "float32")
        one_of("model.backbone", backbone, BACKBONES)
        one_of("model.head", head, HEADS)
        one_of("model.dtype", dtype, ("float32", "bfloat16", "float64"))
        rest = {key: model[key] for key in ("projection_dim", "num_classes", "dropout") if key in model}
        rest |= {key: tuple(model[key]) for key in ("mean", "std") if key in model}
        return cls(
            backbone,
            BACKBONES[backbone].options.from_config(model.get(backbone, {}), dtype),
            head,
            HEADS[head].options.from_config(model.get(head, {})),
            jnp.dtype(dtype),
            **rest,
        )

    @property
    def backbone(self) -> Backbone:
        """The backbone's description."""
        return BACKBONES[self.backbone_name]

    @property
    def head(self) -> Head:
        """The head's description."""
        return HEADS[self.head_name]

    @property
    def stride(self) -> int:
        """Image pixels per feature pixel, along each side."""
        return self.backbone.stride(self.backbone_options)

    @property
    def multiple(self) -> int:
        """The number that the sides of every image must be multiples of."""
        return self.backbone.multiple(self.backbone_options)

    @property
    def masking(self) -> Masking | None:
        """How padding is kept out of backbone and head together; None if one of them cannot be masked."""
        parts = self.backbone.masking(self.backbone_options), self.head.masking(self.head_options)
        if None in parts:
            return None
        return Masking(*(sum((getattr(part, kind) for part in parts), ()) for kind in ("zeroed", "averaged")))

    def with_stride(self, stride: int) -> "Network":
        """Return the network of the same weights whose features lie `stride` image pixels apart.

        Raises:
          ConfigError: if the backbone has but one stride, or not this one.
        """
        if stride == self.stride:
            return self
        if self.backbone.with_stride is None:
            only = f"a {self.backbone_name} has but one, {self.backbone.stride_is}: {self.stride}"
            raise ConfigError(f"output_stride={stride}: {only}")
        return dataclasses.replace(self, backbone_options=self.backbone.with_stride(self.backbone_options, stride))

    def check_sides(self, key: str, sides: Iterable[int], dense: bool = False) -> None:
        """Require sides of images that the network takes.

        Args:
          key: of the config, for the message. sides: in pixels.
          dense: require a feature for each `stride` pixels, without remainder, as pretraining's masks do.

        Raises:
          ConfigError: with the nearest sides that work.
        """
        factor = self.stride if dense else self.multiple
        for side in sides:
            fix = f"must be a multiple of {self.backbone.stride_is}, {factor}; use {nearest_multiples(side, factor)}"
            require(isinstance(side, int) and side > 0 and side % factor == 0, key, side, fix)
