"""Figures of the audit: verdicts, what was injected and found, the reproduction table, and pairs of
copies.
"""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.audit.verdicts import Audit, Check
from nbhelpers.core.imageset import ImageSet
from nbhelpers.figures.images import show_picture
from nbhelpers.figures.legend import legend_below
from nbhelpers.figures.style import (
    INK,
    PALETTE,
    SMALL,
    WIDTH,
    heat_map,
    interval_dots,
    new_axes,
    picture_grid,
    shortened,
    something_to_draw,
    styled,
)

# Colour and word, in the order of the colour map of the board.
VERDICT_LOOKS = {
    "pass": ("#009E73", "pass"),
    "not assessable": ("#c8c8c8", "?"),
    "warn": ("#E69F00", "warn"),
    "fail": ("#D55E00", "FAIL"),
}
# Columns of the reproduction table, what they are called, colour and mark.
PROTOCOLS = (
    ("reported", "reported", "reported", PALETTE[5], "D"),
    ("published value", "published", "published protocol here", PALETTE[1], "s"),
    ("grouped value", "grouped", "grouped here", PALETTE[0], "o"),
)
MOST_PAIRS = 6


@styled
def verdict_board(audits: Mapping[str, Audit]) -> Figure:
    """One column per audited set, one row per check, each field with its verdict as colour and
    word.
    """
    something_to_draw(audits, "verdicts")
    table = pd.DataFrame(
        {
            name: {check.name: check.verdict for check in audit.checks}
            for name, audit in audits.items()
        }
    )
    axis = new_axes(WIDTH, 1.2 + 0.27 * len(table))
    numbers = {verdict: float(number) for number, verdict in enumerate(VERDICT_LOOKS)}
    heat_map(
        axis,
        table.apply(lambda verdicts: verdicts.map(numbers)),
        table.replace({verdict: word for verdict, (_, word) in VERDICT_LOOKS.items()}),
        vmin=0,
        vmax=len(numbers) - 1,
        cmap=[colour for colour, _ in VERDICT_LOOKS.values()],
        linewidths=2,
        cbar=False,
        xticklabels=[fill(name, 18) for name in audits],
    )
    axis.xaxis.tick_top()
    return axis.figure


@styled
def recall_figure(table: pd.DataFrame) -> Figure:
    """Share of injected defects that were found, with its 95 % interval; the table of
    ``injected.campaign``.
    """
    something_to_draw(table, "injected defects")
    labels = [
        shortened(f"{row.defect}: {row.detail} ({row.found} of {row.injected})", 76)
        for row in table.itertuples()
    ]
    axis = new_axes(WIDTH, 0.8 + 0.25 * len(table))
    rows = table.rename(columns={"recall": "value"}).assign(at=range(len(table)))
    interval_dots(axis, rows, labels, color=PALETTE[0], markersize=6)
    axis.axvline(0.95, color=INK, linestyle=":", linewidth=1)
    axis.set(xlim=(-0.02, 1.04), xlabel="share found, with 95 % interval (dotted: 0.95)")
    return axis.figure


@styled
def reproduction_figure(table: pd.DataFrame) -> Figure:
    """Reported figures beside what runs without a leak gave here, with intervals; hollow: synthetic
    images; from ``reproduction_table``.

    Figures that are no share (times, counts) are left out. Raises InputError when none is one.
    """
    table = table[~table["score"].isin(("ms per image", "parameters"))]
    shares = table[["reported", "grouped value"]].astype(float)
    table = table[((shares >= 0.2) & (shares <= 1)).any(axis=1)]
    something_to_draw(table, "shares of the reproduction table")
    labels = []
    points = []
    for at, row in enumerate(table.to_dict("records")):
        labels.append(shortened(f"{row['system']}  {row['model']}, {row['score']}", 46))
        for column, prefix, name, _, _ in PROTOCOLS:
            point = {"at": at, "protocol": name, "value": row[column]}
            point |= {"low": row[f"{prefix} low"], "high": row[f"{prefix} high"]}
            points.append(point | {"hollow": bool(row.get(f"{prefix} synthetic"))})
    points = pd.DataFrame(points)
    axis = new_axes(WIDTH, 1.0 + 0.27 * len(table))
    looks = {
        "hue": "protocol",
        "hue_order": [name for _, _, name, _, _ in PROTOCOLS],
        "palette": [colour for *_, colour, _ in PROTOCOLS],
        "markers": [marker for *_, marker in PROTOCOLS],
    }
    for hollow in (False, True):
        # The other half of the values is left out, not the rows: every call has the same places.
        some = points.assign(value=points["value"].astype(float).where(points["hollow"] == hollow))
        fill_colour = {"markerfacecolor": "white"} if hollow else {}
        interval_dots(
            axis,
            some,
            labels,
            dodge=0.44,
            markersize=5,
            linewidth=1.5,
            legend=not hollow,
            **looks,
            **fill_colour,
        )
    axis.plot([], [], "o", color=PALETTE[0], markerfacecolor="white", label="synthetic images")
    axis.set(xlabel="score, with 95 % interval where one can be given")
    legend_below(axis, 4)
    return axis.figure


@styled
def copies_sheet(images: ImageSet, check: Check) -> Figure:
    """The first pairs that a check of copies names, one above the other."""
    rows = check.rows.head(MOST_PAIRS)
    something_to_draw(rows, f"pairs of {check.name}")
    height = 2 * WIDTH / max(len(rows), 4) + 0.5
    figure, axes = picture_grid(WIDTH, height, 2, len(rows))
    for line, name, part in zip(
        axes, ("image", "other image"), ("part", "other part"), strict=True
    ):
        positions = images.positions(rows[name])
        for axis, position, file, of in zip(line, positions, rows[name], rows[part], strict=True):
            show_picture(axis, images, position)
            axis.set_title(f"{shortened(file, 16)}\n{of}", fontsize=SMALL)
    return figure
