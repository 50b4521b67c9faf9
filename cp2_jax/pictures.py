"""Pictures for people: pairs, masks, dense similarity, predictions, curves. Arrays in, one uint8 RGB array out.

Nothing here knows a model or a task. A result goes into a PNG with `save_png`, or to TensorBoard as it is.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

# Outside of the outline's colour a dark line, so that it shows on any picture.
_OUTLINE, _EDGE = (255, 215, 0), (20, 20, 20)
_IGNORE = (224, 224, 224)

# What `curves` draws unless told otherwise: a panel's title → the metrics in it.
PANELS = {
    "loss": ("loss", "loss_instance", "loss_dense"),
    "accuracy": ("accuracy_instance", "accuracy_dense", "pixel_accuracy"),
    "mean IoU": ("miou", "mean_iou"),
    "probes": ("probe/output_auc", "probe/output_retrieval", "probe/backbone_auc", "probe/backbone_retrieval"),
    "effective rank": ("probe/output_effective_rank", "probe/backbone_effective_rank"),
}


def save_png(path: str | pathlib.Path, picture: UInt8[np.ndarray, "height width 3"]):
    """Write a picture, making its folder if need be."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, format="PNG")


def outline(
    image: UInt8[np.ndarray, "height width 3"], mask: Float[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image with the border of the mask's foreground drawn on it."""
    contours, _ = cv2.findContours((np.asarray(mask) > 0.5).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    canvas = np.ascontiguousarray(image)
    thick = max(1, image.shape[0] // 112)
    for color, width in ((_EDGE, thick + 2), (_OUTLINE, thick)):
        canvas = cv2.drawContours(canvas.copy(), contours, -1, color, width)
    return canvas


def pairs(
    image_query: UInt8[np.ndarray, "batch height width 3"],
    image_key: UInt8[np.ndarray, "batch height width 3"],
    mask_query: Float[np.ndarray, "batch height width"],
    mask_key: Float[np.ndarray, "batch height width"],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show composed pairs side by side, the foreground outlined; one row per pair."""
    # Lines are at least a pixel wide: small images are enlarged first, so that they do not disappear beneath them.
    factor = -(-224 // image_query.shape[1])
    enlarge = lambda x: np.repeat(np.repeat(x, factor, axis=0), factor, axis=1)  # noqa: E731
    columns = {
        "query": [outline(enlarge(i), enlarge(m)) for i, m in zip(image_query, mask_query, strict=True)],
        "key": [outline(enlarge(i), enlarge(m)) for i, m in zip(image_key, mask_key, strict=True)],
    }
    return _grid(columns)


def mask_kinds(
    samples: Mapping[str, tuple[Float[np.ndarray, "count height width"], UInt8[np.ndarray, "count height width 3"]]],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show kinds of masks, each above an image composed with it, as the paper's Figure 4 does.

    Args:
      samples: kind → masks and the images composed with them.
    """
    columns = {
        f"{kind}\n{100 * np.mean(masks):.0f} % foreground": [
            cell
            for mask, image in zip(masks, images, strict=True)
            for cell in (np.repeat((np.asarray(mask) * 255).astype(np.uint8)[..., None], 3, axis=2), image)
        ]
        for kind, (masks, images) in samples.items()
    }
    return _grid(columns)


def similarity(
    features_query: Float[np.ndarray, "h w channels"], features_key: Float[np.ndarray, "h2 w2 channels"], cell: tuple
) -> Float[np.ndarray, "h2 w2"]:
    """Return the cosine similarity of one query feature, at `cell` = (row, column), to every key feature."""
    unit = lambda f: f / np.maximum(np.linalg.norm(f, axis=-1, keepdims=True), 1e-12)  # noqa: E731
    return unit(np.asarray(features_key, np.float32)) @ unit(np.asarray(features_query, np.float32)[cell])


def dense_similarity(
    image_query: UInt8[np.ndarray, "height width 3"],
    image_key: UInt8[np.ndarray, "height2 width2 3"],
    features_query: Float[np.ndarray, "h w channels"],
    features_key: Float[np.ndarray, "h2 w2 channels"],
    point: tuple[int, int],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show what in the key image resembles one point of the query image.

    Args:
      image_query, image_key: for the eye.
      features_query, features_key: dense features of the two, of any length; they need not be normalised.
      point: (y, x) in pixels of the query image.

    Returns:
      The query with the point marked beside the key under a heat map of cosine similarity, upsampled bilinearly.

    Raises:
      ValueError: if the point lies outside the query image.
    """
    height, width = image_query.shape[:2]
    y, x = point
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"point (y, x) = ({y}, {x}) lies outside the query image of {height} x {width} pixels")
    rows, columns = features_query.shape[:2]
    values = similarity(features_query, features_key, (y * rows // height, x * columns // width))
    heat = cv2.resize(values, image_key.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    figure, axes = _figure(1, 3, 2.75 * height / width)
    for axis, image, title in zip(
        axes[0], (image_query, image_key, image_key), ("query", "key", "similarity"), strict=True
    ):
        axis.imshow(image)
        axis.set_title(title)
    for size, color in ((13, "black"), (9, "white")):
        axes[0, 0].plot(x, y, "+", markersize=size, markeredgewidth=size / 3 - 1, color=color)
    # Scaled to this picture's own range: features of a trained model differ little in absolute terms.
    drawn = axes[0, 2].imshow(heat, cmap="inferno", alpha=0.75)
    figure.colorbar(drawn, ax=axes[0, 2], fraction=0.046, pad=0.03)
    return _render(figure)


def class_colors(count: int) -> UInt8[np.ndarray, "count 3"]:
    """Return the colours of PASCAL VOC's palette for the first `count` (at most 256) classes; class 0 is black."""
    index, colors = np.arange(count), np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((index >> channel) & 1) << (7 - bit)).astype(np.uint8)
        index = index >> 3
    return colors


def predictions(
    images: UInt8[np.ndarray, "batch height width 3"],
    labels: Int[np.ndarray, "batch height width"],
    predicted: Int[np.ndarray, "batch height width"],
    names: Sequence[str],
    ignore: int = 255,
    colors: UInt8[np.ndarray, "classes 3"] | None = None,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show images, ground truth and predictions, with a legend of the classes that occur.

    Args:
      images, labels, predicted: one row of the picture each.
      names: of the classes, by index.
      ignore: the label of pixels that do not count, drawn light grey.
      colors: of the classes; VOC's by default.

    Raises:
      ValueError: for a class without a name.
    """
    names = list(names)
    colors = class_colors(len(names)) if colors is None else colors[: len(names)]
    occurring = np.union1d(np.unique(labels), np.unique(predicted))
    nameless = [int(c) for c in occurring if c != ignore and not 0 <= c < len(names)]
    if nameless:
        raise ValueError(f"classes {nameless} occur, but only {len(names)} names were given")
    table = np.full((max(256, ignore + 1), 3), _IGNORE, np.uint8)
    table[: len(names)] = colors
    table[ignore] = _IGNORE

    figure, axes = _figure(len(images), 3, 3.0 * images.shape[1] / images.shape[2], below=0.5)
    for row, cells in zip(axes, zip(images, table[labels], table[predicted], strict=True), strict=True):
        for axis, cell in zip(row, cells, strict=True):
            axis.imshow(cell, interpolation="nearest")
    for axis, title in zip(axes[0], ("image", "ground truth", "prediction"), strict=True):
        axis.set_title(title)
    handles = [
        Patch(facecolor=table[c] / 255, edgecolor="0.4", label="ignored" if c == ignore else names[c]) for c in occurring
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    return _render(figure)


def curves(
    records: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]] = PANELS
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draw metrics over steps.

    Args:
      records: each with a "step", as `writers.read_metrics` gives them; one may lack any of the metrics.
      panels: title → names of the metrics to draw in it; panels none of whose metrics occur are left out.

    Raises:
      ValueError: if no metric of any panel occurs.
    """
    series = {
        title: {name: [(r["step"], r[name]) for r in records if r.get(name) is not None] for name in names}
        for title, names in panels.items()
    }
    series = {title: {n: p for n, p in lines.items() if p} for title, lines in series.items()}
    series = {title: lines for title, lines in series.items() if lines}
    if not series:
        known = sorted({name for record in records for name in record} - {"step"})
        raise ValueError(f"none of {[n for names in panels.values() for n in names]} was recorded; there are {known}")
    figure = Figure(figsize=(4.6 * len(series), 3.4), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(series), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, series.items(), strict=True):
        for name, points in lines.items():
            # A handful of values, as of an evaluation, would not show as a line alone.
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, label=name, marker="o" if len(points) < 30 else None, markersize=3)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    return _render(figure)


def maps(
    images: Sequence[UInt8[np.ndarray, "height width 3"]], values: Sequence[UInt8[np.ndarray, "height width"]]
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Show images of any sizes, their maps (levelled attention), and them with all but the most attended 65 % dimmed."""
    figure, axes = _figure(3, len(images), 1.5, width=1.9)
    for column, image, value in zip(axes.T, images, values, strict=True):
        column[0].imshow(image)
        column[1].imshow(value, cmap="inferno", vmin=0, vmax=255)
        column[2].imshow(np.where(value[..., None] >= 255 * 0.35, image, image // 4))
    return _render(figure)


def seeds(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draw what several seeds reached: a row for each method, a point for each seed, a bar at the mean.

    Args:
      panels: title → method → values; all panels have the same methods in the same order.
    """
    methods = list(next(iter(panels.values())))
    figure = Figure(figsize=(2.6 + 3.4 * len(panels), 0.9 + 0.32 * len(methods)), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        for place, values in enumerate(rows.values()):
            axis.plot(values, [place] * len(values), "o", color="tab:blue", markersize=5, alpha=0.6)
            axis.plot([np.mean(values)] * 2, [place - 0.3, place + 0.3], color="black")
        axis.set(title=title, yticks=range(len(methods)), yticklabels=methods)
        axis.grid(alpha=0.3)
    axes[0].invert_yaxis()  # shared: once turns all
    return _render(figure)


def _grid(columns: Mapping[str, Sequence[UInt8[np.ndarray, "height width 3"]]]):
    """Show a table of equally sized images under the columns' titles."""
    first = next(iter(columns.values()))
    figure, axes = _figure(len(first), len(columns), 2.4 * first[0].shape[0] / first[0].shape[1], width=2.4)
    for column, (title, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(title)
        for axis, image in zip(column, images, strict=True):
            axis.imshow(image)
    return _render(figure)


def _figure(rows: int, columns: int, height: float, width: float = 3.0, below: float = 0.0):
    # A bare Figure, not pyplot: no global state and no display needed.
    figure = Figure(figsize=(width * columns, height * rows + 0.4 + below), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_color("0.75")  # a white picture must not run into the page
    return figure, axes


def _render(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    with matplotlib.rc_context({"font.size": 10}):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
