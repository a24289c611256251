"""Figures of scores: confusion, calibration, models beside their floors, class balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.errors import check_choice
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split
from nbhelpers.evaluation.metrics import (
    calibration_of,
    reliability_bins,
)
from nbhelpers.figures.style import (
    FAINT,
    PALETTE,
    SMALL,
    WIDTH,
    heat_map,
    interval_dots,
    legend_above,
    new_axes,
    new_figure,
    shortened,
    something_to_draw,
    styled,
)

KINDS = {"model": (PALETTE[0], "o"), "floor": ("#6b6b6b", "s"), "published": (PALETTE[5], "D")}
PART_COLOURS = {"train": PALETTE[0], "validation": PALETTE[4], "test": PALETTE[1]}
# Confidences are drawn on a logit axis: a network that is sure of most images would otherwise have
# all its dots on each other at 1. What is above SUREST is drawn on it.
SUREST = 0.9999
CONFIDENCES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999, SUREST)


@styled
def confusion_matrix(metrics: Mapping) -> Figure:
    """Counts, and below them the percentage of the true class, from the dict of ``evaluate``."""
    from matplotlib.ticker import PercentFormatter

    counts = np.asarray(metrics["confusion_matrix"])
    names = [shortened(name, 18) for name in metrics["classes"]]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(0.85 * len(names), 2.4, 6.5))
    axis = new_axes(side + 2.4, side + 1.1)
    heat_map(
        axis,
        pd.DataFrame(shares, names, names),
        np.vectorize(_count_and_share, otypes=[object])(counts, shares, totals),
        vmin=0,
        vmax=1,
        cmap="Blues",
        cbar_kws={"shrink": 0.85, "ticks": [0, 0.5, 1], "format": PercentFormatter(1)},
    )
    axis.collections[0].colorbar.set_label("share of the true class", fontsize=SMALL)
    if len(names) > 4 or max(map(len, names)) > 10:
        axis.set_xticklabels(names, rotation=40, ha="right", rotation_mode="anchor")
    repeats = metrics["n_repeats"]
    added_up = f", added up over {repeats} repeats" if repeats > 1 else ""
    axis.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"{metrics['n_images']} images{added_up}",
    )
    return axis.figure


def _count_and_share(count: int, share: float, total: int) -> str:
    return f"{count}\n{100 * share:.0f} %" if total else f"{count}\nno images"


@styled
def reliability_diagram(before: Predictions, after: Predictions | None = None) -> Figure:
    """Accuracy against confidence with 95 % intervals, over a histogram of the confidences.

    ``after``: the same predictions once their temperature was set. The axis of the confidence is
    stretched towards 1; there, a confidence above 0.9999 is drawn as 0.9999.
    """
    import seaborn

    series = {"predictions": before}
    if after is not None:
        series = {"as predicted": before, "after temperature scaling": after}
    figure = new_figure(6.2, 5.7)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    logit = np.linspace(-4, np.log(SUREST / (1 - SUREST)), 51)
    steps = 1 / (1 + np.exp(-logit))
    seen = []
    looks = zip((PALETTE[0], PALETTE[5]), "os", strict=True)
    for (name, predictions), (colour, marker) in zip(series.items(), looks, strict=False):
        error = calibration_of(predictions)
        bins = reliability_bins(predictions)
        ends = bins[["low", "high"]].astype(float).sub(bins["accuracy"], axis=0).abs().fillna(0)
        # Not by seaborn, which would make one dot of two bins with the same confidence.
        top.errorbar(
            bins["confidence"].clip(upper=SUREST),
            bins["accuracy"],
            yerr=ends.to_numpy().T,
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.2,
            label=f"{name} (ECE {error.estimate.value:.3f}; calibrated, it would be "
            f"{error.expected_if_calibrated:.3f})",
        )
        seen.append(predictions.probabilities.max(axis=1).clip(steps[0], SUREST))
        look = {"element": "step", "fill": False, "color": colour, "ax": bottom}
        seaborn.histplot(x=seen[-1], bins=steps, **look)
    least = top.dataLim.y0 - 0.03
    top.plot(
        steps, steps, color=FAINT, linestyle="--", linewidth=1, label="right as often as it says"
    )
    lowest = np.concatenate(seen).min()
    highest = np.concatenate(seen).max()
    # Only now: seaborn would work in the units of the stretched axis.
    bottom.set_xscale("logit")
    ticks = [tick for tick in CONFIDENCES if lowest <= tick <= highest]
    bottom.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    bottom.minorticks_off()
    bottom.set(
        xlabel="confidence (probability of the most probable class)",
        ylabel="images",
        xlim=(0.97 * lowest, 1 - 0.8 * (1 - highest)),
    )
    bottom.yaxis.get_major_locator().set_params(integer=True)
    top.set(ylabel="accuracy", ylim=(max(0, least), 1.03))
    legend_above(top)
    top.grid(axis="both")
    return figure


@styled
def scores_with_floors(
    rows: Sequence[tuple[str, str, Estimate]], score: str = "Accuracy"
) -> Figure:
    """Models beside their floors and published figures: a dot and its 95 % interval per row.

    ``rows`` are (name, kind, estimate), with the kind "model", "floor" or "published"; drawn from
    the top in the order given. Raises InputError for no rows and for other kinds.
    """
    something_to_draw(rows, "scores")
    names, kinds, estimates = zip(*rows, strict=True)
    for kind in kinds:
        check_choice("kind of a score", kind, KINDS)
    table = pd.DataFrame([estimate.as_dict() for estimate in estimates]).assign(kind=kinds)
    table["at"] = range(len(table))
    used = [kind for kind in KINDS if kind in kinds]
    axis = new_axes(WIDTH, 0.9 + 0.36 * len(rows))
    interval_dots(
        axis,
        table,
        [shortened(name, 38) for name in names],
        [estimate.text() for estimate in estimates],
        hue="kind",
        hue_order=used,
        palette=[KINDS[kind][0] for kind in used],
        markers=[KINDS[kind][1] for kind in used],
        markersize=7,
    )
    axis.set(xlabel=f"{score}, 95 % interval")
    axis.margins(x=0.06)
    legend_above(axis, len(used))
    return axis.figure


@styled
def class_balance(images: ImageSet, split: Split) -> Figure:
    """Images per class and part: the mean over the folds, with the smallest and the largest."""
    import seaborn

    names = list(images.classes)
    table = split.table.merge(images.table[["id", "label"]], on="id")
    table = table.groupby(["part", "repeat", "fold", "label"]).size().unstack(fill_value=0)
    table = table.reindex(columns=names, fill_value=0)
    counts = table.melt(var_name="label", value_name="images", ignore_index=False).reset_index()
    parts = [part for part in PART_COLOURS if part in set(counts["part"])]
    axis = new_axes(WIDTH, 1.15 + len(names) * (0.16 + 0.22 * len(parts)))
    seaborn.barplot(
        counts,
        x="images",
        y="label",
        hue="part",
        order=names,
        hue_order=parts,
        palette=PART_COLOURS,
        saturation=1,
        errorbar=None,
        ax=axis,
    )
    for part, bars in zip(parts, axis.containers, strict=True):
        of_part = counts[counts["part"] == part].groupby("label")["images"]
        ends = zip(of_part.min()[names], of_part.max()[names], strict=True)
        labels = [f"{low}" if low == high else f"{low} to {high}" for low, high in ends]
        axis.bar_label(bars, labels, padding=4, fontsize=SMALL)
    axis.set_yticks(range(len(names)), [shortened(name, 30) for name in names])
    axis.tick_params(axis="y", length=0)
    axis.xaxis.get_major_locator().set_params(integer=True)
    folds = len(split.folds())
    axis.set(xlabel=f"images ({folds} fold{'s' * (folds != 1)})", ylabel="")
    axis.margins(x=0.12)
    legend_above(axis, len(parts))
    return axis.figure
