"""A checkpoint as a function from images to dense features: what `cp2_jax.load` gives."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from cp2_jax.convert.origins import origin
from cp2_jax.models import inputs, segmenter
from cp2_jax.models.network import Network
from cp2_jax.models.precision import widened
from cp2_jax.options import one_of
from cp2_jax.pretraining.losses import l2_normalize
from cp2_jax.runs.checkpoints import CheckpointError, read_variables

FEATURES = ("stages", "backbone", "head", "projection", "logits")
# The part of a checkpoint's parameters that each is read from.
_READ_FROM = {"stages": "backbone", "projection": "projection", "logits": "classifier"}


@dataclasses.dataclass(frozen=True)
class FeatureExtractor:
    """A pure function of variables and images; works under `jax.jit`, `jax.vmap` (over stacks of batches) and `jax.grad`.

    Attributes:
      features: what it returns, one of `FEATURES`.
      stride: image pixels per feature pixel (of the last stage).
      mean, std: of the checkpoint's inputs, on [0, 1]; images are normalised with these.
      network: the Flax module.
    """

    features: str
    stride: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    network: nn.Module

    def __call__(
        self, variables: Any, images: UInt8[Array, "batch height width 3"] | Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch _ _ channels"] | tuple[Float[Array, "batch _ _ _"], ...]:
        """Return features of images, float32, at a `stride`-th of their size (rounded up).

        Args:
          variables: what `load` returned with this function.
          images: RGB, uint8 in 0-255 or float in [0, 1], not normalised, of any size; a ViT needs multiples of its patch.

        Raises:
          ValueError: the images have no such shape or dtype, or (where their values are known, that is outside `jax.jit`)
            are not in this range; or a ViT's image sides are not multiples of its patch.
        """
        _check(images)
        images = inputs.normalize(jnp.asarray(images), self.mean, self.std)
        if self.features in ("stages", "backbone"):
            stages = self.network.apply(variables, images, False, method="stages")
            stages = tuple(map(widened, stages))
            return stages if self.features == "stages" else stages[-1]
        if self.features == "head":
            return self.network.apply(variables, images, False, method="features")
        top = self.network.apply(variables, images, train=False)
        return l2_normalize(top) if self.features == "projection" else top


def _check(images: Any) -> None:
    """Refuse what is no batch of RGB images as `FeatureExtractor` takes them, with what to do."""
    if not hasattr(images, "shape"):
        kind = type(images).__name__
        raise ValueError(f"images are a {kind}: give one array, [batch, height, width, 3]; numpy.stack makes it of several")
    shape, dtype = jnp.shape(images), jnp.result_type(images)
    if len(shape) == 3 and 3 in (shape[0], shape[-1]):
        raise ValueError(f"images of shape {shape}: that is one image, a batch is needed: images[None]")
    if len(shape) == 4 and shape[-1] != 3 and shape[1] == 3:
        raise ValueError(f"images of shape {shape}: channels come last here: images.transpose(0, 2, 3, 1)")
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"images of shape {shape}: RGB images of shape [batch, height, width, 3] are needed")
    if dtype != jnp.uint8 and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"images of dtype {dtype}: uint8 in 0 to 255, or floats in 0 to 1, are needed")
    if dtype == jnp.uint8 or isinstance(images, jax.core.Tracer) or not images.size:
        return
    low, high = float(jnp.min(images)), float(jnp.max(images))
    # Beyond any overshoot of resizing: another scale, not an image on [0, 1].
    if low < -1 or high > 2:
        fix = "divide them by 255" if low >= 0 else "they are normalised by the function itself"
        raise ValueError(f"images from {low:.3g} to {high:.3g}: floats are taken to be in 0 to 1; {fix}")


def load(
    path: str | pathlib.Path, features: str | None = None, *, dtype: Any = "float32", output_stride: int | None = None
) -> tuple[FeatureExtractor, dict]:
    """Return (model, variables): `model(variables, images)` gives dense features.

    Example:
      model, variables = cp2_jax.load("runs/photos")
      jax.jit(model)(variables, images)  # [batch, height / 16, width / 16, channels], float32

    Args:
      path: work directory of pretraining or finetuning (its newest step; the query encoder), one step's directory, or a
        converted checkpoint.
      features: "stages": a tuple of the backbone's stages; "backbone": the last of them; "head": the segmentation head's
        output, which the classifier of finetuning reads; "projection": the l2-normalised features of the pretraining loss
        (f in the paper's equation 2); "logits": a finetuned model's classes. Default: the head if there is one, else
        the backbone.
      dtype: of the computation, "bfloat16" or `jnp.bfloat16`; it may differ from the run's.
      output_stride: of a ResNet, 4, 8, 16 or 32; default: as it was trained, 16 for converted backbones.

    Raises:
      CheckpointError: there is no checkpoint, or it has no such features.
      ConfigError: the backbone has no such output stride, or there is no such dtype or kind of features.
    """
    if features is not None:
        one_of("features", features, FEATURES)
    if path == "":
        raise CheckpointError("an empty text was given as the path of a checkpoint")
    variables, meta = read_variables(path)
    parts = variables["params"]
    features = features or ("head" if "head" in parts else "backbone")
    part = _READ_FROM.get(features, features)
    if part not in parts:
        raise CheckpointError(f"{path} has no {part}, only {', '.join(parts)}: choose other features")
    found = origin(meta)
    if found is None:
        raise CheckpointError(f"{path} does not say what model it is: it was not written by a run or the converter")
    dtype = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
    network = Network.from_config(dict(found.model) | {"dtype": dtype})
    network = network if output_stride is None else network.with_stride(output_stride)
    top = "classifier" if features == "logits" else "projection"
    module = segmenter.build(network, top=top, image_size=found.image_size)
    used = {"backbone", part} | ({"head"} if features in ("projection", "logits") else set())
    variables = {
        collection: {name: jax.tree.map(jnp.asarray, tree) for name, tree in members.items() if name in used}
        for collection, members in variables.items()
    }
    return FeatureExtractor(features, network.stride, network.mean, network.std, module), variables
