"""Class maps of whole images: one pass or sliding windows, one scale or several with flips, as MMSegmentation 0.x tests.

There are two ways to run a network, with one interface: `WholeImages`, whose images all have the size of their canvas, and
`MaskedImages` (see `padded`), whose images may be smaller. A result depends neither on the batch that an image is in nor on
the canvas that it is laid on.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from cp2_jax.models import inputs as pixels
from cp2_jax.models import resize, segmenter
from cp2_jax.models.interface import Masking
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError
from cp2_jax.segmentation import batching, inputs, padded
from cp2_jax.segmentation.batching import Batch
from cp2_jax.segmentation.inputs import Inputs, Size
from cp2_jax.segmentation.options import EvaluationOptions

Images = UInt8[Array, "batch height width 3"]
Probabilities = Float[Array, "batch _ _ classes"]


class Way(Protocol):
    """How a network is run over images.

    Attributes:
      compiled: shape of the images of each network program that was compiled so far.
    """

    compiled: list[tuple[int, ...]]

    def probabilities(
        self, variables: Any, view: Images, inner: Size, sizes: Size, shape: tuple[int, int], mirrored: bool
    ) -> Probabilities:
        """Return the class probabilities of one pass.

        Args:
          variables: {'params', 'batch_stats'}.
          view: canvases, the first `inner` pixels of which are image.
          inner: (height, width) of each image on its canvas.
          sizes: (height, width) of each result.
          shape: (height, width) of the results' canvas.
          mirrored: whether the network sees the images mirrored left to right. The result never is.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class WholeImages:
    """Runs a network over images that fill their canvas, at once or by sliding windows.

    Attributes:
      model: a segmenter with a classifier.
      mean, std: of its inputs.
      multiple: the network's sides must be multiples of it (a ViT's patch): images are padded with 0, the mean, below and
        right, and the logits there are cut off.
      window, stride: see `EvaluationOptions`.
      compiled: see `Way`.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiple: int = 1
    window: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    compiled: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def _run(self):
        def network(variables, images):
            self.compiled.append(images.shape)  # runs when traced, that is once a compilation
            images = inputs.pad_to_multiple(pixels.normalize(images, self.mean, self.std), self.multiple)
            return self.model.apply(variables, images, train=False)

        return jax.jit(network)

    def logits(self, variables: Any, images: Images) -> Float[Array, "batch _ _ classes"]:
        """Return logits: at the output stride for whole images, at the images' size for windows."""
        if not self.window:
            return self._run(variables, images)
        batch, *size, _ = images.shape
        window = tuple(min(a, b) for a, b in zip(self.window, size, strict=True))
        total, count = None, np.zeros((*size, 1), np.float32)
        for y, x in inputs.windows(size, self.window, self.stride):
            logits = self._run(variables, inputs.cut(images, (y, x), window))
            total = jnp.zeros((batch, *size, logits.shape[-1]), logits.dtype) if total is None else total
            total = _add_window(total, logits, jnp.array([y, x]), window, self.multiple)
            count[y : y + window[0], x : x + window[1]] += 1
        return total / count

    def probabilities(
        self, variables: Any, view: Images, inner: Size, sizes: Size, shape: tuple[int, int], mirrored: bool
    ) -> Probabilities:
        """See `Way`; images and results fill their canvases, so that `inner` and `sizes` are not looked at."""
        logits = self.logits(variables, view[:, :, ::-1] if mirrored else view)
        upsampled = None if self.window else view.shape[1:3]
        return _probabilities(logits, upsampled, tuple(shape), self.multiple, mirrored)


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedImages:
    """Runs a network over images that may be smaller than their canvas, with the results that each has by itself.

    Attributes:
      model, mean, std, compiled: as those of `WholeImages`.
      stride: the network's output stride.
      masking: how the padding is kept out, `Network.masking`.

    Raises:
      ConfigError: if the model mixes pixels in a way that `masking` does not name.
    """

    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride: int
    masking: Masking
    compiled: list[tuple[int, ...]] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        padded.check_masking(self.model, self.masking, (4 * self.stride, 4 * self.stride))

    @functools.cached_property
    def _run(self):
        def network(variables, images, size):
            self.compiled.append(images.shape)
            images = inputs.normalize(images, size, self.mean, self.std)
            return padded.apply(self.model, variables, images, size, self.masking)

        return jax.jit(network)

    def probabilities(
        self, variables: Any, view: Images, inner: Size, sizes: Size, shape: tuple[int, int], mirrored: bool
    ) -> Probabilities:
        """See `Way`; outside `sizes` the result means nothing."""
        logits = self._run(variables, _mirror(view, inner) if mirrored else view, inner)
        return _masked_probabilities(logits, inner, sizes, self.stride, view.shape[1:3], tuple(shape), mirrored)


def _upsample(logits, size, multiple):
    """Bring logits to the size of the network's input, without what that was padded with."""
    return resize.bilinear(logits, batching.round_up(size, multiple))[:, : size[0], : size[1]]


@jax.jit(static_argnames=("window", "multiple"))
def _add_window(total, logits, corner, window, multiple):
    upsampled = _upsample(logits, window, multiple)
    before = jax.lax.dynamic_slice(total, (0, *corner, 0), upsampled.shape)
    return jax.lax.dynamic_update_slice(total, before + upsampled, (0, *corner, 0))


@jax.jit(static_argnames=("upsampled", "size", "multiple", "mirrored"))
def _probabilities(logits, upsampled, size, multiple, mirrored):
    # Twice, as the original does: to the size of the network's input, then to the image's own.
    logits = logits if upsampled is None else _upsample(logits, upsampled, multiple)
    probability = jax.nn.softmax(resize.bilinear(logits, size), axis=-1)
    return probability[:, :, ::-1] if mirrored else probability


@jax.jit(static_argnames=("stride", "canvas", "shape", "mirrored"))
def _masked_probabilities(logits, inner, sizes, stride, canvas, shape, mirrored):
    logits = padded.bilinear(logits, -(-inner // stride), inner, canvas)
    probability = jax.nn.softmax(padded.bilinear(logits, inner, sizes, shape), axis=-1)
    return padded.mirror(probability, sizes) if mirrored else probability


_mirror = jax.jit(padded.mirror)


@jax.jit
def _most_probable(probabilities):
    return jnp.argmax(probabilities, axis=-1).astype(jnp.uint8)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """A model together with how it is tested; compiled once for each shape that the network or the labels have.

    Attributes:
      options: how images are tested.
      whole: runs the network over images of one size.
      masked: runs it over images of several sizes; None for a network that cannot be masked.
    """

    options: EvaluationOptions
    whole: WholeImages
    masked: MaskedImages | None = None

    @property
    def compilations(self) -> int:
        """Number of network programs that were compiled so far."""
        return len(self.whole.compiled) + (len(self.masked.compiled) if self.masked else 0)

    def plan(self, sizes: Sequence[tuple[int, int]], batch_size: int, programs: int = 0) -> list[Batch]:
        """Return batches of images of the given (height, width), see `batching.plan`."""
        return batching.plan(sizes, self.options, batch_size, programs, self.masked.stride if self.masked else 0)

    def inputs(self, images: Sequence[UInt8[np.ndarray, "height width 3"]], batch: Batch) -> Inputs:
        """Return what `predict` takes, made by the host."""
        return inputs.on_canvas(images, batch, self.options)

    def probabilities(self, variables: Any, given: Inputs, batch: Batch) -> Float[Array, "batch height width classes"]:
        """Return class probabilities, summed over all passes; of each image, the first `given.sizes` pixels count.

        Args:
          variables: {'params', 'batch_stats'}.
          given: of `inputs`.
        """
        way, total = self.masked if batch.padded else self.whole, None
        for view, inner in zip(given.views, given.view_sizes, strict=True):
            for mirrored in (False, True) if self.options.flip else (False,):
                one = way.probabilities(variables, view, inner, given.sizes, batch.shape, mirrored)
                total = one if total is None else total + one
        return total

    def predict(self, variables: Any, given: Inputs, batch: Batch) -> UInt8[Array, "batch height width"]:
        """Return the most probable class of each pixel of a batch; see `probabilities` for the arguments."""
        return _most_probable(self.probabilities(variables, given, batch))

    def predict_image(
        self, variables: Any, image: UInt8[np.ndarray, "height width 3"]
    ) -> UInt8[np.ndarray, "height width"]:
        """Return the class map of one image, at its own size."""
        (batch,) = self.plan([image.shape[:2]], 1)
        return np.asarray(self.predict(variables, self.inputs([image], batch), batch)[0])


def build_predictor(
    model: nn.Module,
    mean: Sequence[float],
    std: Sequence[float],
    options: EvaluationOptions,
    *,
    multiple: int = 1,
    stride: int = 0,
    masking: Masking | None = None,
) -> Predictor:
    """Return the predictor of a model.

    Args:
      model, mean, std, multiple: see `WholeImages`.
      stride, masking: see `MaskedImages`; without `masking`, each size of image has a program of its own.

    Raises:
      ConfigError: if the model mixes pixels in a way that `masking` does not name.
    """
    mean, std = tuple(mean), tuple(std)
    masked = MaskedImages(model, mean, std, stride, masking) if masking is not None else None
    return Predictor(options, WholeImages(model, mean, std, multiple, options.window, options.stride), masked)


def make_predictor(config: ConfigDict) -> Predictor:
    """Return the predictor that a finetuning config describes.

    Raises:
      ConfigError: for an impossible model or impossible options of evaluation.
    """
    network = Network.from_config(config.model)
    return build_predictor(
        segmenter.build(network, top="classifier", image_size=config.image_size),
        network.mean,
        network.std,
        EvaluationOptions.from_config(config),
        multiple=network.multiple,
        stride=network.stride,
        masking=network.masking,
    )


def check_variables(config: ConfigDict, variables: Any) -> None:
    """Compare a checkpoint's arrays with those of the model that a config describes.

    Raises:
      ConfigError: naming what differs; a pretrained model that was not finetuned lacks the classifier.
    """
    model = segmenter.build(config.model, top="classifier", image_size=config.image_size)
    shape = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), np.float32)
    expected = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), shape)
    expected, found = (
        {"/".join(k): tuple(v.shape) for k, v in traverse_util.flatten_dict(dict(tree)).items()}
        for tree in (expected, variables)
    )
    wrong = [
        f"{name}: checkpoint {found.get(name, 'absent')}, model {expected.get(name, 'absent')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        shown = wrong[:6] + ([f"… and {len(wrong) - 6} more"] if len(wrong) > 6 else [])
        raise ConfigError("the checkpoint is of another model than the config's:\n  " + "\n  ".join(shown))
