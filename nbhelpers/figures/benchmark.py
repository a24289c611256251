"""Figures of the benchmark: what accuracy costs in time, and how far each backend is from what the
processor could do.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.figures.style import (
    FAINT,
    INK,
    PALETTE,
    SMALL,
    WIDTH,
    WRONG,
    new_axes,
    new_figure,
    shortened,
    something_to_draw,
    styled,
)

MARKERS = ("o", "s", "D")  # the next one when the seven colours are used up
SHOWN = {"offered": PALETTE[0], "refused": WRONG}


def on_the_front(times: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(n,) bool: no other model is at least as good in at most the same time, and better in one of
    the two.
    """
    better = (times[None] <= times[:, None]) & (scores[None] >= scores[:, None])
    strictly = (times[None] < times[:, None]) | (scores[None] > scores[:, None])
    return ~(better & strictly).any(1)


@styled
def pareto(table: pd.DataFrame) -> Figure:
    """Accuracy with its 95 % interval against milliseconds per image (log axis); the area of a dot
    goes with the parameters.

    ``table`` has ``model``, ``params``, ``acc``, ``acc_low``, ``acc_high``, ``infer_ms`` and
    ``note``; models without a time are left out. Models that no other beats in both are joined by a
    line; marked models (notes with "RANDOM") are hollow. Raises InputError when no model has a
    time.
    """
    table = table.dropna(subset=["infer_ms", "acc"]).sort_values("infer_ms", ignore_index=True)
    something_to_draw(table, "models with a measured latency")
    numbers = ["infer_ms", "acc", "acc_low", "acc_high"]
    table[numbers] = table[numbers].astype(float)
    table["size"] = 20 + 1400 * table["params"].astype("Float64").fillna(0).astype(float) / 9e7
    front = table[on_the_front(table["infer_ms"].to_numpy(), table["acc"].to_numpy())]
    figure = new_figure(WIDTH, 4.6)
    axis = figure.subplots()
    line = {"color": FAINT, "linestyle": "--", "linewidth": 1}
    axis.plot(front["infer_ms"], front["acc"], label="no other is better in both", **line)
    for at, row in enumerate(table.itertuples()):
        colour = PALETTE[at % 7]
        hollow = "RANDOM" in str(row.note)
        axis.plot([row.infer_ms] * 2, [row.acc_low, row.acc_high], color=colour, linewidth=1.5)
        axis.scatter(
            row.infer_ms,
            row.acc,
            s=row.size,
            facecolor="white" if hollow else colour,
            edgecolor=colour,
            zorder=3,
            marker=MARKERS[at // 7 % len(MARKERS)],
            label=shortened(row.model, 30) + (" (random features)" if hollow else ""),
        )
    axis.set_xscale("log", subs=[2, 5])
    for formatted in (axis.xaxis.set_major_formatter, axis.xaxis.set_minor_formatter):
        formatted(lambda value, _: f"{value:g}")
    axis.set(xlabel="milliseconds per image, decoding included", ylabel="Accuracy, 95 % interval")
    axis.margins(x=0.12, y=0.08)
    axis.grid(axis="both")
    axis.set_axisbelow(True)
    legend = figure.legend(loc="outside right upper", labelspacing=0.9)
    for handle in legend.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([30])
    return figure


@styled
def roofline_bars(table: pd.DataFrame, model: str) -> Figure:
    """One bar per backend of ``model``: milliseconds per decoded image, with the floor of its
    number format as a tick.

    ``table`` is that of :func:`nbhelpers.inference.latency.roofline` with a column ``model``.
    Refused backends are in another colour, those not available are named with the reason.
    """
    table = table[table["model"] == model].reset_index(drop=True)
    something_to_draw(table, f"latencies of {model}")
    axis = new_axes(WIDTH, 0.9 + 0.34 * len(table))
    for at, row in enumerate(table.itertuples()):
        end = max(row.median_ms, row.p95_ms)
        text = f"{row.median_ms:.2f} ms"
        colour = INK
        if row.status == "not available":
            end = 0
            text = f"not available: {shortened(row.reason, 80)}"
            colour = FAINT
        else:
            axis.barh(at, row.median_ms, 0.6, color=SHOWN[row.status])
            axis.plot([row.median_ms, row.p95_ms], [at, at], color=INK, linewidth=1)
            if pd.notna(row.times_floor):
                axis.plot([row.floor_ms] * 2, [at - 0.38, at + 0.38], color=INK, linewidth=2)
                text += f", {row.times_floor:.1f} times its floor"
            elif pd.notna(row.floor_ms):
                text += ", distance from its floor withdrawn"
        if row.status == "refused":
            text += ", REFUSED: it drifts from fp32"
        axis.annotate(
            text,
            (end, at),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=SMALL,
            color=colour,
        )
    axis.set_yticks(range(len(table)), table["backend"])
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    axis.set(
        xlim=(0, 1.7 * float(np.nanmax(table["p95_ms"]))),
        xlabel="milliseconds per decoded image; thick tick: the floor of this number format",
    )
    return axis.figure
