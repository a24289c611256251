"""Figures of neurons: accuracy against synapses per neuron, neuron by neuron, and errors by image
quality.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.evaluation.neurons import ErrorCorrelation
from nbhelpers.evaluation.quality import QUALITIES
from nbhelpers.figures.legend import legend_below
from nbhelpers.figures.style import (
    AS_GIVEN,
    FAINT,
    PALETTE,
    SMALL,
    WIDTH,
    class_colours,
    interval_dots,
    interval_rows,
    legend_above,
    new_figure,
    shortened,
    something_to_draw,
    styled,
)

TICKS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
MOST_NEURONS = 30
BEYOND_CHANCE = {
    True: (PALETTE[5], "s", "differs beyond chance"),
    False: (PALETTE[0], "o", "no difference beyond chance"),
}


@styled
def neuron_curve(
    curve: pd.DataFrame, correlation: ErrorCorrelation | None = None, *, unit: str = "neuron"
) -> Figure:
    """Accuracy per neuron against synapses per neuron, as measured and as independent errors would
    give.

    ``curve`` is the table of :func:`nbhelpers.evaluation.neurons.neuron_curve`, ``correlation`` the
    result of ``error_correlation``, told above the axes; ``unit`` the word for one group.
    """
    import seaborn

    something_to_draw(curve, "curve")
    figure = new_figure(6.4, 4.6)
    axis = figure.subplots()
    curve = curve.rename(columns={"accuracy": "measured"})
    seaborn.lineplot(
        interval_rows(curve, "measured"),
        x="k",
        y="measured",
        marker="o",
        color=PALETTE[0],
        label=f"measured, with its 95 % interval over {unit}s",
        ax=axis,
        **AS_GIVEN,
    )
    for name, look, text in (
        ("independent", {"color": PALETTE[5], "linestyle": "--"}, "if errors were independent"),
        ("binomial", {"color": FAINT, "linestyle": ":"}, "majority of independent votes"),
    ):
        axis.plot(curve["k"], curve[name], label=text, **look)
    axis.set_xscale("log")
    ticks = [count for count in curve["k"] if count in TICKS] or list(curve["k"])
    axis.set_xticks(ticks, [f"{count:.0f}" for count in ticks])
    axis.minorticks_off()
    axis.margins(x=0.04)
    shown = curve[["measured", "low", "independent", "binomial"]].astype(float)
    axis.set(
        xlabel=f"synapses per {unit}",
        ylabel=f"accuracy per {unit} ({curve['n_neurons'].iloc[0]} {unit}s)",
        ylim=(np.floor(20 * np.nanmin(shown)) / 20, 1.005),
    )
    axis.grid(axis="y")
    legend_below(axis, 2)
    if correlation is not None and correlation.value is not None:
        axis.set_title(
            f"errors within a {unit} correlate {correlation.text(2)}:\n{correlation.n_synapses} "
            f"synapses count as {correlation.effective_synapses:.0f}",
            loc="left",
        )
    return figure


@styled
def neuron_errors(table: pd.DataFrame, classes: Sequence[str], *, unit: str = "neuron") -> Figure:
    """Error rate of each neuron, worst at the top, with its 95 % interval; the line is the rate of
    all images.

    ``table`` is the one of :func:`nbhelpers.evaluation.quality.errors_by_neuron`; beyond 30 neurons
    only the worst are drawn, and the axis says so. ``unit`` is the word for a group.
    """
    something_to_draw(table, "errors by neuron")
    shown = table.head(MOST_NEURONS)
    rows = 100 * shown[["error", "low", "high"]].rename(columns={"error": "value"})
    rows = rows.assign(at=range(len(shown)), label=shown["label"])
    labels = list(dict.fromkeys([*classes, *shown["label"]]))  # a neuron may have several classes
    colours = class_colours(labels)
    markers = dict(zip(labels, "osD^vPX*" * len(labels), strict=False))
    used = [label for label in labels if label in set(shown["label"])]
    figure = new_figure(WIDTH, 1.2 + 0.24 * len(shown))
    axis = figure.subplots()
    interval_dots(
        axis,
        rows,
        [shortened(name, 24) for name in shown["neuron"]],
        [f"{row.errors:g} of {row.n}" for row in shown.itertuples()],
        hue="label",
        hue_order=used,
        palette=[colours[label] for label in used],
        markers=[markers[label] for label in used],
        markersize=6,
        clip_on=False,
        zorder=3,
    )
    overall = 100 * table["errors"].sum() / table["n"].sum()
    line = {"color": FAINT, "linestyle": "--", "linewidth": 1.2}
    axis.axvline(overall, label=f"all images, {overall:.1f} %", **line)
    legend_above(axis, len(used) + 1)
    axis.tick_params(axis="y", pad=9)  # a mark at 0 reaches to the left of the axis
    rest = f"; the worst {len(shown)} of {len(table)} {unit}s" if len(shown) < len(table) else ""
    axis.set(xlabel=f"errors, % of the {unit}'s images (95 % interval){rest}")
    axis.set_xlim(left=0)
    return figure


@styled
def quality_errors(table: pd.DataFrame) -> Figure:
    """Error rate against each image quality, lowest to highest part of the images, with 95 %
    intervals.

    ``table`` is the one of :func:`nbhelpers.evaluation.quality.errors_by_quality`. A panel whose
    ends differ beyond chance is drawn in the stronger colour.
    """
    import seaborn

    something_to_draw(table, "errors by quality")
    names = list(table["quality"].unique())
    columns = 2 if len(names) == 4 else min(3, len(names))  # no panel alone in its row
    lines = -(-len(names) // columns)
    figure = new_figure(WIDTH, 0.5 + 2.5 * lines)
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    rates = ["error", "low", "high"]
    table = table.assign(**(100 * table[rates].astype(float)))
    for axis, name in zip(axes.flat, names, strict=False):
        part = table[table["quality"] == name].reset_index(drop=True)
        first = part.iloc[0]
        beyond = first["difference_low"] > 0 or first["difference_high"] < 0
        colour, marker, words = BEYOND_CHANCE[bool(beyond)]
        seaborn.pointplot(
            interval_rows(part, "error"),
            x="bin",
            y="error",
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            clip_on=False,
            zorder=3,
            ax=axis,
            **AS_GIVEN,
        )
        ends = [[_short(value) for value in row] for row in part[["from", "to"]].to_numpy()]
        ticks = [low if low == high else f"{low}\nto {high}" for low, high in ends]
        axis.set_xticks(range(len(part)), ticks)
        axis.set(xlabel=QUALITIES.get(name, name.replace("_", " ")), ylabel="")
        axis.set_title(words, color=colour, loc="left", fontsize=SMALL)
        axis.grid(axis="y")
    # Once all panels are drawn: set earlier, it would keep the top of the first for the others.
    axes[0, 0].set_ylim(bottom=0)
    for line in axes:
        line[0].set_ylabel("errors, % of images")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    return figure


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"
