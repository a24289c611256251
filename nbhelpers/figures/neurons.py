"""Figures of neurons: accuracy against synapses per neuron, neuron by neuron, and errors by image
quality.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.evaluation.quality import QUALITIES
from nbhelpers.figures.style import (
    FAINT,
    INK,
    PALETTE,
    SMALL,
    WIDTH,
    class_colours,
    new_figure,
    shortened,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def neuron_curve(curve: pd.DataFrame, correlation: Mapping | None = None) -> Figure:
    """Accuracy per neuron against synapses per neuron, as measured and as independent errors would
    give.

    ``curve`` is the table of :func:`nbhelpers.evaluation.neurons.neuron_curve`, ``correlation`` the
    dict of ``error_correlation``, told above the axes.
    """
    _check_rows(curve, "curve")
    figure = new_figure(6.4, 4.6)
    axis = figure.subplots()
    low, high = (curve[side].astype(float).fillna(curve["accuracy"]) for side in ("low", "high"))
    axis.fill_between(
        curve["k"],
        low,
        high,
        color=PALETTE[0],
        alpha=0.18,
        linewidth=0,
        label="95 % interval over neurons",
    )
    axis.plot(
        curve["k"], curve["accuracy"], marker="o", markersize=5, color=PALETTE[0], label="measured"
    )
    axis.plot(
        curve["k"],
        curve["independent"],
        marker="s",
        markersize=4,
        linestyle="--",
        color=PALETTE[5],
        label="if errors were independent",
    )
    axis.plot(
        curve["k"],
        curve["binomial"],
        linestyle=":",
        color=FAINT,
        label="majority of independent votes",
    )
    axis.set_xscale("log")
    ticks = [
        count for count in curve["k"] if count in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
    ]
    axis.set_xticks(ticks or list(curve["k"]), [f"{count:.0f}" for count in ticks or curve["k"]])
    axis.minorticks_off()
    axis.margins(x=0.04)
    bottom = np.floor(20 * min(low.min(), curve["independent"].min(), curve["binomial"].min())) / 20
    axis.set(
        xlabel="synapses per neuron",
        ylabel=f"accuracy per neuron ({curve['n_neurons'].iloc[0]} neurons)",
        ylim=(bottom, 1.005),
    )
    axis.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    if correlation is not None and correlation.value is not None:
        axis.set_title(
            f"errors within a neuron correlate {correlation.text(2)}:\n"
            f"{correlation.n_synapses} synapses count as {correlation.effective_synapses:.0f}",
            loc="left",
        )
    return figure


@styled
def neuron_errors(
    table: pd.DataFrame, classes: tuple[str, ...] = (), most: int = 30, unit: str = "neuron"
) -> Figure:
    """Error rate of each neuron, worst at the top, with its 95 % interval; the line is the rate of
    all images.

    ``table`` is the one of :func:`nbhelpers.evaluation.quality.errors_by_neuron`; beyond ``most``
    neurons only the worst are drawn, and the axis says so. ``unit`` is the word for a group.
    """
    _check_rows(table, "errors by neuron")
    shown = table.head(most)
    classes = tuple(classes) or tuple(sorted(table["label"].unique()))
    colours = class_colours(classes)
    markers = dict(zip(classes, "osD^vPX*" * len(classes), strict=False))
    figure = new_figure(WIDTH, 1.2 + 0.24 * len(shown))
    axis = figure.subplots()
    overall = table["errors"].sum() / table["n"].sum()
    axis.axvline(
        100 * overall,
        color=FAINT,
        linestyle="--",
        linewidth=1.2,
        label=f"all images, {100 * overall:.1f} %",
    )
    drawn = set()
    for height, row in zip(range(len(shown), 0, -1), shown.itertuples(), strict=True):
        colour = colours.get(row.label, INK)
        axis.plot(
            [100 * row.low, 100 * row.high],
            [height] * 2,
            color=colour,
            linewidth=1.6,
            solid_capstyle="butt",
        )
        axis.plot(
            100 * row.error,
            height,
            markers.get(row.label, "o"),
            color=colour,
            markersize=6,
            linestyle="none",
            clip_on=False,
            zorder=3,
            label=None if row.label in drawn else row.label,
        )
        drawn.add(row.label)
        axis.annotate(
            f"{row.errors:g} of {row.n}",
            (1.01, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
        )
    axis.set_yticks(range(len(shown), 0, -1), [shortened(name, 24) for name in shown["neuron"]])
    axis.tick_params(axis="y", length=0, pad=9)  # a mark at 0 reaches to the left of the axis
    axis.spines["left"].set_visible(False)
    rest = f"; the worst {len(shown)} of {len(table)} {unit}s" if len(shown) < len(table) else ""
    axis.set(
        ylim=(0.4, len(shown) + 0.6),
        xlabel=f"errors, % of the {unit}'s images (95 % interval){rest}",
    )
    axis.set_xlim(left=0)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=len(drawn) + 1, handletextpad=0.4)
    return figure


@styled
def quality_errors(table: pd.DataFrame) -> Figure:
    """Error rate against each image quality, lowest to highest part of the images, with 95 %
    intervals.

    ``table`` is the one of :func:`nbhelpers.evaluation.quality.errors_by_quality`. A panel whose
    ends differ beyond chance is drawn in the stronger colour.
    """
    _check_rows(table, "errors by quality")
    names = list(dict.fromkeys(table["quality"]))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure = new_figure(WIDTH, 0.5 + 2.5 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        part = table[table["quality"] == name]
        beyond = part["difference_low"].iloc[0] > 0 or part["difference_high"].iloc[0] < 0
        colour = PALETTE[5] if beyond else PALETTE[0]
        at = np.arange(len(part))
        bottom, top = (part[side].astype(float).fillna(part["error"]) for side in ("low", "high"))
        axis.vlines(at, 100 * bottom, 100 * top, color=colour, linewidth=1.6)
        axis.plot(
            at,
            100 * part["error"],
            marker="s" if beyond else "o",
            color=colour,
            linewidth=1.2,
            markersize=5,
            clip_on=False,
            zorder=3,
        )
        ends = [[_short(value) for value in row] for row in part[["from", "to"]].to_numpy()]
        axis.set_xticks(at, [low if low == high else f"{low}\nto {high}" for low, high in ends])
        axis.set_xlim(-0.5, len(part) - 0.5)
        axis.set(xlabel=QUALITIES.get(name, name.replace("_", " ")))
        axis.set_title(
            "differs beyond chance" if beyond else "no difference beyond chance",
            color=colour,
            loc="left",
            fontsize=SMALL,
        )
        axis.grid(axis="y")
        axis.set_ylim(bottom=0)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for line in axes:
        line[0].set_ylabel("errors, % of images")
    return figure


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _check_rows(table: pd.DataFrame, name: str) -> None:
    if not len(table):
        raise InputError(
            name,
            "the table has no rows to draw.",
            "Give the table of at least one neuron or quality.",
        )
