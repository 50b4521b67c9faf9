"""ResNet as torchvision lays it out (7x7 stem, stride in the 3x3 convolution), dilated to keep the output stride."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cp2_jax.models.conv import Conv
from cp2_jax.models.conv_forms import materialize
from cp2_jax.models.interface import Backbone, Described, Masking, Shapes, axis, count, limit, read
from cp2_jax.models.norm import BatchNorm
from cp2_jax.models.pooling import max_pool
from cp2_jax.options import one_of, positive, require, true_or_false

STAGE_SIZES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_BASIC = (18, 34)
PADDINGS = ("torch", "same", "same_pool")
# Strides and rates of the four stages, by output stride.
STRIDES = {
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    4: ((1, 1, 1, 1), (1, 2, 4, 8)),
}


@dataclasses.dataclass(frozen=True)
class ResNetOptions:
    """`config.model.resnet`.

    Attributes:
      depth: which network; 18 and 34 have two 3x3 convolutions in a block, the others a bottleneck.
      width: channels of the first stage's 3x3 convolutions.
      stem_width: channels of the first convolution.
      stage_sizes: blocks of each stage, if not those of `depth`.
      output_stride: 4, 8, 16 or 32; stages that would go beyond it keep the resolution and dilate instead.
      contract_dilation: the first block of a dilated stage keeps the rate before it (the released code's 1, 2, 2), where
        the paper dilates every 3x3 convolution of the stage.
      basic_dilation: which 3x3 convolutions of a dilated block of depth 18 or 34 are dilated: "both", or only the "first",
        as in MMSegmentation, whose models are converted so. The default is what this project's runs always had.
      zero_init_residual: the last norm scale of each block starts at zero (the released code).
      padding: "torch"; "same": TensorFlow's everywhere (see `conv.convolve`), as in BYOL and DetCon; "same_pool":
        TensorFlow's only in the max-pool, as in SimCLR.
    """

    depth: int = 50
    width: int = 64
    stem_width: int = 64
    stage_sizes: tuple[int, ...] = ()
    output_stride: int = 16
    contract_dilation: bool = False
    basic_dilation: str = "both"
    zero_init_residual: bool = False
    padding: str = "torch"

    @classmethod
    def from_config(cls, section: Mapping, dtype: str = "float32") -> "ResNetOptions":
        """Read and check the section; any dtype will do. Raises `ConfigError`."""
        options = read(cls, "resnet", section)
        positive("model.resnet.width", options.width)
        positive("model.resnet.stem_width", options.stem_width)
        require(options.depth in STAGE_SIZES, "model.resnet.depth", options.depth, "must be 18, 34, 50, 101 or 152")
        stages = options.stage_sizes
        require(len(stages) in (0, 4), "model.resnet.stage_sizes", stages, "give 4 numbers, or none to follow the depth")
        stride = options.output_stride
        require(stride in STRIDES, "model.resnet.output_stride", stride, "must be 4, 8, 16 or 32")
        one_of("model.resnet.padding", options.padding, PADDINGS)
        one_of("model.resnet.basic_dilation", options.basic_dilation, ("both", "first"))
        for key in ("contract_dilation", "zero_init_residual"):
            true_or_false(f"model.resnet.{key}", getattr(options, key))
        return options

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        return self.stage_sizes or STAGE_SIZES[self.depth]

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are 1x1, 3x3, 1x1 rather than 3x3, 3x3."""
        return self.depth not in _BASIC


class Block(nn.Module):
    """Residual block: 1x1, 3x3, 1x1 (`bottleneck`) or 3x3, 3x3, the second of which has `second_dilation`."""

    width: int
    stride: int
    dilation: int
    bottleneck: bool
    second_dilation: int
    norm: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]
    zero_init_residual: bool

    @nn.compact
    def __call__(self, x, train: bool):
        outputs = self.width * 4 if self.bottleneck else self.width
        spatial = dict(stride=self.stride, dilation=self.dilation)
        if self.bottleneck:
            layers = [(self.width, 1, {}), (self.width, 3, spatial), (outputs, 1, {})]
        else:
            layers = [(outputs, 3, spatial), (outputs, 3, dict(dilation=self.second_dilation))]
        y = x
        for number, (features, size, options) in enumerate(layers, 1):
            last = number == len(layers)
            zero = {"scale_init": nn.initializers.zeros} if last and self.zero_init_residual else {}
            y = self.conv(features, size, name=f"conv{number}", **options)(y)
            y = self.norm(name=f"bn{number}", relu=not last, **zero)(y, train)
        if self.stride != 1 or x.shape[-1] != outputs:
            x = self.conv(outputs, 1, stride=self.stride, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train)
        return _settled(nn.relu(x + y), self.variables["params"]["bn1"]["scale"])


def _settled(
    x: Float[Array, "batch height width channels"], scale: Float[Array, " _"]
) -> Float[Array, "batch height width channels"]:
    """Return x; on CPUs as an array, where XLA computes all blocks before it once more for whoever reads it."""
    return jax.lax.platform_dependent(x, scale, cpu=materialize, default=lambda x, _: x)


class ResNet(nn.Module):
    """ResNet-18/34/50/101/152, or any `stage_sizes`.

    Attributes:
      norm: makes a batch norm.
      remat: compute each block again in the backward pass instead of keeping what is inside it.
    """

    options: ResNetOptions = ResNetOptions()
    norm: Callable[..., nn.Module] = BatchNorm
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width 3"], train: bool) -> tuple[Float[Array, "batch _ _ _"], ...]:
        """Return the outputs of the four stages, at strides 4, 8, 16, 32 but no more than `output_stride`."""
        options = self.options

        def conv(features, size, **spatial):
            padding = "same" if options.padding == "same" else "torch"
            return Conv(features, size, padding=padding, dtype=self.dtype, **spatial)

        def norm(**initial):
            return self.norm(dtype=self.dtype, **initial)

        # `train` is the second argument after self, and no array.
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        x = norm(name="bn1", relu=True)(conv(options.stem_width, 7, stride=2, name="conv1")(x), train)
        x = _settled(self.pool(x), self.variables["params"]["bn1"]["scale"])
        outputs, reached, dilation = [], 4, 1
        for stage, blocks in enumerate(options.sizes, 1):
            stride, before = (1, dilation) if stage == 1 else (2, dilation)
            if stride == 2 and reached >= options.output_stride:
                stride, dilation = 1, dilation * 2
            reached *= stride
            for index in range(blocks):
                rate = before if index == 0 and options.contract_dilation else dilation
                x = block(
                    width=options.width * 2 ** (stage - 1),
                    stride=stride if index == 0 else 1,
                    dilation=rate,
                    bottleneck=options.bottleneck,
                    second_dilation=rate if options.basic_dilation == "both" else 1,
                    norm=norm,
                    conv=conv,
                    zero_init_residual=options.zero_init_residual,
                    name=f"layer{stage}_{index}",
                )(x, train)
            outputs.append(x)
        return tuple(outputs)

    def pool(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch _ _ channels"]:
        """Return the stem's output, max-pooled; a method of its own for `Masking.zeroed`."""
        return max_pool(x, "torch" if self.options.padding == "torch" else "same")


def _build(options: ResNetOptions, *, image_size: int, norm: Callable[..., nn.Module], dtype: Any, remat: bool) -> ResNet:
    return ResNet(options, norm=norm, dtype=dtype, remat=remat)


def _stride(options: ResNetOptions) -> int:
    return options.output_stride


def _with_stride(options: ResNetOptions, stride: int) -> ResNetOptions:
    return ResNetOptions.from_config(dataclasses.asdict(options) | {"output_stride": stride})


def _masking(options: ResNetOptions) -> Masking | None:
    # TensorFlow's padding depends on whether a side is even, which a canvas hides.
    return Masking(zeroed=((ResNet, "pool"),)) if options.padding == "torch" else None


def describe(shapes: Shapes) -> Described | None:
    """Return the network that these weights are of, from the names and sizes of their blocks.

    Raises:
      ValueError: for sizes that no ResNet has.
    """
    stages = tuple(count(shapes, rf"layer{stage}_(\d{{1,6}})/") for stage in range(1, 5))
    if not any(stages):
        return None
    bottleneck = any(re.fullmatch(r"layer\d_\d+/conv3/kernel", path) for path in shapes)
    known = [d for d, sizes in STAGE_SIZES.items() if sizes == stages and (d not in _BASIC) == bottleneck]
    stem = axis(shapes, "conv1/kernel", -1, 64)
    width = axis(shapes, "layer1_0/conv1/kernel", -1, stem)
    limit("a first convolution of", stem, 4096)
    limit("a first stage of width", width, 4096)
    if known:
        return Described({"depth": known[0], "width": width, "stem_width": stem, "stage_sizes": ()})
    all_known = ", ".join(f"{d}: {'-'.join(map(str, sizes))}" for d, sizes in STAGE_SIZES.items())
    doubt = (
        f"its stages have {'-'.join(map(str, stages))} {'bottleneck' if bottleneck else 'basic'} blocks, as no known "
        f"ResNet ({all_known}): tensors are missing. If it is meant so, pass --stage_sizes {','.join(map(str, stages))}"
    )
    # Without a known depth, 50 and 18 say which kind of block.
    section = {"depth": 50 if bottleneck else 18, "width": width, "stem_width": stem, "stage_sizes": stages}
    return Described(section, doubt=doubt, confirm={"stage_sizes": stages})


def in_mmsegmentation(options: ResNetOptions, image_size: int) -> dict[str, Any]:
    """Return the arguments of MMSegmentation's ResNet that computes the same.

    Raises:
      ValueError: it cannot, with the setting that it lacks.
    """
    if options.padding != "torch":
        raise ValueError(f"model.resnet.padding={options.padding}: it pads as PyTorch does")
    if options.stage_sizes:
        raise ValueError(f"model.resnet.stage_sizes={options.stage_sizes}: its ResNet has those of a depth")
    if not options.bottleneck and options.output_stride < 32 and options.basic_dilation != "first":
        raise ValueError("model.resnet.basic_dilation=both: it dilates the first 3x3 convolution of such a block alone")
    strides, dilations = STRIDES[options.output_stride]
    return {
        "type": "ResNet",
        "depth": options.depth,
        "base_channels": options.width,
        "stem_channels": options.stem_width,
        "strides": strides,
        "dilations": dilations,
        "contract_dilation": options.contract_dilation,
        "style": "pytorch",
        "out_indices": (0, 1, 2, 3),
    }


BACKBONE = Backbone(
    options=ResNetOptions,
    build=_build,
    stages=4,
    stride=_stride,
    masking=_masking,
    with_stride=_with_stride,
    describe=describe,
    reads_image="conv1/kernel",
    in_mmsegmentation=in_mmsegmentation,
    must_agree=("depth", "width", "stem_width", "stage_sizes", "padding"),
    # Another network of the same weights, which may be meant: finetuning at a smaller stride, say.
    may_differ=("output_stride", "contract_dilation", "basic_dilation"),
)
