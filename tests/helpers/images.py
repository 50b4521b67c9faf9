"""Images as the bytes of a file, and in memory."""

import io

import numpy as np


def encode(image, kind="PNG", **options) -> bytes:
    """Return a PIL image as `Image.save` writes it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def images_of(sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


class Memory:
    """Images and labels as `Examples` has them."""

    def __init__(self, sizes, seed=1):
        rng = np.random.default_rng(seed)
        self.images = images_of(sizes, seed)
        self.labels = [rng.choice([0, 1, 2, 255], size).astype(np.uint8) for size in sizes]

    def __len__(self):
        return len(self.images)

    def size(self, index):
        return self.labels[index].shape

    def load(self, index):
        return self.images[index], self.labels[index]
