"""Dense similarity: what in one image a model finds similar to one point of another."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from cp2_jax.pictures import canvas
from cp2_jax.pictures.compositions import outline


def similarity(
    features_query: Float[np.ndarray, "h w channels"], features_key: Float[np.ndarray, "h2 w2 channels"], cell: tuple
) -> Float[np.ndarray, "h2 w2"]:
    """Return the cosine similarity of one query feature, at `cell` = (row, column), to every key feature."""
    return _unit(features_key) @ _unit(features_query)[cell]


def dense_similarity(
    images_query: UInt8[np.ndarray, "batch height width 3"],
    images_key: UInt8[np.ndarray, "batch height2 width2 3"],
    features_query: Float[np.ndarray, "batch h w channels"],
    features_key: Float[np.ndarray, "batch h2 w2 channels"],
    points: Sequence[tuple[int, int]],
    masks_key: Float[np.ndarray, "batch height2 width2"] | None = None,
    title: str = "",
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show what in each key image resembles one point of its query image; one row per pair.

    Colours have the same meaning in all rows and in all pictures, from 0 or less (black) to 1 (light yellow): features of
    a model that has learned nothing are all alike, and its maps are light all over.

    Args:
      images_query, images_key: for the eye.
      features_query, features_key: dense features of these, of any length; they need not be normalised.
      points: (y, x) in pixels of each query image.
      masks_key: 1 = foreground of the key, whose border is then drawn on the map, with the mean similarity on both sides.
      title: what is shown first, such as the step.

    Returns:
      Query with the point marked, key, and a map of cosine similarity, upsampled bilinearly; below them the scale.

    Raises:
      ValueError: if a point lies outside its query image.
    """
    height, width = images_query.shape[1:3]
    columns = {"query: + is the point": [], "key": [], "similarity of the key to +": []}
    captions = []
    for row, (image, key, (y, x)) in enumerate(zip(images_query, images_key, points, strict=True)):
        if not (0 <= y < height and 0 <= x < width):
            raise ValueError(f"point (y, x) = ({y}, {x}) lies outside the query image of {height} x {width} pixels")
        rows, cells = features_query.shape[1:3]
        key = canvas.enlarged(key)
        values = similarity(features_query[row], features_key[row], (y * rows // height, x * cells // width))
        values = cv2.resize(values, key.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        mask = None if masks_key is None else canvas.enlarged(np.asarray(masks_key[row])) > 0.5
        heat = _heat(values) if mask is None else outline(_heat(values), mask)
        for column, cell in zip(columns.values(), (_marked(image, y, x), key, heat), strict=True):
            column.append(cell)
        captions.append(f"mean similarity {_means(values, mask)}")
    return canvas.table(list(columns.items()), title, captions, _scale)


def _means(values: Float[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"] | None) -> str:
    if mask is None or mask.all() or not mask.any():
        return f"{values.mean():.2f}"
    return f"inside the outline {values[mask].mean():.2f}, outside {values[~mask].mean():.2f}"


def _unit(features: Float[np.ndarray, "h w channels"]) -> Float[np.ndarray, "h w channels"]:
    features = np.asarray(features, np.float32)
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)


def _heat(values: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    levels = np.round(255 * np.nan_to_num(values).clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1])


def _marked(image: UInt8[np.ndarray, "height width 3"], y: int, x: int) -> UInt8[np.ndarray, "height2 width2 3"]:
    large = np.ascontiguousarray(canvas.enlarged(image))
    factor = large.shape[0] // image.shape[0]
    place = (x * factor + factor // 2, y * factor + factor // 2)
    for size, thick, color in ((17, 5, (0, 0, 0)), (15, 2, (255, 255, 255))):
        large = cv2.drawMarker(large.copy(), place, color, cv2.MARKER_CROSS, size, thick)
    return large


def _scale(width: int) -> UInt8[np.ndarray, "scale_height width 3"]:
    ramp = np.repeat(_heat(np.linspace(0, 1, width)[None]), 12, axis=0)
    words = ("0 or less: unrelated", "cosine similarity", "1: the same")
    blocks = [canvas.text(name, width // 3, align=align) for name, align in zip(words, (0.0, 0.5, 1.0), strict=True)]
    return canvas.above([ramp, np.concatenate(blocks, axis=1)], 4)
