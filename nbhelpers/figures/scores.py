"""Figures of scores: confusion, calibration, training history, models beside their floors, class
balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.calibration import expected_calibration_error, reliability_bins
from nbhelpers.evaluation.metrics import confidence_and_right
from nbhelpers.figures.style import (
    FAINT,
    INK,
    PALETTE,
    SMALL,
    WIDTH,
    new_figure,
    shortened,
    styled,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.core.splits import Split

KINDS = {
    "model": ("o", PALETTE[0], "model"),
    "floor": ("s", "#6b6b6b", "floor"),
    "published": ("D", PALETTE[5], "published"),
}
ABOVE = {
    "loc": "lower left",
    "bbox_to_anchor": (0, 1),
    "borderaxespad": 0.3,
}  # a legend that hides no line
PART_COLOURS = {"train": PALETTE[0], "validation": PALETTE[4], "test": PALETTE[1]}


@styled
def confusion_matrix(metrics: Mapping) -> Figure:
    """Counts, and below them the percentage of the true class, from the dict of ``evaluate``."""
    counts = np.asarray(metrics["confusion_matrix"])
    names = [shortened(name, 18) for name in metrics["classes"]]
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = float(np.clip(0.85 * len(names), 2.4, 6.5))
    figure = new_figure(side + 2.4, side + 1.1)
    axis = figure.subplots()
    picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            share = f"{100 * shares[row, column]:.0f} %" if totals[row, 0] else "no images"
            axis.text(
                column,
                row,
                f"{counts[row, column]}\n{share}",
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if shares[row, column] > 0.55 else INK,
            )
    steep = len(names) > 4 or max(map(len, names)) > 10
    axis.set_xticks(
        range(len(names)),
        names,
        rotation=40 if steep else 0,
        ha="right" if steep else "center",
        rotation_mode="anchor" if steep else "default",
    )
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    repeats = metrics["n_repeats"]
    axis.set(
        xlabel="predicted class",
        ylabel="true class",
        title=f"{metrics['n_images']} images"
        + (f", added up over {repeats} repeats" if repeats > 1 else ""),
    )
    bar = figure.colorbar(
        picture, ax=axis, shrink=0.85, ticks=[0, 0.5, 1], format=lambda x, _: f"{100 * x:.0f} %"
    )
    bar.outline.set_visible(False)
    bar.set_label("share of the true class", fontsize=SMALL)
    return figure


@styled
def reliability_diagram(
    before: Predictions, after: Predictions | None = None, *, bins: int = 10
) -> Figure:
    """Accuracy against confidence with 95 % intervals, over a histogram of the confidences.

    ``after``: the same predictions once their temperature was set.
    """
    figure = new_figure(6.2, 5.7)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot(
        [0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1, label="right as often as it says"
    )
    series = [(before, PALETTE[0], "o", "as predicted" if after else "predictions")]
    series += [(after, PALETTE[5], "s", "after temperature scaling")] if after else []
    lowest = 1.0
    for predictions, colour, marker, name in series:
        table = reliability_bins(predictions)
        low, high = (
            table[side].astype(float).fillna(table["accuracy"]) for side in ("low", "high")
        )
        top.vlines(table["confidence"], low, high, color=colour, linewidth=1.2, alpha=0.6)
        top.plot(
            table["confidence"],
            table["accuracy"],
            marker=marker,
            color=colour,
            markersize=5,
            linewidth=1.2,
            label=f"{name} (calibration error {expected_calibration_error(predictions):.3f})",
        )
        confidence = confidence_and_right(predictions)[0]
        lowest = min(lowest, confidence.min(), low.min())
        bottom.hist(
            confidence, bins=np.linspace(0, 1, 41), histtype="step", color=colour, linewidth=1.4
        )
    left = max(0.0, np.floor(lowest * 10 - 0.2) / 10)
    top.set(ylabel="accuracy", ylim=(left, 1.02))
    top.legend(**ABOVE)
    bottom.set(
        xlabel="confidence (probability of the most probable class)",
        ylabel="images",
        xlim=(left, 1.01),
    )
    top.grid(axis="both")
    return figure


@styled
def history(table: pd.DataFrame, kept_epoch: int | None = None) -> Figure:
    """Losses, validation scores and learning rate over the epochs.

    ``table`` has ``epoch``, ``train_loss``, and where known ``validation_loss``,
    ``validation_<score>`` and ``learning_rate``; with ``repeat``, ``fold`` or ``recipe`` every
    training is a thin line and the median a thick one. ``kept_epoch`` marks the epoch whose weights
    were kept.
    """
    if "epoch" not in table.columns or len(table) == 0:
        raise InputError(
            "history", "it has no epochs.", "Give the table that the training returned."
        )
    scores = [
        name
        for name in table.columns
        if name.startswith("validation_") and name != "validation_loss"
    ]
    panels = [
        ("loss", [name for name in ("train_loss", "validation_loss") if name in table.columns])
    ]
    panels += [("validation score", scores)] if scores else []
    panels += [("learning rate", ["learning_rate"])] if "learning_rate" in table.columns else []
    keys = [
        name
        for name in ("repeat", "fold", "recipe")
        if name in table.columns and table[name].nunique() > 1
    ]
    figure = new_figure(WIDTH, 3.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, names) in zip(axes, panels, strict=True):
        for name, colour in zip(names, PALETTE, strict=False):
            values = table.dropna(subset=[name])
            text = name.removeprefix("validation_" if label != "loss" else "").replace("_", " ")
            text = (
                text.removesuffix(" loss")
                if label == "loss"
                else text.replace("macro f1", "macro-F1")
            )
            runs = [run for _, run in values.groupby(keys)] if keys else [values]
            several = len(runs) > 1
            marker = (
                "o" if values["epoch"].nunique() < 3 else None
            )  # a line of one point cannot be seen
            for run in runs:
                axis.plot(
                    run["epoch"],
                    run[name],
                    color=colour,
                    marker=marker,
                    markersize=3,
                    linewidth=0.6 if several else 1.6,
                    alpha=0.35 if several else 1,
                    label=None if several else text,
                )
            if several:
                middle = values.groupby("epoch")[name].median()
                axis.plot(
                    middle.index,
                    middle,
                    color=colour,
                    marker=marker,
                    linewidth=2,
                    label=f"{text}, median of {len(runs)}",
                )
        if kept_epoch is not None:
            axis.axvline(
                kept_epoch,
                color=FAINT,
                linestyle=":",
                linewidth=1.2,
                label="kept epoch" if axis is axes[0] else None,
            )
        axis.set(xlabel="epoch", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(axis="y")
        if label == "learning rate":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            axis.set_ylim(bottom=0)  # else a constant rate looks as if it varied
        else:
            axis.legend(**ABOVE)
    return figure


@styled
def scores_with_floors(rows: Sequence[Mapping], score: str = "Accuracy") -> Figure:
    """Models beside their floors and published figures: a dot and its 95 % interval per row.

    ``rows``: dicts with ``name``, ``value``, ``low``, ``high`` (None where there is none) and
    ``kind``, "model", "floor" or "published"; drawn from the top in the order given.
    """
    if not rows:
        raise InputError("scores", "there are no rows to draw.", "Give at least one model.")
    unknown = {row["kind"] for row in rows} - set(KINDS)
    if unknown:
        raise InputError(
            "scores",
            f"the kinds {sorted(map(str, unknown))} are unknown.",
            f"Known are {list(KINDS)}.",
        )
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(rows))
    axis = figure.subplots()
    drawn = set()
    for height, row in zip(range(len(rows), 0, -1), rows, strict=True):
        marker, colour, label = KINDS[row["kind"]]
        text = "not defined"
        if row["value"] is not None:
            text = f"{row['value']:.3f}"
            if row.get("low") is not None:
                axis.plot(
                    [row["low"], row["high"]],
                    [height] * 2,
                    color=colour,
                    linewidth=2,
                    solid_capstyle="butt",
                )
                text += f"  ({row['low']:.3f} to {row['high']:.3f})"
            axis.plot(
                row["value"],
                height,
                marker,
                color=colour,
                markersize=7,
                linestyle="none",
                label=None if label in drawn else label,
            )
            drawn.add(label)
        axis.annotate(
            text, (1.01, height), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL
        )
    axis.set_yticks(range(len(rows), 0, -1), [shortened(row["name"], 38) for row in rows])
    axis.set(ylim=(0.4, len(rows) + 0.6), xlabel=f"{score}, 95 % interval")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
    axis.margins(x=0.06)
    if len(drawn) > 1:
        figure.legend(loc="outside upper center", ncols=len(drawn), handletextpad=0.3)
    return figure


@styled
def class_balance(images: ImageSet, split: Split | None = None) -> Figure:
    """Images per class; with a split, per part: the mean over the folds, with a line from smallest
    to largest.
    """
    names = list(images.classes)
    if split is None:
        parts = {"all": np.asarray(list(images.counts().values()))[None]}
    else:
        label = dict(zip(images.ids, images.table["label"], strict=True))
        table = split.table.assign(label=split.table["id"].map(label))
        counts = (
            table.groupby(["part", "repeat", "fold", "label"]).size().unstack("label", fill_value=0)
        )
        counts = counts.reindex(columns=names, fill_value=0)
        parts = {part: counts.loc[part].to_numpy() for part in PART_COLOURS if part in counts.index}
    figure = new_figure(
        WIDTH, 0.9 + 0.25 * (len(parts) > 1) + len(names) * (0.16 + 0.22 * len(parts))
    )
    axis = figure.subplots()
    height = 0.8 / len(parts)
    for index, (part, counts) in enumerate(parts.items()):
        at = np.arange(len(names)) - 0.4 + (index + 0.5) * height
        mean = counts.mean(axis=0)
        low = counts.min(axis=0)
        high = counts.max(axis=0)
        axis.barh(at, mean, height * 0.92, color=PART_COLOURS.get(part, PALETTE[0]), label=part)
        for line in range(len(names)):
            text = (
                f"{mean[line]:.0f}" if low[line] == high[line] else f"{low[line]} to {high[line]}"
            )
            if low[line] != high[line]:
                axis.plot([low[line], high[line]], [at[line]] * 2, color=INK, linewidth=1)
            axis.annotate(
                text,
                (high[line], at[line]),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=SMALL,
            )
    axis.set_yticks(range(len(names)), [shortened(name, 30) for name in names])
    axis.invert_yaxis()
    axis.tick_params(axis="y", length=0)
    folds = (
        "" if split is None else f" ({len(split.folds())} fold{'s' * (len(split.folds()) != 1)})"
    )
    axis.set(xlabel="images" + folds)
    axis.margins(x=0.12)
    if len(parts) > 1:
        axis.legend(ncols=len(parts), **ABOVE)
    return figure
