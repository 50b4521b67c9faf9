"""What the original does to one sample on the host, re-created with Pillow and NumPy: the yardstick of benchmarks/input.py.

Three images decoded whole; two views of the first and one of each other by torchvision's operations on Pillow images
(random resized crop, colour jitter in random order, grayscale, blur, flip), then float32, channels first, normalised.
A re-creation of the method's steps for timing, not of anybody's code."""

import io

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from cp2_jax.data.images.crops import crop_box

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]


def sample(foreground: bytes, background_query: bytes, background_key: bytes, rng) -> list[np.ndarray]:
    """Return four float32 views [3, 224, 224]: query and key foreground, query and key background."""
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (foreground, background_query, background_key)]
    return [_view(images[0], rng), _view(images[0], rng), _view(images[1], rng), _view(images[2], rng)]


def _view(image, rng, size=224):
    top, left, height, width = crop_box(image.height, image.width, rng, (0.2, 1.0), (3 / 4, 4 / 3))
    image = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.8:
        operations = [
            lambda x: ImageEnhance.Brightness(x).enhance(rng.uniform(0.6, 1.4)),
            lambda x: ImageEnhance.Contrast(x).enhance(rng.uniform(0.6, 1.4)),
            lambda x: ImageEnhance.Color(x).enhance(rng.uniform(0.6, 1.4)),
            lambda x: _shift_hue(x, rng.uniform(-0.1, 0.1)),
        ]
        for index in rng.permutation(4):
            image = operations[index](image)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    planes = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32) / 255
    return (planes - _MEAN) / _STD


def _shift_hue(image, shift):
    hue, saturation, value = image.convert("HSV").split()
    turned = np.asarray(hue) + np.uint8(int(shift * 255) % 256)  # wraps
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
