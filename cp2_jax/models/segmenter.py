"""The segmentation model: backbone, head, and the projection or classifier on top."""

import functools

from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from cp2_jax.models.fcn import FCNHead, FCNOptions
from cp2_jax.models.network import Network
from cp2_jax.models.norm import BatchNorm
from cp2_jax.models.precision import widened
from cp2_jax.models.tops import Classifier, Projection


class Segmenter(nn.Module):
    """A whole segmentation model; exactly one of `projection` (pretraining) and `classifier` (finetuning) is given.

    `auxiliary_head` and `auxiliary_classifier`, on the backbone's stage `auxiliary_stage`, are used only in training.
    """

    backbone: nn.Module
    head: nn.Module
    projection: Projection | None = None
    classifier: Classifier | None = None
    auxiliary_head: nn.Module | None = None
    auxiliary_classifier: Classifier | None = None
    auxiliary_stage: int = 2

    def stages(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the backbone's outputs, the last one being what the head reads."""
        return self.backbone(images, train)

    def features(
        self, images: Float[Array, "batch height width 3"], train: bool = False
    ) -> Float[Array, "batch _ _ channels"]:
        """Return the head's output, float32, before projection or classifier."""
        return widened(self.head(self.backbone(images, train)[-1], train))

    def levels(self, images: Float[Array, "batch height width 3"]) -> dict[str, Float[Array, "batch _ _ _"]]:
        """Return the dense features of a pretraining model that probes look at, float32, as at test time: the
        'backbone' 's last map and, if it is a map (MoCo's is a single pixel), the 'output' of the projection."""
        backbone = self.backbone(images, False)[-1]
        output = self.projection(self.head(backbone, False), False)
        return {"backbone": widened(backbone)} | ({"output": widened(output)} if output.shape[1:3] != (1, 1) else {})

    def __call__(self, images: Float[Array, "batch height width 3"], train: bool) -> Float[Array, "batch _ _ outputs"]:
        """Return projected features (not yet l2-normalised) or class logits at the output stride, float32."""
        top = self.projection if self.projection is not None else self.classifier
        return widened(top(self.head(self.backbone(images, train)[-1], train), train))

    def with_auxiliary(
        self, images: Float[Array, "batch height width 3"], train: bool
    ) -> tuple[Float[Array, "batch _ _ classes"], Float[Array, "batch _ _ classes"]]:
        """Return the logits of the classifier and of the auxiliary one, float32."""
        return self.from_stages(self.backbone(images, train), train, auxiliary=True)

    def from_stages(
        self, stages: tuple[Float[Array, "batch _ _ _"], ...], train: bool, auxiliary: bool
    ) -> tuple[Float[Array, "batch _ _ classes"], ...]:
        """Return the logits of the classifier, and with `auxiliary` of the auxiliary one, float32, from `stages`."""
        more = ()
        if auxiliary:
            features = self.auxiliary_head(stages[self.auxiliary_stage], train)
            more = (widened(self.auxiliary_classifier(features, train)),)
        return widened(self.classifier(self.head(stages[-1], train), train)), *more


def build(
    model: ConfigDict | Network,
    *,
    top: str,
    bn_groups: int = 1,
    bn_strided: bool = False,
    image_size: int = 224,
    auxiliary: ConfigDict | None = None,
    remat: bool = False,
) -> Segmenter:
    """Make the model that a config describes.

    Args:
      model: `config.model` of a pretraining or finetuning config, or what `Network.from_config` made of it.
      top: "projection" (`projection_dim` outputs) or "classifier" (`num_classes`, `dropout`).
      bn_groups, bn_strided: see `BatchNorm`.
      image_size: side in pixels for which a ViT's position table is made.
      auxiliary: `config.auxiliary` (stage, channels, num_convs) for an auxiliary FCN head, as MMSegmentation's.
      remat: keep only each backbone block's input for the backward pass and compute the block again: the same
        numbers in less memory, for about a third more work.

    Raises:
      ConfigError: for an unknown backbone or head, or impossible values of theirs.
      KeyError: for an unknown top.
    """
    network = model if isinstance(model, Network) else Network.from_config(model)
    dtype = network.dtype
    norm = functools.partial(BatchNorm, groups=bn_groups, strided=bn_strided)
    tops = {
        "projection": Projection(network.projection_dim, dtype=dtype),
        "classifier": Classifier(network.num_classes, network.dropout, dtype=dtype),
    }
    extra = {top: tops[top]}
    if auxiliary is not None:
        options = FCNOptions(channels=auxiliary.channels, num_convs=auxiliary.num_convs, dilation=1)
        extra |= {
            "auxiliary_head": FCNHead(options, norm=norm, dtype=dtype),
            "auxiliary_classifier": Classifier(network.num_classes, network.dropout, dtype=dtype),
            "auxiliary_stage": auxiliary.stage,
        }
    return Segmenter(
        backbone=network.backbone.build(
            network.backbone_options, image_size=image_size, norm=norm, dtype=dtype, remat=remat
        ),
        head=network.head.build(network.head_options, norm=norm, dtype=dtype),
        **extra,
    )
