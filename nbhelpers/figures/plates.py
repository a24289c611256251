"""Figures of plates: wells in their places, conditions, dose-response curves, and fields stain by
stain.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.evaluation.plates import condition_scores, hill, with_controls
from nbhelpers.figures.images import CHANNEL_COLOURS, _scale_bar
from nbhelpers.figures.style import FAINT, INK, PALETTE, SMALL, WIDTH, new_figure, shortened, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nbhelpers.core.imageset import ImageSet

COLOURS = "cividis"  # reads the same with any colour vision, and in grey
NAMES = {
    "damage": "damage (0: as healthy controls,\n1: as with amyloid-beta)",
    "probability": "probability of {}",
    "log_odds": "log-odds of {}",
}
# of a plate: more than these take the whole width, or have no room for numbers
MANY_COLUMNS = 8
TOO_MANY = 14
ARMS = {
    "without amyloid-beta": (PALETTE[0], "o", "-"),
    "with amyloid-beta": (PALETTE[5], "s", "--"),
}


def _range(values: np.ndarray, name: str) -> tuple[float, float]:
    if name == "probability":
        return 0.0, 1.0
    known = values[np.isfinite(values)]
    if not len(known):
        raise InputError(
            name,
            "no well has this value.",
            "Plates without both controls have no damage: draw log_odds.",
        )
    return (
        (min(0.0, *known), max(1.0, *known))
        if name == "damage"
        else (known.min(), max(known.max(), known.min() + 1e-9))
    )


def _ink_on(picture, value: float) -> str:
    red, green, blue, _ = picture.cmap(picture.norm(value))
    return INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"


def _two_digits(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}"  # no -0.00


def _bar(figure: Figure, picture, axes, name: str, of: str) -> None:
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label(NAMES.get(name, name.replace("_", " ")).format(of), fontsize=SMALL)


@styled
def plate_map(
    wells: pd.DataFrame,
    value: str = "damage",
    plates: Sequence[str] | None = None,
    most: int = 4,
    of: str = "amyloid-beta",
) -> Figure:
    """Plates as they lie on the bench: a square per well, with the value and below it the dose of
    the compound (uM).

    ``wells`` is the table of :func:`nbhelpers.evaluation.plates.well_scores`, ``value`` one of its
    columns. Wells with amyloid-beta have a frame. Shows ``plates``, or the first ``most``; ``of``
    is the class of the probability. Plates of more than 14 columns have no room for numbers.
    """
    from matplotlib.patches import Rectangle

    names = sorted(wells["plate"].unique())[:most] if plates is None else list(plates)
    shown = wells[wells["plate"].isin(names)]
    if shown.empty:
        raise InputError(
            "wells",
            "there is no well to draw.",
            f"The plates are {sorted(wells['plate'].unique())}.",
        )
    letters = sorted(shown["row"].unique(), key=lambda letter: (len(letter), letter))
    numbers = sorted(shown["column"].unique())
    low, high = _range(shown[value].to_numpy(float), value)
    across = min(2, len(names)) if len(numbers) <= MANY_COLUMNS else 1
    height = 0.42 if len(numbers) <= TOO_MANY else 0.22
    lines = -(-len(names) // across)
    figure = new_figure(WIDTH, max(2.4, lines * (height * len(letters) + 0.6) + 0.4))
    axes = figure.subplots(lines, across, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        part = shown[shown["plate"] == name]
        grid = np.full((len(letters), len(numbers)), np.nan)
        at = [(letters.index(row.row), numbers.index(row.column)) for row in part.itertuples()]
        grid[tuple(np.array(at).T)] = part[value]
        picture = axis.imshow(grid, cmap=COLOURS, vmin=low, vmax=high, aspect="auto")
        for (y, x), row in zip(at, part.itertuples(), strict=True):
            number = getattr(row, value)
            ink = _ink_on(picture, number) if np.isfinite(number) else INK
            text = _two_digits(number) if np.isfinite(number) else "none"
            if len(numbers) <= TOO_MANY:
                axis.text(
                    x,
                    y,
                    f"{text}\n{row.dose_uM:g}",
                    ha="center",
                    va="center",
                    fontsize=SMALL,
                    color=ink,
                    linespacing=0.95,
                )
            if row.amyloid_uM > 0:
                axis.add_patch(
                    Rectangle(
                        (x - 0.45, y - 0.44),
                        0.9,
                        0.88,
                        fill=False,
                        edgecolor=PALETTE[5],
                        linewidth=1.4,
                    )
                )
        axis.set_xticks(range(len(numbers)), [f"{number}" for number in numbers])
        axis.set_yticks(range(len(letters)), letters)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        compounds = ", ".join(sorted(part["compound"].unique()))
        axis.set_title(shortened(f"{name}: {compounds}", 44), loc="left")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    _bar(figure, picture, axes, value, of)
    handles = []
    if len(numbers) <= TOO_MANY:
        handles += [
            Rectangle(
                (0, 0),
                1,
                1,
                linewidth=0,
                fill=False,
                label="below the value: dose of the compound, uM",
            )
        ]
    if (shown["amyloid_uM"] > 0).any():
        handles += [
            Rectangle(
                (0, 0),
                1,
                1,
                linewidth=1.4,
                fill=False,
                edgecolor=PALETTE[5],
                label=f"with amyloid-beta, {shown['amyloid_uM'].max():g} uM",
            )
        ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


@styled
def condition_map(
    conditions: pd.DataFrame, value: str = "damage", most: int = 9, of: str = "amyloid-beta"
) -> Figure:
    """Dose of the compound against amyloid-beta, a panel per compound; each field with its 95 %
    interval and its wells.

    ``conditions`` is the table of :func:`nbhelpers.evaluation.plates.condition_scores`; the first
    ``most`` compounds are drawn; ``of`` is the class of the probability.
    """
    if conditions.empty:
        raise InputError(
            "conditions", "there is no condition to draw.", "Give the scores of at least one well."
        )
    names = sorted(conditions["compound"].unique())[:most]
    doses, amyloid = (sorted(conditions[name].unique()) for name in ("dose_uM", "amyloid_uM"))
    low, high = _range(conditions[value].to_numpy(float), value)
    across = max(1, min(3, len(names), 6 // len(amyloid)))  # a field must hold its interval
    lines = -(-len(names) // across)
    figure = new_figure(WIDTH, max(2.4, lines * (0.55 * len(doses) + 0.8) + 0.2))
    axes = figure.subplots(lines, across, squeeze=False, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        part = conditions[conditions["compound"] == name]
        table = part.pivot_table(index="dose_uM", columns="amyloid_uM", values=value).reindex(
            index=doses, columns=amyloid
        )
        picture = axis.imshow(
            table.to_numpy(float), cmap=COLOURS, vmin=low, vmax=high, aspect="auto", origin="lower"
        )
        for row in part.itertuples():
            number = getattr(row, value)
            ends = [getattr(row, f"{value}_{side}") for side in ("low", "high")]
            if not np.isfinite(number):
                continue
            span = (
                f"\n{_two_digits(ends[0])} to {_two_digits(ends[1])}"
                if np.isfinite(ends).all()
                else ""
            )
            text = f"{_two_digits(number)}{span}\n{row.n_wells} wells"
            axis.text(
                amyloid.index(row.amyloid_uM),
                doses.index(row.dose_uM),
                text,
                ha="center",
                va="center",
                fontsize=SMALL,
                color=_ink_on(picture, number),
                linespacing=1.0,
            )
        axis.set_xticks(range(len(amyloid)), [f"{dose:g}" for dose in amyloid])
        axis.set_yticks(range(len(doses)), [f"{dose:g}" for dose in doses])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set(xlabel="amyloid-beta, uM")
        axis.set_title(shortened(name, 24), loc="left")
    for line in axes:
        line[0].set_ylabel("compound, uM")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    _bar(figure, picture, axes, value, of)
    return figure


@styled
def dose_response(
    wells: pd.DataFrame,
    fits: Mapping[str, Mapping[str, Mapping]],
    hits: pd.DataFrame | None = None,
    most: int = 9,
) -> Figure:
    """Damage against dose for each compound: wells as dots, means with 95 % intervals, fitted
    curves and their EC50.

    ``fits`` is what :func:`nbhelpers.evaluation.plates.dose_responses` gives; where there is no
    fit, no curve is drawn. ``hits`` adds what each compound was called. Dose 0 is that of its
    plates.
    """
    names = list(fits)[:most]
    if not names:
        raise InputError(
            "fits", "there is no compound to draw.", "Give the fits of at least one compound."
        )
    positive = wells.loc[wells["dose_uM"] > 0, "dose_uM"]
    if positive.empty or not np.isfinite(wells["damage"]).any():
        raise InputError(
            "wells", "no well with a compound has a damage to draw.", "Plates need both controls."
        )
    zero = positive.min() / 4  # where dose 0 stands on the logarithmic axis
    across = min(3, len(names))
    lines = -(-len(names) // across)
    figure = new_figure(WIDTH, 2.5 * lines + 0.5)
    axes = figure.subplots(lines, across, squeeze=False, sharey=True, sharex=True)
    call = dict(zip(hits["compound"], hits["call"], strict=True)) if hits is not None else {}
    for axis, name in zip(axes.flat, names, strict=False):
        own = with_controls(wells, name).assign(compound=name)
        means = condition_scores(own)
        for side, (arm, (colour, marker, line)) in zip((-1, 1), ARMS.items(), strict=True):
            amyloid = 0.0 if side < 0 else wells["amyloid_uM"].max()
            dots, summary = (table[table["amyloid_uM"] == amyloid] for table in (own, means))
            x, at = (
                part["dose_uM"].where(part["dose_uM"] > 0, zero) * 1.06**side
                for part in (dots, summary)
            )
            axis.plot(
                x,
                dots["damage"],
                marker,
                color=colour,
                markersize=2.5,
                alpha=0.35,
                linestyle="none",
            )
            axis.vlines(
                at, summary["damage_low"], summary["damage_high"], color=colour, linewidth=2
            )
            axis.plot(
                at,
                summary["damage"],
                marker,
                color=colour,
                markersize=5.5,
                linestyle="none",
                label=arm,
            )
            _curve(axis, fits[name].get(arm, {}), zero, positive.max(), colour, line)
        axis.set_xscale("log")
        ticks = sorted(positive.unique())
        axis.set_xticks([zero, *ticks], ["0", *(f"{dose:g}" for dose in ticks)])
        axis.minorticks_off()
        axis.axhline(0, color=FAINT, linewidth=0.8, zorder=0)
        axis.axhline(1, color=FAINT, linewidth=0.8, zorder=0)
        said = f": {call[name]}" if name in call else ""
        axis.set_title(shortened(name, max(8, 32 - len(said))) + said, loc="left", fontsize=SMALL)
    for line in axes:
        line[0].set_ylabel("damage")
    for axis in axes.flat[max(0, len(names) - across) : len(names)]:  # the lowest of each column
        axis.set_xlabel("dose, uM")
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        [f"{label} (mean of wells, 95 % interval)" for label in labels],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _curve(axis, fit: Mapping, zero: float, highest: float, colour: str, line: str) -> None:
    if not fit.get("fitted"):
        return
    dose = np.geomspace(zero, highest, 100)
    curve = hill(dose, fit["at_zero"], fit["at_most"], fit["ec50_uM"], fit["slope"])
    axis.plot(dose, curve, line, color=colour, linewidth=1.4)
    ends = [
        zero if fit["low"] is None else fit["low"],
        highest if fit["high"] is None else fit["high"],
    ]
    axis.axvspan(max(ends[0], zero), min(ends[1], highest), color=colour, alpha=0.10, linewidth=0)
    axis.axvline(fit["ec50_uM"], color=colour, linewidth=1, linestyle=":")
    text = f"EC50 {fit['ec50_uM']:.2g} uM"
    right = fit["ec50_uM"] > np.sqrt(zero * highest)  # then there is room at the left only
    axis.annotate(
        text,
        (fit["ec50_uM"], 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if right else 3, 0),
        va="top",
        ha="right" if right else "left",
        textcoords="offset points",
        fontsize=SMALL,
        color=colour,
    )


@styled
def stain_sheet(
    images: ImageSet, rows: Sequence[int] | None = None, *, per_class: int = 2, seed: int = 0
) -> Figure:
    """Fields stain by stain, and all stains together at the right.

    ``rows``: positions of the fields; by default ``per_class`` of each class, drawn by ``seed``. A
    stain has the same grey scale in all fields shown (0.5th to 99.8th percentile over them), so
    that they can be compared.
    """
    from matplotlib.colors import to_rgb

    if rows is None:
        rng = np.random.default_rng(seed)
        rows = [
            row
            for index in range(len(images.classes))
            for row in rng.choice(
                np.flatnonzero(images.labels == index),
                min(per_class, int((images.labels == index).sum())),
                replace=False,
            )
        ]
    if not len(rows):
        raise InputError(
            images.name,
            "there is no field to draw.",
            "Give positions of fields, or labelled fields.",
        )
    fields = np.stack([np.asarray(images.pixels[row]) for row in rows]).astype(np.float64)
    low, high = (
        value[:, None, None] for value in np.percentile(fields, [0.5, 99.8], axis=(0, 2, 3))
    )
    shown = np.clip((fields - low) / np.maximum(high - low, 1e-9), 0, 1)
    colours = np.array([to_rgb(colour) for colour in CHANNEL_COLOURS[: shown.shape[1]]])
    columns = shown.shape[1] + 1
    size = min(1.8, (WIDTH - 1.5) / columns)
    aspect = shown.shape[2] / shown.shape[3]
    figure = new_figure(max(5.8, size * columns + 1.5), len(rows) * (size * aspect + 0.05) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for line, field, row in zip(axes, shown, rows, strict=True):
        for axis, stain in zip(line, field, strict=False):
            axis.imshow(stain, cmap="gray", vmin=0, vmax=1)
        line[-1].imshow(np.clip(np.einsum("cyx,ck->yxk", field, colours), 0, 1))
        about = images.table.iloc[row]
        treatment = about["treatment"] if about["treatment"] != "none" else about["label"] or "none"
        parts = [
            part
            for some in str(treatment).replace(" + ", "\n+ ").split("\n")
            for part in textwrap.wrap(some, 19)
        ]
        text = "\n".join([*parts[:4], about["well"]])
        line[0].text(
            -0.06, 0.5, text, transform=line[0].transAxes, ha="right", va="center", fontsize=SMALL
        )
    for axis, name, colour in zip(
        axes[0],
        [*images.channels, "together"],
        [*CHANNEL_COLOURS[: columns - 1], None],
        strict=True,
    ):
        axis.set_title(name, fontsize=SMALL, color=INK)
        if colour:
            axis.plot(
                [0.25, 0.75],
                [1.015, 1.015],
                transform=axis.transAxes,
                color=colour,
                linewidth=2.5,
                clip_on=False,
            )
    for axis in axes.flat:
        axis.set_axis_off()
    if images.pixel_size_nm:
        _scale_bar(axes[0, 0], shown.shape[-2:], images.pixel_size_nm[-1])
    return figure
