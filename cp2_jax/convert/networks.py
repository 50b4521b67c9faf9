"""What network a set of canonical names is, and every tensor that it must have: both from the models themselves.

A backbone or head recognises its weights by names and sizes (`models.interface.Backbone.describe`); what arrays such a
network has, tracing it says (`jax.eval_shape`, which computes and allocates nothing).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from cp2_jax.convert import names
from cp2_jax.convert.containers.values import Refused
from cp2_jax.models import segmenter
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.heads import HEADS
from cp2_jax.models.interface import Described, axis, limit
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError

Shapes = Mapping[str, tuple[int, ...]]

# What is in no ViT and no ResNet of ours: (pattern after the backbone's prefix, reason).
NOT_OURS = (
    (r"stem\.", "MMSegmentation's ResNetV1c, with a stem of three 3x3 convolutions; this project's ResNet has one 7x7"),
    (r"dist_token", "a distilled DeiT, with a second token; this project's ViT has the class token alone"),
    (r"reg_token", "a ViT with register tokens, which this project's has not"),
    (r"blocks\.\d+\.(ls1|ls2|gamma_)", "a ViT with layer scale, which this project's has not"),
)


@dataclasses.dataclass(frozen=True)
class Found:
    """A network among names.

    Attributes:
      model: what the weights tell, in the words of `config.model`, without what they do not.
      backbone, head: what is not known of them is in `Described.unknown`; head is None where there is none.
      expected: shape of every tensor that the network has, by canonical name.
      zeros: names among these that the file lacks and may lack: they are zero.
    """

    model: dict[str, Any]
    backbone: Described
    head: Described | None
    expected: dict[str, tuple[int, ...]]
    zeros: tuple[str, ...]


def find(shapes: Shapes, confirmed: Mapping[str, Any]) -> Found:
    """Return the network that tensors of these canonical names and shapes are.

    Args:
      confirmed: what the user vouches for, see `Described.confirm`.

    Raises:
      Refused: the network is not one of ours, with the reason.
    """
    ours = {path: shape for path, shape in (names.our_shape(name, shape) for name, shape in shapes.items()) if path}
    try:
        backbone_name, backbone = _describe(BACKBONES, _below(ours, "backbone"))
        if backbone is None:
            raise Refused(f"no backbone that this project has: there are {', '.join(BACKBONES)}")
        head_name, head = _describe(HEADS, _below(ours, "head"))
        model = {"backbone": backbone_name, backbone_name: backbone.section}
        model |= {"image_size": backbone.image_size} if backbone.image_size else {}
        if head:
            model |= {"head": head_name, head_name: head.section}
            model |= _tops(ours)
    except ValueError as error:
        raise Refused(str(error)) from error
    if backbone.doubt and any(confirmed.get(key) != value for key, value in backbone.confirm.items()):
        raise Refused(backbone.doubt)
    expected = _traced(model, "head" if head else "backbone")
    for name, part in ((backbone_name, backbone), (head_name, head)):
        if part:
            model[name] = {key: value for key, value in part.section.items() if key not in part.unknown}
    optional = (names.torch_name("params", f"backbone/{path}") for path in BACKBONES[backbone_name].absent_is_zero)
    return Found(model, backbone, head, expected, tuple(name for name in optional if name not in shapes))


def _below(ours: Shapes, part: str) -> Shapes:
    return {path.removeprefix(f"{part}/"): shape for path, shape in ours.items() if path.startswith(f"{part}/")}


def _describe(table: Mapping[str, Any], shapes: Shapes) -> tuple[str, Described | None]:
    for name, entry in table.items():
        if described := entry.describe(shapes):
            return name, described
    return "", None


def _tops(ours: Shapes) -> dict[str, int]:
    """Return the channels of projection and classifier, as far as they are there."""
    found = {}
    for key, path in (("projection_dim", "projection/conv2"), ("num_classes", "classifier/conv_seg")):
        if any(name.startswith(path.split("/")[0]) for name in ours):
            channels = axis(ours, f"{path}/kernel", 3, 1)
            limit(f"{key}:", channels, 2**16)
            found[key] = channels
    return found


def _traced(model: Mapping[str, Any], highest: str) -> dict[str, tuple[int, ...]]:
    try:
        network = Network.from_config(model)
    except ConfigError as error:
        raise Refused(f"no network of this project: {error}") from error
    tops = [top for top, key in (("projection", "projection_dim"), ("classifier", "num_classes")) if key in model]
    expected: dict[str, tuple[int, ...]] = {}
    for top in tops or ["projection"]:
        parts = {"backbone", highest} | ({top} if tops else set())
        found = _shapes(network, top, model.get("image_size", 64))
        expected |= {name: shape for (part, name), shape in found.items() if part in parts}
    return expected


@functools.lru_cache(maxsize=8)
def _shapes(network: Network, top: str, image_size: int) -> dict[tuple[str, str], tuple[int, ...]]:
    """Return {(part, canonical name): shape} of a model, traced once."""
    model = segmenter.build(network, top=top, image_size=image_size)
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(lambda images: model.init(jax.random.key(0), images, train=False), images)
    found = {}
    for (collection, part, *rest), array in traverse_util.flatten_dict(dict(variables)).items():
        path = "/".join((part, *rest))
        found[part, names.torch_name(collection, path)] = names.torch_shape(path, array.shape)
    return found
