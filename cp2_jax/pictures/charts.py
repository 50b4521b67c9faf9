"""Numbers as pictures: a run's metrics over its steps, and what several seeds reached."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from cp2_jax.pictures import canvas

# Okabe and Ito 2008: colour-blind people can tell these apart.
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclasses.dataclass(frozen=True)
class Panel:
    """One chart of `curves`.

    title, unit: what stands above, and beside the vertical axis.
    series: name of a metric → what the legend calls it.
    percent: the metrics are shares, drawn in percent.
    lines: what the metrics are to be compared with, as (words, value in the panel's unit).
    """

    title: str
    unit: str
    series: Mapping[str, str]
    percent: bool = False
    lines: tuple[tuple[str, float], ...] = ()


PANELS = (
    Panel(
        "Loss",
        "loss",
        {
            "loss": "total, which is minimised",
            "loss_instance": "instance: image against memory bank",
            "loss_dense": "dense: pixels",
        },
    ),
    Panel(
        "Training batches",
        "right, %",
        {
            "accuracy_instance": "images that find their pair in the bank",
            "accuracy_dense": "foreground pixels that find foreground",
            "learned_dense": "dense loss: of the way from uniform to the best possible",
            "pixel_accuracy": "labelled pixels classified right",
        },
        percent=True,
    ),
    Panel(
        "Validation images",
        "mean over classes, %",
        {"miou": "mean IoU", "mean_accuracy": "mean class accuracy"},
        percent=True,
    ),
    Panel(
        "Probes: foreground or background?",
        "AUC, %",
        {"probe/output_auc": "dense features of the whole model", "probe/backbone_auc": "of the backbone"},
        percent=True,
        lines=(("chance", 50.0),),
    ),
    Panel(
        "Probes: images that find their own pair",
        "images, %",
        {"probe/output_retrieval": "features of the whole model", "probe/backbone_retrieval": "of the backbone"},
        percent=True,
    ),
    Panel(
        "Probes: directions in use",
        "effective rank (1: collapsed)",
        {"probe/output_effective_rank": "features of the whole model", "probe/backbone_effective_rank": "of the backbone"},
    ),
)


def curves(
    records: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel] = PANELS,
    lines: Mapping[str, Sequence[tuple[str, float]]] | None = None,
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draw metrics over steps.

    Args:
      records: each with a "step", as `writers.read_metrics` gives them; one may lack any of the metrics.
      panels: those none of whose metrics occur are left out.
      lines: metric → (words, value) to draw as level lines in its panel, in the panel's unit (percent, if it has that):
        the paper's score, say, or that of a run from scratch.

    Raises:
      ValueError: if no metric of any panel occurs.
    """
    drawn = [(panel, found) for panel in panels if (found := _series(records, panel))]
    if not drawn:
        known = sorted({name for record in records for name in record} - {"step"})
        raise ValueError(f"none of {[n for panel in panels for n in panel.series]} was recorded; there are {known}")
    across = min(3, len(drawn))
    down = -(-len(drawn) // across)
    figure = canvas.figure(4.6 * across, 4.0 * down)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    for axis, (panel, found) in zip(axes, drawn, strict=False):
        marks = [mark for name in found for mark in (lines or {}).get(name, ())]
        _panel(axis, panel, found, (*panel.lines, *marks))
    return canvas.render(figure)


def seeds(
    panels: Mapping[str, Mapping[str, Sequence[float]]], unit: str = ""
) -> UInt8[np.ndarray, "picture_height picture_width 3"]:
    """Draw what several seeds reached: a row for each method, a point for each seed, a bar at the mean.

    Args:
      panels: title → method → values; all panels have the same methods in the same order.
      unit: of the values, for the horizontal axis.
    """
    methods = list(next(iter(panels.values())))
    figure = canvas.figure(3.2 + 3.6 * len(panels), 1.5 + 0.34 * len(methods))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (title, rows) in zip(axes, panels.items(), strict=True):
        for place, values in enumerate(rows.values()):
            points = axis.plot(values, [place] * len(values), "o", color=_LINES[0], markersize=6, alpha=0.7)
            mean = axis.plot([np.mean(values)] * 2, [place - 0.32, place + 0.32], color="black", linewidth=2)
        axis.set(title=title, xlabel=unit, yticks=range(len(methods)), yticklabels=methods)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].invert_yaxis()  # shared: once turns all
    names = ["one seed (a whole run of its own)", "mean of the seeds"]
    figure.legend([points[0], mean[0]], names, loc="outside lower center", ncols=2, frameon=False)
    return canvas.render(figure)


def _series(records: Sequence[Mapping[str, Any]], panel: Panel) -> dict[str, list[tuple[int, float]]]:
    factor = 100 if panel.percent else 1
    found = {n: [(r["step"], factor * r[n]) for r in records if r.get(n) is not None] for n in panel.series}
    return {name: points for name, points in found.items() if points}


def _panel(axis, panel: Panel, found, lines) -> None:
    for color, (name, points) in zip(_LINES, found.items(), strict=False):
        # A handful of values, as of an evaluation, would not show as a line alone.
        steps, values = zip(*points, strict=True)
        marker = "o" if len(points) < 30 else None
        axis.plot(steps, values, label=panel.series[name], color=color, marker=marker, markersize=4)
    for style, (words, value) in zip(("--", ":", "-."), lines, strict=False):
        words = words.replace("$", r"\$")  # no formula
        axis.axhline(value, label=f"{words}: {value:g}{'%' if panel.percent else ''}", color="0.35", linestyle=style)
    axis.set(title=panel.title, xlabel="training step", ylabel=panel.unit)
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # a short run has no half steps
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    # Below the axis, where no data are.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, fontsize=9)
