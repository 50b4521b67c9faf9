"""The knobs of the augmentation, as one hashable value."""

import dataclasses
import math
from typing import Any

from cp2_jax.augment.masks import MASKS, MaskLaw
from cp2_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD
from cp2_jax.options import ConfigError, fields, is_number, require


@dataclasses.dataclass(frozen=True)
class AugmentOptions:
    """How views and masks are drawn; defaults are MoCo v2's and CP2's. Hashable, hence static under `jax.jit`.

    Attributes:
      brightness, contrast, saturation: x draws a factor uniformly from [max(0, 1 - x), 1 + x].
      hue: x draws a shift uniformly from [-x, x], in turns; at most 0.5.
      jitter_probability, grayscale, blur, flip: probability of each, per image.
      blur_sigma: range of the Gaussian's standard deviation in pixels.
      mask: a name in `masks.MASKS`, or "attention": maps that come with the images.
      mask_area, mask_aspect, mask_aspect_law, mask_patch: see `masks.MaskLaw`.
      mean, std: of the model's inputs, per RGB channel, on the scale [0, 1].

    Raises:
      ConfigError: naming the field, its value and what is allowed.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    jitter_probability: float = 0.8
    grayscale: float = 0.2
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5
    mask: str = "rectangle"
    mask_area: tuple[float, float] = (0.5, 0.8)
    mask_aspect: tuple[float, float] = (0.8, 1.25)
    mask_aspect_law: str = "uniform"
    mask_patch: int = 16
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @classmethod
    def from_config(cls, config: Any) -> "AugmentOptions":
        """Read `config.augment`, which has exactly these fields but for mean and std: those are `config.model`'s.

        Args:
          config: a pretraining config (an ml_collections ConfigDict or a mapping).

        Raises:
          ConfigError: for a missing or unknown field, or a bad value.
        """
        section, model = config["augment"], config["model"]
        given, known = set(section.keys()), {field.name for field in dataclasses.fields(cls)} - {"mean", "std"}
        if given != known:
            raise ConfigError(
                f"config.augment: missing {sorted(known - given)}, unknown {sorted(given - known)}; "
                "give exactly the fields of AugmentOptions"
            )
        return cls(**fields(section), mean=tuple(model["mean"]), std=tuple(model["std"]))

    @property
    def mask_law(self) -> MaskLaw:
        """The part that the mask functions read."""
        return MaskLaw(self.mask_area, self.mask_aspect, self.mask_aspect_law, self.mask_patch)

    def __post_init__(self):
        for name in ("jitter_probability", "grayscale", "blur", "flip"):
            self._require(name, 0 <= getattr(self, name) <= 1, "a probability in [0, 1]")
        for name in ("brightness", "contrast", "saturation"):
            self._require(name, 0 <= getattr(self, name) < math.inf, "a number >= 0")
        self._require("hue", 0 <= self.hue <= 0.5, "a number in [0, 0.5]")
        self._require("mask", self.mask in (*MASKS, "attention"), f"one of {', '.join(MASKS)}, attention")
        self._require("mask_aspect_law", self.mask_aspect_law in ("uniform", "log_uniform"), "uniform or log_uniform")
        self._require("mask_patch", isinstance(self.mask_patch, int) and self.mask_patch > 0, "a whole number > 0")
        self._require("blur_sigma", self._is_range("blur_sigma"), "two numbers with 0 < low <= high")
        self._require("mask_aspect", self._is_range("mask_aspect"), "two numbers with 0 < low <= high")
        self._require("mask_area", self._is_range("mask_area") and self.mask_area[1] < 1, "0 < low <= high < 1")
        for name in ("mean", "std"):
            values = getattr(self, name)
            require(len(values) == 3 and all(map(is_number, values)), f"model.{name}", values, "give three numbers")
        require(min(self.std) > 0, "model.std", self.std, "give three numbers above 0")

    def _is_range(self, name: str) -> bool:
        value = getattr(self, name)
        return isinstance(value, tuple) and len(value) == 2 and all(map(is_number, value)) and 0 < value[0] <= value[1]

    def _require(self, name: str, good: bool, expected: str):
        if not good:
            raise ConfigError(f"augment.{name} is {getattr(self, name)!r}; it must be {expected}")
