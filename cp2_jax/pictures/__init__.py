"""Pictures for people: pairs, masks, dense similarity, predictions, curves. Arrays in, one uint8 RGB array out.

Nothing here knows a model or a task. May import `options` and `paths`. A result goes into a PNG with `save_png`, or to
TensorBoard as it is. Each picture says by itself what it shows: titles, names, units, one scale.

`canvas` puts images and words together; `palettes` has the colours; `compositions`, `heat`, `overlays` and `charts` draw.
"""

from cp2_jax.pictures.canvas import save_png
from cp2_jax.pictures.charts import curves, seeds
from cp2_jax.pictures.compositions import maps, mask_kinds, outline, pairs
from cp2_jax.pictures.heat import dense_similarity, similarity
from cp2_jax.pictures.overlays import overlay, predictions
from cp2_jax.pictures.palettes import bright_colors, class_colors

__all__ = [
    "bright_colors",
    "class_colors",
    "curves",
    "dense_similarity",
    "maps",
    "mask_kinds",
    "outline",
    "overlay",
    "pairs",
    "predictions",
    "save_png",
    "seeds",
    "similarity",
]
