"""Self-attention maps of a ViT as copy-paste masks (Table 4's DINO row): where the class token looks in each image.

Made once for a whole data set and kept beside it; training crops a map with its image and thresholds the crop.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import jax
import numpy as np
from absl import logging
from flax import linen as nn
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax.data.images import decoding
from cp2_jax.data.images.sources import TfdsSource
from cp2_jax.models import inputs, segmenter
from cp2_jax.models.backbones import BACKBONES
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError

NAME = "attention"
# Deviation of the blur as a share of the image's shorter side: about a patch of ViT-B/16 at 224 pixels.
BLUR = 1 / 14


def attention_map(attention: Float[np.ndarray, "rows columns"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width"]:
    """Return an image's map: attention upsampled to `size` (height, width), blurred, and levelled.

    Levelled: a pixel's value is the share of the image's pixels with less attention, times 255. Thresholds are then shares
    of the area, and 8 bits resolve them everywhere, although attention itself has few large values and many small.
    """
    field = cv2.resize(np.asarray(attention, np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    field = cv2.GaussianBlur(field, (0, 0), max(0.1, BLUR * min(size)))
    rank = np.searchsorted(np.sort(field, axis=None), field.ravel(), side="left").reshape(size)
    return np.round(rank * (255 / max(1, field.size - 1))).astype(np.uint8)


def attention_of(
    variables: dict, meta: dict
) -> Callable[[UInt8[np.ndarray, "batch side side 3"]], Float[Array, "batch rows columns"]]:
    """Return what `make_maps` takes, of a converted checkpoint whose backbone has a class token.

    Raises:
      ConfigError: if the checkpoint is of another network, or not a converted one.
    """
    model = dict(meta.get("model", {}))
    backbone = BACKBONES.get(model.get("backbone"))
    if backbone is None or backbone.class_attention is None:
        raise ConfigError("attention maps need a converted ViT (see docs/checkpoints.md), such as DINO's ViT-B/16")
    network = Network.from_config(model | dict(meta["input"]))
    parts = {kind: parts["backbone"] for kind, parts in variables.items() if "backbone" in parts}
    module = segmenter.build(network, top="projection", image_size=model["image_size"]).backbone
    return make_attend(backbone.class_attention, module, parts, network.mean, network.std)


def make_maps(
    source: Any,
    attend: Callable[[UInt8[np.ndarray, "batch side side 3"]], Float[Array, "batch rows columns"]],
    side: int,
    batch_size: int,
) -> Iterator[dict[str, bytes]]:
    """Yield {'image': JPEG bytes} of the map of each image of a source, in its order, at the image's own size.

    An image that cannot be read gets a map of one pixel: training replaces the image, and asks for no map of it.

    Args:
      source: of encoded images, see `data.sources`.
      attend: uint8 images, resized to `side`, → attention [batch, rows, columns].
      side: images of any shape are resized to side x side pixels for the network.
    """
    for start in range(0, len(source), batch_size):
        indices = range(start, min(start + batch_size, len(source)))
        images = [_decode(source, index) for index in indices]
        small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
        small += [small[-1]] * (batch_size - len(small))  # one compiled program
        for image, attention in zip(images, np.asarray(attend(np.stack(small))), strict=False):
            stream = io.BytesIO()
            Image.fromarray(attention_map(attention, image.shape[:2])).save(stream, "JPEG", quality=90)
            yield {"image": stream.getvalue()}


def _decode(source, index):
    try:
        return decoding.decode(source[index], source.name(index))
    except decoding.UnreadableImage:
        return np.zeros((1, 1, 3), np.uint8)


def make_attend(
    class_attention: Callable[..., Float[Array, "batch rows columns"]],
    module: nn.Module,
    variables: dict,
    mean: Any,
    std: Any,
) -> Callable[[UInt8[np.ndarray, "batch side side 3"]], Float[Array, "batch rows columns"]]:
    """Return the compiled function that `make_maps` takes.

    Args:
      class_attention: of the backbone, see `models.interface.Backbone`.
      module, variables: the backbone and its {'params', …}. mean, std: of its inputs.
    """

    def attend(images):
        return class_attention(module, variables, inputs.normalize(images, mean, std))

    return jax.jit(attend)


def fingerprint(source: Any) -> str:
    """Return a text that differs for data sets of other images, from their number and 64 of them."""
    places = np.unique(np.linspace(0, len(source) - 1, 64).astype(int))
    checksum = 0
    for place in places:
        checksum = zlib.crc32(source[int(place)][:4096], checksum)
    return f"{len(source)} images {checksum:08x}"


def open_maps(config: ConfigDict, source: Any) -> TfdsSource | None:
    """Return the maps of `config.data.attention`, or None where the masks are made otherwise (`config.augment.mask`).

    Raises:
      ConfigError: if they were not made from the images of `source`.
      SourceError: if they are not there.
    """
    if config.augment.mask != NAME:
        if config.data.attention:
            logging.warning("data.attention is not read: augment.mask=%s makes masks without maps", config.augment.mask)
        return None
    maps = TfdsSource(config.data.attention, "train")
    recorded = maps.path / "complete.txt"
    if len(maps) != len(source) or not recorded.exists() or not recorded.read_text("utf-8").startswith(fingerprint(source)):
        raise ConfigError(
            f"data.attention={config.data.attention} was not made from the images of data.path={config.data.path}; make "
            "the maps with cp2 attention-maps"
        )
    return maps
