"""Curves and seeds: what is drawn, and what they refuse."""

import numpy as np
import pytest
from helpers.looks import is_picture

from cp2_jax import pictures
from cp2_jax.pictures import charts
from cp2_jax.pictures.charts import Panel

LOSS, SCORE = Panel("Loss", "loss", {"loss": "total"}), Panel("Score", "%", {"miou": "mean IoU"}, percent=True)


def test_curves():
    records = [{"step": s, "loss": 10.0 - s} for s in range(5)] + [{"step": 4, "miou": 0.5}]
    one = pictures.curves(records, [LOSS, Panel("Absent", "", {"q": "q"})])
    two = pictures.curves(records, [LOSS, SCORE])
    assert is_picture(one) and is_picture(two) and two.shape[1] > 1.5 * one.shape[1]
    rising = pictures.curves([{"step": s, "loss": s} for s in range(5)], [LOSS])
    assert (one != rising).any()


def test_shares_are_drawn_in_percent_beside_lines_to_compare_with(monkeypatch):
    figures = []
    monkeypatch.setattr(charts.canvas, "render", figures.append)
    records = [{"step": 10, "miou": 0.25}, {"step": 20, "miou": 0.5}, {"step": 20, "loss": None}]
    pictures.curves(records, [LOSS, SCORE], {"miou": [("the paper", 77.6)]})
    (axis,) = figures[0].axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn == {"mean IoU": [25.0, 50.0], "the paper: 77.6%": [77.6, 77.6]}
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == ("Score", "training step", "%")


def test_no_legend_over_the_data(monkeypatch):
    figures = []
    monkeypatch.setattr(charts.canvas, "render", figures.append)
    pictures.curves([{"step": s, "loss": float(s), "miou": 0.1} for s in range(3)], [LOSS, SCORE])
    figures[0].draw_without_rendering()
    for axis in figures[0].axes:
        assert not axis.get_legend().get_window_extent().overlaps(axis.get_window_extent())


def test_steps_are_whole_numbers_in_a_short_run(monkeypatch):
    figures = []
    monkeypatch.setattr(charts.canvas, "render", figures.append)
    pictures.curves([{"step": s, "loss": 1.0} for s in (4, 6)], [LOSS])
    assert all(float(tick).is_integer() for tick in figures[0].axes[0].get_xticks())


def test_every_metric_that_is_drawn_has_words():
    names = [name for panel in charts.PANELS for name in panel.series]
    assert len(names) == len(set(names)) and all(words for panel in charts.PANELS for words in panel.series.values())
    assert is_picture(pictures.curves([{"step": 1} | dict.fromkeys(names, 0.5)]))


def test_curves_name_what_there_is():
    with pytest.raises(ValueError, match=r"none of \['loss'\] was recorded; there are \['los'\]"):
        pictures.curves([{"step": 0, "los": 1.0}], [LOSS])


def test_seeds_say_what_is_drawn_and_in_which_unit(monkeypatch):
    panels = {"finetuned": {"CP2": [40.0, 44.0], "scratch": [30.0]}, "frozen": {"CP2": [20.0], "scratch": [10.0, 12.0]}}
    assert is_picture(pictures.seeds(panels, "mean IoU, %"))
    figures = []
    monkeypatch.setattr(charts.canvas, "render", figures.append)
    pictures.seeds(panels, "mean IoU, %")
    (figure,) = figures
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(words) == 2 and "one seed" in words[0] and "mean" in words[1]
    assert [axis.get_xlabel() for axis in figure.axes] == ["mean IoU, %"] * 2
    means = [float(np.mean(line.get_xdata())) for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert means == [42.0, 30.0]
