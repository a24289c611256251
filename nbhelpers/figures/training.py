"""Figures of a training: its losses, its validation scores and its learning rate."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.figures.style import (
    FAINT,
    PALETTE,
    WIDTH,
    legend_above,
    new_figure,
    something_to_draw,
    styled,
)


@styled
def history(table: pd.DataFrame, kept_epoch: int | None = None) -> Figure:
    """Losses, validation scores and learning rate over the epochs.

    ``table`` has ``epoch``, ``train_loss``, and where known ``validation_loss``,
    ``validation_<score>`` and ``learning_rate``; with ``repeat``, ``fold`` or ``recipe`` every
    training is a thin line and the median a thick one. ``kept_epoch`` marks the epoch whose weights
    were kept.
    """
    import seaborn

    something_to_draw(table, "history")
    panels = {
        "loss": table.filter(regex="_loss$"),
        "validation score": table.filter(regex="^validation_(?!loss$)"),
        "learning rate": table.filter(regex="^learning_rate$"),
    }
    panels = {label: columns for label, columns in panels.items() if columns.shape[1]}
    keys = [name for name in ("repeat", "fold", "recipe") if name in table.columns]
    table = table.assign(run=table.groupby(keys).ngroup() if keys else 0)
    few = table["epoch"].nunique() < 3  # a line of one point cannot be seen
    figure = new_figure(WIDTH, 3.3)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, columns) in zip(axes, panels.items(), strict=True):
        curves = table.melt(["epoch", "run"], columns, "name", label).dropna()
        runs = curves.groupby("name")["run"].nunique()
        names = {name: _curve_name(name, count) for name, count in runs.items()}
        curves["name"] = curves["name"].map(names)
        shared = {
            "x": "epoch",
            "y": label,
            "hue": "name",
            "palette": PALETTE[: len(names)],
            "marker": "o" if few else None,
            "markersize": 4,
            "ax": axis,
        }
        if runs.max() > 1:
            thin = {"units": "run", "linewidth": 0.6, "alpha": 0.35, "legend": False}
            seaborn.lineplot(curves, estimator=None, **thin, **shared)
        seaborn.lineplot(curves, estimator="median", errorbar=None, **shared)
        if kept_epoch is not None:
            axis.axvline(kept_epoch, color=FAINT, linestyle=":", linewidth=1.2, label="kept epoch")
        legend_above(axis)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.grid(axis="y")
        if label == "learning rate":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
            axis.set_ylim(bottom=0)  # else a constant rate looks as if it varied
            axis.get_legend().remove()
    return figure


def _curve_name(column: str, runs: int) -> str:
    words = column.removesuffix("_loss").removeprefix("validation_").replace("_", " ")
    words = words.replace("macro f1", "macro-F1")
    return words if runs == 1 else f"{words}, median of {runs}"
