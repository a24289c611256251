"""Figures of the audit: verdicts, what was injected and found, the reproduction table, and pairs of
copies.
"""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.figures.images import to_display
from nbhelpers.figures.style import INK, PALETTE, SMALL, WIDTH, new_figure, shortened, styled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from nbhelpers.audit.verdicts import Audit, Check
    from nbhelpers.core.imageset import ImageSet

VERDICT_LOOKS = {
    "pass": ("#009E73", "pass"),
    "not assessable": ("#c8c8c8", "?"),
    "warn": ("#E69F00", "warn"),
    "fail": ("#D55E00", "FAIL"),
}
REPORTED = PALETTE[5]
HERE = PALETTE[0]


@styled
def verdict_board(audits: Mapping[str, Audit]) -> Figure:
    """One column per audited set, one row per check, each field with its verdict as colour and
    word.
    """
    from matplotlib.patches import Rectangle

    if not audits:
        raise InputError("verdicts", "there is no audit to draw.")
    checks = list(dict.fromkeys(check.name for audit in audits.values() for check in audit.checks))
    figure = new_figure(WIDTH, 1.2 + 0.27 * len(checks))
    axis = figure.subplots()
    for column, audit in enumerate(audits.values()):
        for check in audit.checks:
            colour, word = VERDICT_LOOKS[check.verdict]
            row = checks.index(check.name)
            axis.add_patch(
                Rectangle((column - 0.48, row - 0.44), 0.96, 0.88, color=colour, linewidth=0)
            )
            axis.text(
                column,
                row,
                word,
                ha="center",
                va="center",
                fontsize=SMALL,
                color="white" if check.verdict in ("pass", "fail") else INK,
            )
    axis.set(xlim=(-0.5, len(audits) - 0.5), ylim=(len(checks) - 0.5, -0.5))
    axis.set_xticks(range(len(audits)), [fill(name, 18) for name in audits], fontsize=SMALL)
    axis.set_yticks(range(len(checks)), checks)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return figure


@styled
def recall_figure(table: pd.DataFrame) -> Figure:
    """Share of injected defects that were found, with its 95 % interval; the table of
    ``injected.campaign``.
    """
    if not len(table):
        raise InputError("injected defects", "there are none to draw.")
    figure = new_figure(WIDTH, 0.8 + 0.25 * len(table))
    axis = figure.subplots()
    at = np.arange(len(table))
    axis.hlines(at, table["low"], table["high"], color=PALETTE[0], linewidth=2)
    axis.plot(table["recall"], at, "o", color=PALETTE[0], markersize=6)
    axis.axvline(0.95, color=INK, linestyle=":", linewidth=1)
    axis.set_yticks(
        at,
        [
            shortened(f"{row.defect}: {row.detail} ({row.found} of {row.injected})", 76)
            for row in table.itertuples()
        ],
    )
    axis.set(
        xlim=(-0.02, 1.04),
        ylim=(len(table) - 0.5, -0.5),
        xlabel="share found, with 95 % interval (dotted: 0.95)",
    )
    axis.grid(axis="x")
    return figure


@styled
def reproduction_figure(table: pd.DataFrame) -> Figure:
    """Reported figures beside what honest runs gave here, with intervals; hollow: synthetic images;
    from ``ledger``.

    Figures that are no share (times faster) are left out.
    """
    rows = table[
        table["reported"].astype(float).between(0.2, 1)
        | table["grouped value"].astype(float).between(0.2, 1)
    ]
    figure = new_figure(WIDTH, 1.0 + 0.27 * max(len(rows), 1))
    axis = figure.subplots()
    names = {
        "reported": "reported",
        "published": "published protocol here",
        "grouped": "grouped here",
    }
    looks = {"reported": ("D", REPORTED), "published": ("s", PALETTE[1]), "grouped": ("o", HERE)}
    for line, (_, row) in enumerate(rows.iterrows()):
        for shift, which in zip((-0.22, 0, 0.22), names, strict=True):
            marker, colour = looks[which]
            value = row["reported" if which == "reported" else f"{which} value"]
            if value is None or pd.isna(value):
                continue
            low = row[f"{which} low"]
            high = row[f"{which} high"]
            if low is not None and not pd.isna(low):
                axis.hlines(line + shift, low, high, color=colour, linewidth=1.5)
            hollow = which != "reported" and bool(row[f"{which} synthetic"])
            axis.plot(
                value,
                line + shift,
                marker,
                color=colour,
                markersize=5,
                markerfacecolor="white" if hollow else colour,
            )
    for which, name in names.items():
        axis.plot([], [], looks[which][0], color=looks[which][1], label=name)
    axis.plot([], [], "o", color=HERE, markerfacecolor="white", label="synthetic images")
    axis.set_yticks(
        range(len(rows)),
        [
            shortened(f"{row['system']}  {row['model']}, {row['score']}", 46)
            for _, row in rows.iterrows()
        ],
    )
    axis.set(
        ylim=(len(rows) - 0.5, -0.5), xlabel="score, with 95 % interval where one can be given"
    )
    axis.grid(axis="x")
    figure.legend(loc="outside upper center", ncols=4, handletextpad=0.3)
    return figure


@styled
def copies_sheet(images: ImageSet, check: Check, most: int = 6) -> Figure:
    """The first pairs that a check of copies names, one above the other."""
    rows = check.rows.head(most)
    if not len(rows):
        raise InputError(f"check {check.name}", "it names no pairs.")
    figure = new_figure(WIDTH, 2 * WIDTH / max(len(rows), 4) + 0.5)
    axes = figure.subplots(2, len(rows), squeeze=False)
    for column, row in enumerate(rows.to_dict("records")):
        for line, name in enumerate(("image", "other image")):
            axis = axes[line, column]
            picture = to_display(images.pixels[images.positions([row[name]])[0]], images.channels)
            axis.imshow(picture, cmap="gray" if picture.ndim == 2 else None)
            axis.set_title(
                f"{shortened(row[name], 16)}\n{row['part' if not line else 'other part']}",
                fontsize=SMALL,
            )
            axis.axis("off")
    return figure
