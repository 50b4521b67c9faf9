"""What CP2 trains on: pairs of composed images, kinds of masks, attention that masks are made of."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from cp2_jax.pictures import canvas

# Outside of the outline's colour a dark line, so that it shows on any picture.
_OUTLINE, _EDGE = (255, 215, 0), (20, 20, 20)
_GREY = 128


def outline(
    image: UInt8[np.ndarray, "height width 3"], mask: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with the border of the mask's foreground drawn on it."""
    contours, _ = cv2.findContours((np.asarray(mask) > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    drawn = np.ascontiguousarray(image)
    thick = max(1, image.shape[0] // 112)
    for color, width in ((_EDGE, thick + 2), (_OUTLINE, thick)):
        drawn = cv2.drawContours(drawn.copy(), contours, -1, color, width)
    return drawn


def pairs(
    image_query: UInt8[np.ndarray, "batch height width 3"],
    image_key: UInt8[np.ndarray, "batch height width 3"],
    mask_query: Float[np.ndarray, "batch height width"],
    mask_key: Float[np.ndarray, "batch height width"],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show composed pairs side by side, the foreground outlined; one row per pair."""
    # Lines are at least a pixel wide: small images are enlarged first, so that they do not disappear beneath them.
    columns = [
        (title, [outline(canvas.enlarged(i), canvas.enlarged(m)) for i, m in zip(images, masks, strict=True)])
        for title, images, masks in (("query", image_query, mask_query), ("key", image_key, mask_key))
    ]
    title = "Composed pairs. Outlined: two crops of one image, pasted onto two other images"
    return canvas.table(columns, title)


def mask_kinds(
    samples: Mapping[str, tuple[Float[np.ndarray, "count height width"], UInt8[np.ndarray, "count height width 3"]]],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show kinds of masks, each above an image composed with it, as the paper's Figure 4 does.

    Args:
      samples: kind → masks and the images composed with them.
    """
    columns = [
        (
            f"{kind}\n{100 * np.mean(masks):.0f}% foreground",
            [
                cell
                for mask, image in zip(masks, images, strict=True)
                for cell in (_bordered(canvas.enlarged(mask)), canvas.enlarged(image))
            ],
        )
        for kind, (masks, images) in samples.items()
    ]
    return canvas.table(columns, "Kinds of masks (augment.mask), white: foreground; below each, an image composed with it")


def _bordered(mask: Float[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width 3"]:
    """Return a mask in black and white inside a grey line: white on white paper, all foreground would not be seen."""
    drawn = np.repeat((np.asarray(mask) * 255).astype(np.uint8)[..., None], 3, axis=2)
    inside = drawn[1:-1, 1:-1]
    return np.pad(inside, ((1, 1), (1, 1), (0, 0)), constant_values=_GREY)


def maps(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], values: Sequence[UInt8[np.ndarray, "height width"]]
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show images of any sizes, their maps (levelled attention), and them with all but the most attended 65 % dimmed."""
    columns = {"image": [], "attention (bright: much)": [], "the most attended 65%": []}
    for image, value in zip(images, values, strict=True):
        kept = np.where(value[..., None] >= 255 * 0.35, image, image // 4)
        heat = cv2.applyColorMap(np.ascontiguousarray(value), cv2.COLORMAP_INFERNO)[..., ::-1]
        for cells, cell in zip(columns.values(), (image, heat, kept), strict=True):
            cells.append(_fitted(cell))
    return canvas.table(list(columns.items()), "Attention of the pretrained ViT, from which masks are cut")


def _fitted(image: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height2 224 3"]:
    width = 224
    height = max(1, round(width * image.shape[0] / image.shape[1]))
    return cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=cv2.INTER_AREA)
