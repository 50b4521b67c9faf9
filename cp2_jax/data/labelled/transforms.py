"""Training transforms of image and mask pairs on the host, pixel for pixel those of MMSegmentation 0.x.

Randomness is handed in as a `np.random.Generator`; every function is pure otherwise. Images are uint8 RGB throughout.
"""

import cv2
import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "height width 3"]
Mask = UInt8[np.ndarray, "height width"]

CROP_TRIES = 10


def rescaled_size(size: tuple[int, int], bounds: tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) of an image of `size` made as large as fits into `bounds` with its aspect kept.

    `bounds` are a long and a short edge in any order, as MMSegmentation's (2048, 512): the longer edge of the image
    is held against the larger bound, the shorter one against the smaller (mmcv.imrescale).
    """
    height, width = size
    scale = min(max(bounds) / max(height, width), min(bounds) / min(height, width))
    # mmcv adds a half and truncates, which is not Python's rounding to even.
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_image(image: Image, size: tuple[int, int]) -> Image:
    """Resize bilinearly, not antialiased, to (height, width), as OpenCV and so MMSegmentation do."""
    return image if image.shape[:2] == tuple(size) else cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)


def resize_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize by OpenCV's nearest neighbour to (height, width)."""
    return mask if mask.shape == tuple(size) else cv2.resize(mask, size[::-1], interpolation=cv2.INTER_NEAREST)


def random_scale(
    image: Image, mask: Mask, rng: np.random.Generator, bounds: tuple[int, int] | None, ratio: tuple[float, float]
) -> tuple[Image, Mask]:
    """Resize both by a random ratio of `bounds` (see `rescaled_size`), or of their own size where `bounds` is None."""
    factor = rng.uniform(*ratio)
    long, short = (max(mask.shape), min(mask.shape)) if bounds is None else (max(bounds), min(bounds))
    size = rescaled_size(mask.shape, (max(1, int(long * factor)), max(1, int(short * factor))))
    return resize_image(image, size), resize_mask(mask, size)


def random_crop(
    image: Image,
    mask: Mask,
    rng: np.random.Generator,
    size: tuple[int, int],
    max_ratio: float = 0.75,
    ignore_label: int = 255,
) -> tuple[Image, Mask]:
    """Cut out at most `size` (height, width); smaller where the image is.

    A crop in which one class covers `max_ratio` or more of the labelled pixels is drawn again, up to 10 times, after
    which the last one drawn is taken unseen (MMSegmentation's `cat_max_ratio`). 1 accepts every crop.
    """
    room = [max(have - want, 0) for have, want in zip(mask.shape, size, strict=True)]

    def draw() -> tuple[slice, slice]:
        top, left = (int(rng.integers(0, space + 1)) for space in room)
        return slice(top, top + size[0]), slice(left, left + size[1])

    window = draw()
    for _ in range(CROP_TRIES if max_ratio < 1 else 0):
        count = np.bincount(mask[window].ravel(), minlength=256)
        count[ignore_label] = 0
        if np.count_nonzero(count) > 1 and count.max() / count.sum() < max_ratio:
            break
        window = draw()
    return image[window], mask[window]


def _linear(image: Image, alpha: float = 1.0, beta: float = 0.0) -> Image:
    """Return clip(alpha * image + beta) cut to integers: 256 products in float32 and a table look-up."""
    levels = np.arange(256, dtype=np.float32) * np.float32(alpha) + np.float32(beta)
    return cv2.LUT(image, np.clip(levels, 0, 255).astype(np.uint8))


def adjust_saturation(image: Image, alpha: float) -> Image:
    """Multiply the saturation of OpenCV's 8-bit HSV by `alpha`."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = _linear(hsv[..., 1], alpha=alpha)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def adjust_hue(image: Image, degrees: int) -> Image:
    """Turn the hue of OpenCV's 8-bit HSV by `degrees`, in its unit of two degrees (0-179)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = cv2.LUT(hsv[..., 0], ((np.arange(256) + degrees) % 180).astype(np.uint8))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def photometric_distortion(image: Image, rng: np.random.Generator) -> Image:
    """Brightness (+-32), contrast (0.5-1.5), saturation (0.5-1.5) and hue (+-18), each with probability a half.

    Contrast comes second or last, by another coin. Rounding down to 8 bits after each, as `PhotoMetricDistortion`.
    """

    def coin() -> bool:
        return rng.random() < 0.5

    if coin():
        image = _linear(image, beta=rng.uniform(-32, 32))
    contrast_early = coin()
    if contrast_early and coin():
        image = _linear(image, alpha=rng.uniform(0.5, 1.5))
    if coin():
        image = adjust_saturation(image, rng.uniform(0.5, 1.5))
    if coin():
        image = adjust_hue(image, int(rng.integers(-18, 18)))
    if not contrast_early and coin():
        image = _linear(image, alpha=rng.uniform(0.5, 1.5))
    return image


def pad(image: Image, mask: Mask, size: tuple[int, int], ignore_label: int = 255) -> tuple[Image, Mask]:
    """Pad below and right to `size`: the mask with `ignore_label`, the image with 0.

    MMSegmentation pads after normalising, with the mean; the training step, which normalises, does that given the
    size of what is image, see `segmentation.inputs.normalize`.
    """
    below, right = size[0] - mask.shape[0], size[1] - mask.shape[1]
    return (
        np.pad(image, ((0, below), (0, right), (0, 0))),
        np.pad(mask, ((0, below), (0, right)), constant_values=ignore_label),
    )


def training_sample(
    image: Image,
    mask: Mask,
    rng: np.random.Generator,
    *,
    crop_size: tuple[int, int],
    bounds: tuple[int, int] | None,
    ratio: tuple[float, float],
    max_ratio: float = 0.75,
    flip: float = 0.5,
    photometric: bool = True,
    ignore_label: int = 255,
) -> dict[str, np.ndarray]:
    """Apply MMSegmentation's training pipeline: scale, crop, flip, distort, pad.

    Args:
      image, mask: of the same size.
      rng: where randomness comes from.
      crop_size: height and width in pixels of the result.
      bounds, ratio: see `random_scale`.
      max_ratio, ignore_label: see `random_crop`.
      flip: probability of mirroring.
      photometric: apply `photometric_distortion`.

    Returns:
      With (height, width) = crop_size: image, uint8 (height, width, 3); label, uint8 (height, width); size, int32 (2,), the
      height and width that hold image, the rest being padding.
    """
    image, mask = random_scale(image, mask, rng, bounds, ratio)
    image, mask = random_crop(image, mask, rng, crop_size, max_ratio, ignore_label)
    if rng.random() < flip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    image = np.ascontiguousarray(image)
    if photometric:
        image = photometric_distortion(image, rng)
    size = np.array(mask.shape, np.int32)
    image, mask = pad(image, mask, crop_size, ignore_label)
    return {"image": image, "label": mask, "size": size}
