"""How a backbone and a head describe themselves: everything that the rest of the package asks of one.

A new backbone or head is one file with its options, its module and one of these descriptions, and one line in the table of
`backbones` or `heads` (docs/extending.md; tests/models/test_new_network.py does it).
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from cp2_jax.options import known_fields

# A method of a Flax module: (class, the method's name).
Method = tuple[type, str]


@dataclasses.dataclass(frozen=True)
class Masking:
    """How padding is kept out of a network, so that images of several sizes can share a canvas (`segmentation.padded`).

    Convolutions of `models.conv.Conv` and what works on each pixel by itself need no mention. Anything else that mixes the
    pixels of an image must be in a method named here.

    Attributes:
      zeroed: methods whose first argument is set to 0 outside the image, such as a max-pool after a ReLU.
      averaged: methods that return the mean of their argument over height and width: [batch, h, w, c] → [batch, 1, 1, c].
        The mean is then taken over the image, without the padding.
    """

    zeroed: tuple[Method, ...] = ()
    averaged: tuple[Method, ...] = ()


def never(options: Any) -> None:
    """Say that a network cannot be masked: each size of image is then predicted by a program of its own."""


def anything(options: Any) -> int:
    """Say that images may have any sides."""
    return 1


# Arrays of a part of a network: the path below it, such as "layer1_0/conv1/kernel" → the shape as the network has it.
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Described:
    """What weights tell of their network.

    Attributes:
      section: values of the part's section of `config.model`.
      unknown: keys of `section` whose value had to be supposed, for the shapes do not tell it.
      image_size: side in pixels that a position table is made for; 0 where there is none.
      doubt: why the weights may be incomplete: they are refused unless the user confirms it by the values in `confirm`.
    """

    section: Mapping[str, Any]
    unknown: tuple[str, ...] = ()
    image_size: int = 0
    doubt: str = ""
    confirm: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def nothing(shapes: Shapes) -> None:
    """Say that weights of others are not recognised."""


def limit(what: str, value: int, highest: int) -> None:
    """Refuse a size that no real network has, before anything is made of it.

    Raises:
      ValueError: if the value is not between 1 and `highest`.
    """
    if not 1 <= value <= highest:
        raise ValueError(f"{what} {value}: known networks have 1 to {highest}")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone.

    Attributes:
      options: frozen dataclass of its section of the config, `config.model.<name>`, with a class method
        `from_config(section, dtype)` that checks the values; `dtype` is the name of the computation's. The dataclass's
        defaults are used for keys that a config does not have. `options` below is an instance.
      build: `(options, *, image_size, norm, dtype, remat)` → the Flax module, which is called as `(images, train)` with
        normalised images [batch, height, width, 3] and returns a tuple of `stages` maps [batch, h, w, channels]. `norm`
        makes a batch norm (`models.norm.BatchNorm`), `remat` asks for less memory in the backward pass.
      stages: number of maps; the head reads the last.
      stride: `(options)` → image pixels per pixel of the last map, along each side.
      multiple: `(options)` → the number that the sides of every image must be multiples of.
      masking: `(options)` → how padding is kept out of it, or None if it cannot be.
      stride_is: what sets the stride, for messages.
      with_stride: `(options, stride)` → options of the same weights at another output stride, or None if it has but one.
      must_agree: keys of its section whose value must be the checkpoint's, for the weights compute nonsense with another.
      may_differ: keys that may be another than the checkpoint's; this is then reported.
      computed_by: keys that say how it is computed, not what: they may change at any time, after finetuning too.
      layers: `(options)` → (number of layers, function from the path of a parameter, such as "blocks_3/attn/qkv/kernel", to
        its layer, from 0 on); for learning rates that fall from layer to layer. The last is the head's as well. None: it
        has no such order.
      fit: `(params, options, image_size)` → (the backbone's parameters changed to fit, what was changed, a line each).
        Raises ValueError if they cannot.
      describe: `(shapes)` → what the weights tell, or None if they are of another backbone. Raises ValueError with the
        reason if they are of a network that it cannot compute. The shapes come from a file that nobody vouches for: sizes
        are limited here (`limit`), for the network is traced afterwards.
      reads_image: path of the kernel [rows, columns, 3, channels] that reads the image, whose inputs are turned round for
        weights that were made for BGR images.
      absent_is_zero: paths of arrays that some sources do not have, which is the same as if they were zero.
      in_mmsegmentation: `(options, image_size)` → the arguments of MMSegmentation's backbone of the same weights that
        computes the same. Raises ValueError with what it cannot compute. None if it has no such backbone.
      class_attention: `(module, variables, images)` → attention of the class token to the patches, [batch, rows, columns],
        or None if it has no such thing.
      pretrain_optimizer, finetune_optimizer: settings of `config.optimizer` with which it is trained, where they are not
        those of the configs' SGD.
      random_head_decay: weight decay of finetuning with a head that starts at random.
    """

    options: type
    build: Callable[..., nn.Module]
    stages: int
    stride: Callable[[Any], int]
    multiple: Callable[[Any], int] = anything
    masking: Callable[[Any], Masking | None] = never
    stride_is: str = "the output stride"
    with_stride: Callable[[Any, int], Any] | None = None
    must_agree: tuple[str, ...] = ()
    may_differ: tuple[str, ...] = ()
    computed_by: tuple[str, ...] = ()
    layers: Callable[[Any], tuple[int, Callable[[str], int]]] | None = None
    fit: Callable[[Mapping, Any, int], tuple[dict, list[str]]] | None = None
    describe: Callable[[Shapes], Described | None] = nothing
    reads_image: str = ""
    absent_is_zero: tuple[str, ...] = ()
    in_mmsegmentation: Callable[[Any, int], dict[str, Any]] | None = None
    class_attention: Callable[..., Any] | None = None
    pretrain_optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finetune_optimizer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    random_head_decay: float = 5e-4


@dataclasses.dataclass(frozen=True)
class Head:
    """A head between backbone and projection or classifier.

    Attributes:
      options: as `Backbone.options`, but for `from_config(section)`.
      build: `(options, *, norm, dtype)` → the Flax module, called as `(map, train)`; map and result are [batch, h, w,
        channels], the result one pixel where the head is not dense.
      dense: whether there is one feature for each feature of the backbone. Only such heads segment.
      least_images: fewest images of a batch-norm group that it can be trained with.
      masking: as `Backbone.masking`.
      may_differ, describe: as those of `Backbone`. in_mmsegmentation: likewise, `(options)` → arguments.
    """

    options: type
    build: Callable[..., nn.Module]
    dense: bool = True
    least_images: int = 1
    masking: Callable[[Any], Masking | None] = never
    may_differ: tuple[str, ...] = ()
    describe: Callable[[Shapes], Described | None] = nothing
    in_mmsegmentation: Callable[[Any], dict[str, Any]] | None = None


def axis(shapes: Shapes, path: str, which: int, default: int) -> int:
    """Return one size of an array, or a default if the array is not there or has fewer axes."""
    shape = shapes.get(path, ())
    return shape[which] if -len(shape) <= which < len(shape) else default


def count(shapes: Shapes, pattern: str) -> int:
    """Return how many numbered parts there are: one more than the largest number in the pattern's only group."""
    found = (re.match(pattern, path) for path in shapes)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def read(options: type, name: str, section: Mapping) -> Any:
    """Return the options that a section of `config.model` holds, lists as tuples; values are not checked.

    Args:
      options: the dataclass.
      name: of the section.
      section: its values; what is absent keeps the dataclass's default.

    Raises:
      ConfigError: for a key that the dataclass does not have.
    """
    return options(**known_fields(options, section, f"model.{name}."))
