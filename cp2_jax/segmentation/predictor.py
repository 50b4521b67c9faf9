"""Class maps of whole images: one pass or sliding windows, one scale or several with flips, as MMSegmentation 0.x tests.

A result depends neither on the batch that an image is in nor on the canvas that it is padded to, see `padded`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from cp2_jax.data.labelled import transforms
from cp2_jax.models import inputs, resize, segmenter
from cp2_jax.models.interface import Masking
from cp2_jax.models.network import Network
from cp2_jax.options import ConfigError
from cp2_jax.segmentation import padded


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are tested.

    bounds: (long, short) edges that images are fitted into, such as MMSegmentation's (2048, 512); None: own size.
    ratios: of that size, each one pass; flip: each also mirrored. Class probabilities are averaged over the passes.
    window, stride: (height, width) of sliding windows and of the steps between them; None: the whole image at once.
    """

    bounds: tuple[int, int] | None = None
    ratios: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    @classmethod
    def from_config(cls, evaluation: ConfigDict) -> "Options":
        """Read `config.evaluation`, where an empty tuple stands for None."""
        pair = lambda value: tuple(value) or None  # noqa: E731
        return cls(
            bounds=pair(evaluation.resize),
            ratios=tuple(evaluation.ratios),
            flip=evaluation.flip,
            window=pair(evaluation.window),
            stride=pair(evaluation.stride),
        )

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (height, width) at which an image of `size` is shown to the network, one for each ratio."""
        long, short = (max(size), min(size)) if self.bounds is None else (max(self.bounds), min(self.bounds))
        if self.bounds is None and self.ratios == (1.0,):
            return [tuple(size)]
        return [transforms.rescaled_size(size, (int(long * r), int(short * r))) for r in self.ratios]

    def views(self, image: UInt8[np.ndarray, "height width 3"]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """Return the image at each of `sizes`, resized by OpenCV on the host."""
        return [transforms.resize_image(image, size) for size in self.sizes(image.shape[:2])]


def windows(size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the top left corners (y, x) of the windows that cover an image, the last ones moved inside it.

    Raises:
      ValueError: if the stride is not in [1, window], which would leave gaps.
    """
    axes = []
    for have, want, step in zip(size, window, stride, strict=True):
        if not 1 <= step <= want:
            raise ValueError(f"evaluation.stride {stride} must be between 1 and the window {window}")
        count = max(have - want + step - 1, 0) // step + 1
        axes.append([max(min(i * step, have - want), 0) for i in range(count)])
    return [(y, x) for y in axes[0] for x in axes[1]]


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that are predicted together.

    indices: of the images; -1 fills up the last batch of a group.
    views: (height, width) of the canvas of each view. shape: of the canvas of labels and result.
    padded: whether images may be smaller than their canvas.
    """

    indices: tuple[int, ...]
    views: tuple[tuple[int, int], ...]
    shape: tuple[int, int]
    padded: bool


class Predictor:
    """A model together with how it is tested; compiled once for each shape that the network or the labels have.

    Args:
      multiple: the network's sides must be multiples of it (a ViT's patch): images are padded with 0, the mean, below and
        right, and the logits there are cut off.
      canvas: output stride of a network that `padded` can mask; 0 for any other.
      masking: how it is masked, `Network.masking`.

    Attributes:
      compilations: number of compiled network programs so far.

    Raises:
      ConfigError: with `canvas`, if the model mixes pixels in a way that `masking` does not name.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        options: Options,
        multiple: int = 1,
        canvas: int = 0,
        masking: Masking | None = None,
    ):
        self.options, self.canvas, self._multiple = options, canvas, multiple
        if canvas:
            padded.check_masking(model, masking, (4 * canvas, 4 * canvas))
        self.compilations = 0

        def network(variables, images):
            self.compilations += 1  # runs when traced, that is once a compilation
            images = inputs.normalize(images, mean, std)
            below, right = (-side % multiple for side in images.shape[1:3])
            images = jnp.pad(images, ((0, 0), (0, below), (0, right), (0, 0)))
            return model.apply(variables, images, train=False)

        def masked_network(variables, images, size):
            self.compilations += 1
            return padded.apply(model, variables, padded.normalize(images, size, mean, std), size, masking)

        def cut(images, corner, size):
            return jax.lax.dynamic_slice(images, (0, *corner, 0), (images.shape[0], *size, 3))

        def add(total, logits, corner):
            upsampled = self._upsample(logits, self._window(total.shape[1:3]))
            inside = jax.lax.dynamic_slice(total, (0, *corner, 0), upsampled.shape)
            return jax.lax.dynamic_update_slice(total, inside + upsampled, (0, *corner, 0))

        def probabilities(logits, inner, size, flipped):
            # Twice, as the original does: to the size of the network's input, then to the image's own.
            logits = self._upsample(logits, inner) if options.window is None else logits
            probability = jax.nn.softmax(resize.bilinear(logits, size), axis=-1)
            return probability[:, :, ::-1] if flipped else probability

        def masked_probabilities(logits, inner, size, canvas, shape, flipped):
            logits = padded.bilinear(logits, -(-inner // self.canvas), inner, canvas)
            probability = jax.nn.softmax(padded.bilinear(logits, inner, size, shape), axis=-1)
            return padded.mirror(probability, size) if flipped else probability

        self._network = jax.jit(network)
        self._masked_network = jax.jit(masked_network)
        self._cut = jax.jit(cut, static_argnums=2)
        self._add = jax.jit(add)
        self._probabilities = jax.jit(probabilities, static_argnums=(1, 2, 3))
        self._masked_probabilities = jax.jit(masked_probabilities, static_argnums=(3, 4, 5))
        self._mirror = jax.jit(padded.mirror)
        self._labels = jax.jit(lambda total: jnp.argmax(total, axis=-1).astype(jnp.uint8))

    def _window(self, size: tuple[int, int]) -> tuple[int, int]:
        return tuple(min(a, b) for a, b in zip(self.options.window, size, strict=True))

    def _upsample(self, logits, size):
        """Bring logits to the size of the network's input, without what that was padded with."""
        return resize.bilinear(logits, padded.round_up(size, self._multiple))[:, : size[0], : size[1]]

    def plan(self, sizes: Sequence[tuple[int, int]], batch_size: int, programs: int) -> list[Batch]:
        """Return batches of images of the given (height, width).

        Images of one size share a canvas of that size, without padding. If there are more sizes than `programs` (0: any
        number), and the network can be masked and sees whole images, similar sizes share a larger one.
        A full batch everywhere means that every image of a group runs in the same program.
        """
        members: dict[tuple[int, int], list[int]] = {}
        for index, size in enumerate(sizes):
            members.setdefault(tuple(size), []).append(index)
        distinct = sorted(members)
        maskable = self.canvas and self.options.window is None
        first_views = [self.options.sizes(size)[0] for size in distinct]
        counts = [len(members[size]) for size in distinct]
        groups = padded.group(first_views, counts, programs if maskable else 0, max(self.canvas, 1))
        batches = []
        for joined in (sorted(joined) for joined in groups):
            mixed = len(joined) > 1
            largest = lambda every, m=mixed: tuple(np.max(every, axis=0).tolist()) if m else tuple(every[0])  # noqa: E731
            shape = largest([distinct[i] for i in joined])
            views = [largest(view) for view in zip(*(self.options.sizes(distinct[i]) for i in joined), strict=True)]
            if mixed:
                views = [padded.round_up(view, self.canvas) for view in views]
            indices = [index for i in joined for index in members[distinct[i]]]
            for start in range(0, len(indices), batch_size):
                batch = indices[start : start + batch_size]
                batch += [-1] * (batch_size - len(batch))
                batches.append(Batch(tuple(batch), tuple(views), shape, mixed))
        return batches

    def logits(self, variables: Any, images: UInt8[Array, "batch height width 3"]) -> Float[Array, "batch _ _ classes"]:
        """Return logits of one view: at the output stride for whole images, at the images' size for windows."""
        if self.options.window is None:
            return self._network(variables, images)
        batch, *size, _ = images.shape
        window = self._window(size)
        total, count = None, np.zeros((*size, 1), np.float32)
        for y, x in windows(size, self.options.window, self.options.stride):
            corner = jnp.array([y, x])
            logits = self._network(variables, self._cut(images, corner, window))
            total = jnp.zeros((batch, *size, logits.shape[-1]), logits.dtype) if total is None else total
            total = self._add(total, logits, corner)
            count[y : y + window[0], x : x + window[1]] += 1
        return total / count

    def probabilities(
        self, variables: Any, views: Sequence[UInt8[Array, "batch _ _ 3"]], size: tuple[int, int]
    ) -> Float[Array, "batch height width classes"]:
        """Return class probabilities, summed over all passes.

        Args:
          variables: {'params', 'batch_stats'}.
          views: the same images at each of `options.sizes`, which all images of the batch share.
          size: (height, width) of the result, the images' own.
        """
        total = None
        for view in views:
            for flipped in (False, True) if self.options.flip else (False,):
                images = view[:, :, ::-1] if flipped else view
                one = self._probabilities(self.logits(variables, images), view.shape[1:3], tuple(size), flipped)
                total = one if total is None else total + one
        return total

    def padded_probabilities(
        self,
        variables: Any,
        views: Sequence[UInt8[Array, "batch _ _ 3"]],
        view_sizes: Sequence[Int[Array, "batch 2"]],
        sizes: Int[Array, "batch 2"],
        shape: tuple[int, int],
    ) -> Float[Array, "batch height width classes"]:
        """Return `probabilities` of images of several sizes, the first `sizes` pixels of a canvas of `shape`.

        Args:
          views: canvases whose first `view_sizes` (height, width) pixels are image.
        """
        total = None
        for view, inner in zip(views, view_sizes, strict=True):
            for flipped in (False, True) if self.options.flip else (False,):
                images = self._mirror(view, inner) if flipped else view
                logits = self._masked_network(variables, images, inner)
                one = self._masked_probabilities(logits, inner, sizes, view.shape[1:3], tuple(shape), flipped)
                total = one if total is None else total + one
        return total

    def predict(self, variables: Any, inputs: dict[str, Any], batch: Batch) -> UInt8[Array, "batch height width"]:
        """Return the most probable class of each pixel of a batch, see `host_inputs`."""
        if not batch.padded:
            return self._labels(self.probabilities(variables, inputs["views"], batch.shape))
        return self._labels(
            self.padded_probabilities(variables, inputs["views"], inputs["view_sizes"], inputs["sizes"], batch.shape)
        )

    def host_inputs(self, images: Sequence[UInt8[np.ndarray, "height width 3"]], batch: Batch) -> dict[str, Any]:
        """Return what `predict` takes, resized and padded by the host.

        Returns:
          views: one array, uint8 [images, *canvas, 3], for each view; view_sizes: int32 [images, 2] for each; sizes: int32
          [images, 2].
        """
        views = [np.zeros((len(images), *canvas, 3), np.uint8) for canvas in batch.views]
        view_sizes = [np.zeros((len(images), 2), np.int32) for _ in batch.views]
        for row, image in enumerate(images):
            for view, canvas, size in zip(self.options.views(image), views, view_sizes, strict=True):
                size[row] = view.shape[:2]
                canvas[row, : view.shape[0], : view.shape[1]] = view
        sizes = np.array([image.shape[:2] for image in images], np.int32)
        return {"views": views, "view_sizes": view_sizes, "sizes": sizes}

    def predict_image(
        self, variables: Any, image: UInt8[np.ndarray, "height width 3"]
    ) -> UInt8[np.ndarray, "height width"]:
        """Return the class map of one image, at its own size."""
        (batch,) = self.plan([image.shape[:2]], 1, 0)
        return np.asarray(self.predict(variables, self.host_inputs([image], batch), batch)[0])


def make_predictor(config: ConfigDict) -> Predictor:
    """Return the predictor that a finetuning config describes."""
    network = Network.from_config(config.model)
    return Predictor(
        segmenter.build(network, top="classifier", image_size=config.image_size),
        network.mean,
        network.std,
        Options.from_config(config.evaluation),
        multiple=network.multiple,
        canvas=network.stride if network.masking else 0,
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
