"""Class maps of whole images: one pass or sliding windows, one scale or several with flips, as MMSegmentation 0.x tests.

Images are never padded and pixels of one image never meet another's, so that a result depends on neither.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image

from cp2_jax import pictures, resize
from cp2_jax.augment import color
from cp2_jax.data import transforms
from cp2_jax.models import segmenter
from cp2_jax.settings import ConfigError


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


class Predictor:
    """A model together with how it is tested; compiled once for each shape that the network or the labels have.

    Attributes:
      compilations: number of compiled network programs so far. Whole images need one for each size and batch size,
        sliding windows one in all as long as images are not smaller than the window.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float], options: Options):
        self.options = options
        self.compilations = 0

        def network(variables, images):
            self.compilations += 1  # runs when traced, that is once a compilation
            return model.apply(variables, color.normalize(images, mean, std), train=False)

        def cut(images, corner, size):
            return jax.lax.dynamic_slice(images, (0, *corner, 0), (images.shape[0], *size, 3))

        def add(total, logits, corner):
            upsampled = resize.bilinear(logits, self._window(total.shape[1:3]))
            inside = jax.lax.dynamic_slice(total, (0, *corner, 0), upsampled.shape)
            return jax.lax.dynamic_update_slice(total, inside + upsampled, (0, *corner, 0))

        def probabilities(logits, inner, size, flipped):
            # Twice, as the original does: to the size of the network's input, then to the image's own.
            logits = resize.bilinear(resize.bilinear(logits, inner), size)
            probability = jax.nn.softmax(logits, axis=-1)
            return probability[:, :, ::-1] if flipped else probability

        self._network = jax.jit(network)
        self._cut = jax.jit(cut, static_argnums=2)
        self._add = jax.jit(add)
        self._probabilities = jax.jit(probabilities, static_argnums=(1, 2, 3))
        self._labels = jax.jit(lambda total: jnp.argmax(total, axis=-1).astype(jnp.uint8))

    def _window(self, size: tuple[int, int]) -> tuple[int, int]:
        return tuple(min(a, b) for a, b in zip(self.options.window, size, strict=True))

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

    def predict(
        self, variables: Any, views: Sequence[UInt8[Array, "batch _ _ 3"]], size: tuple[int, int]
    ) -> UInt8[Array, "batch height width"]:
        """Return the most probable class of each pixel; see `probabilities`."""
        return self._labels(self.probabilities(variables, views, size))

    def predict_image(
        self, variables: Any, image: UInt8[np.ndarray, "height width 3"]
    ) -> Int[np.ndarray, "height width"]:
        """Return the class map of one image, at its own size."""
        views = [jnp.asarray(view[None]) for view in self.options.views(image)]
        return np.asarray(self.predict(variables, views, image.shape[:2])[0])


def make_predictor(config: ConfigDict) -> Predictor:
    """Return the predictor that a finetuning config describes."""
    model = segmenter.build(config.model, top="classifier", image_size=config.image_size)
    return Predictor(model, config.data.mean, config.data.std, Options.from_config(config.evaluation))


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


def save_class_map(path: str | pathlib.Path, predicted: np.ndarray) -> None:
    """Write a class map, uint8 [height, width], as a PNG of indices with VOC's palette, as VOC's server takes it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(predicted)
    picture.putpalette(pictures.class_colors(256).tobytes())
    picture.save(path, format="PNG")


def overlay(image: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the image, uint8 RGB, with the classes' colours laid over it by half."""
    colors = pictures.class_colors(256)[predicted]
    return ((image.astype(np.uint16) + colors) // 2).astype(np.uint8)
