"""Figures of plates: wells in their places, conditions, dose-response curves, and fields stain by
stain.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.imageset import ImageSet
from nbhelpers.evaluation.plates import condition_scores, hill, with_controls
from nbhelpers.figures.images import channel_legend, composite, scale_bar
from nbhelpers.figures.legend import legend_below
from nbhelpers.figures.style import (
    AS_GIVEN,
    FAINT,
    PALETTE,
    SMALL,
    WIDTH,
    heat_map,
    interval_rows,
    new_figure,
    picture_grid,
    row_title,
    shortened,
    something_to_draw,
    styled,
)

COLOURS = "cividis"  # reads the same with any colour vision, and in grey
NAMES = {
    "damage": "normalised effect (0: as negative controls,\n1: as positive controls)",
    "probability": "probability of {}",
    "log_odds": "log-odds of {}",
}
# of a plate: more than these take the whole width, or have no room for numbers
MANY_COLUMNS = 8
TOO_MANY = 14
MOST_PLATES = 4
MOST_COMPOUNDS = 9
# Colour, mark and line of an arm of a dose-response curve.
ARMS = {
    "without amyloid-beta": (PALETTE[0], "o", "-"),
    "with amyloid-beta": (PALETTE[5], "s", "--"),
}


def _range(values: pd.Series, name: str) -> tuple[float, float]:
    """The ends of the colour scale of the column ``name``."""
    known = values.astype(float).dropna()
    something_to_draw(known, f"wells with a value of {name}")
    if name == "probability":
        return 0.0, 1.0
    if name == "damage":
        return min(0.0, known.min()), max(1.0, known.max())
    return known.min(), max(known.max(), known.min() + 1e-9)


def _two_digits(number: float) -> str:
    return f"{round(number, 2) + 0.0:.2f}"  # no -0.00


def _field_map(axis, table: pd.DataFrame, words: pd.DataFrame | None, ends: tuple) -> None:
    """A heat map of wells or conditions; doses without decimals."""
    heat_map(
        axis,
        table.astype(float),
        words,
        vmin=ends[0],
        vmax=ends[1],
        cmap=COLOURS,
        cbar=False,
        xticklabels=[f"{name:g}" for name in table.columns],
        yticklabels=[name if isinstance(name, str) else f"{name:g}" for name in table.index],
    )


def _colour_bar(axes: np.ndarray, name: str, of: str) -> None:
    figure = axes[0, 0].figure
    bar = figure.colorbar(axes[0, 0].collections[0], ax=axes, shrink=0.8, aspect=30)
    bar.outline.set_visible(False)
    bar.set_label(NAMES.get(name, name.replace("_", " ")).format(of), fontsize=SMALL)


def _panels(names: Sequence[str], across: int, height: float, **shared) -> np.ndarray:
    """Axes for the names, ``across`` in a row, each of which is ``height`` inches high."""
    lines = -(-len(names) // across)
    figure = new_figure(WIDTH, max(2.4, lines * height + 0.4))
    axes = figure.subplots(lines, across, squeeze=False, **shared)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    return axes


@styled
def plate_map(wells: pd.DataFrame, value: str = "damage", of: str = "amyloid-beta") -> Figure:
    """Plates as they lie on the bench: a square per well, with the value and below it the dose of
    the compound (µM).

    ``wells`` is the table of :func:`nbhelpers.evaluation.plates.well_scores`, ``value`` one of its
    columns. A dose that is not known is a question mark. Wells with amyloid-beta have a frame.
    Shows the first four plates; ``of`` is the class of the probability. Plates of more than 14
    columns have no room for numbers.
    """
    from matplotlib.patches import Rectangle

    names = sorted(wells["plate"].unique())[:MOST_PLATES]
    shown = wells[wells["plate"].isin(names)]
    something_to_draw(shown, "wells")
    letters = sorted(shown["row"].unique(), key=lambda letter: (len(letter), letter))
    numbers = sorted(shown["column"].unique())
    with_words = len(numbers) <= TOO_MANY
    ends = _range(shown[value], value)
    across = min(2, len(names)) if len(numbers) <= MANY_COLUMNS else 1
    axes = _panels(names, across, (0.42 if with_words else 0.22) * len(letters) + 0.6)
    frame = {"fill": False, "edgecolor": PALETTE[5], "linewidth": 1.4}
    for axis, name in zip(axes.flat, names, strict=False):
        part = shown[shown["plate"] == name]
        doses = part["dose_uM"].map("{:g}".format).replace("nan", "?")
        words = part[value].map(_two_digits) + "\n" + doses
        places = part.assign(words=words).pivot(index="row", columns="column")
        places = places.reindex(index=letters)
        table, words = (places[key].reindex(columns=numbers) for key in (value, "words"))
        _field_map(axis, table, words if with_words else None, ends)
        for row, dose in zip(part.itertuples(), doses, strict=True):
            x = numbers.index(row.column)
            y = letters.index(row.row)
            if row.amyloid_uM > 0:
                axis.add_patch(Rectangle((x + 0.05, y + 0.06), 0.9, 0.88, **frame))
            if with_words and np.isnan(getattr(row, value)):
                look = {"ha": "center", "va": "center", "fontsize": SMALL}
                axis.text(x + 0.5, y + 0.5, f"none\n{dose}", **look)
        axis.xaxis.tick_top()
        compounds = ", ".join(sorted(part["compound"].unique()))
        axis.set_title(shortened(f"{name}: {compounds}", 44), loc="left")
    _colour_bar(axes, value, of)
    notes = ["below the value: dose of the compound, µM"] if with_words else []
    if (shown["amyloid_uM"] > 0).any():
        notes.append(f"framed: with amyloid-beta, {shown['amyloid_uM'].max():g} µM")
    axes[0, 0].figure.supxlabel("; ".join(notes), fontsize=SMALL)
    return axes[0, 0].figure


@styled
def condition_map(
    conditions: pd.DataFrame, value: str = "damage", of: str = "amyloid-beta"
) -> Figure:
    """Dose of the compound against amyloid-beta, a panel per compound; each field with its 95 %
    interval and its wells.

    ``conditions`` is the table of :func:`nbhelpers.evaluation.plates.condition_scores`; the first
    nine compounds are drawn; ``of`` is the class of the probability.
    """
    something_to_draw(conditions, "conditions")
    names = sorted(conditions["compound"].unique())[:MOST_COMPOUNDS]
    doses = sorted(conditions["dose_uM"].unique(), reverse=True)
    amyloid = sorted(conditions["amyloid_uM"].unique())
    ends = _range(conditions[value], value)
    words = []
    for row in conditions.to_dict("records"):
        text = _two_digits(row[value])
        sides = [row[f"{value}_low"], row[f"{value}_high"]]
        if np.isfinite(sides).all():
            text += f"\n{_two_digits(sides[0])} to {_two_digits(sides[1])}"
        words.append(f"{text}\n{row['n_wells']} wells")
    conditions = conditions.assign(words=words)
    across = max(1, min(3, len(names), 6 // len(amyloid)))  # a field must hold its interval
    axes = _panels(names, across, 0.55 * len(doses) + 0.8, sharey=True)
    for axis, name in zip(axes.flat, names, strict=False):
        part = conditions[conditions["compound"] == name].set_index(["dose_uM", "amyloid_uM"])
        table, words = (
            part[key].unstack().reindex(index=doses, columns=amyloid) for key in (value, "words")
        )
        _field_map(axis, table, words, ends)
        axis.set(xlabel="amyloid-beta, µM")
        axis.set_title(shortened(name, 24), loc="left")
    for line in axes:
        line[0].set_ylabel("compound, µM")
    _colour_bar(axes, value, of)
    return axes[0, 0].figure


@styled
def dose_response(
    wells: pd.DataFrame,
    fits: Mapping[str, Mapping[str, Mapping]],
    hits: pd.DataFrame | None = None,
) -> Figure:
    """Normalised effect against dose for the first nine compounds: wells as dots, means with 95 %
    intervals, fitted curves and their EC50.

    ``fits`` is what :func:`nbhelpers.evaluation.plates.dose_responses` gives; where there is no
    fit, no curve is drawn. ``hits`` adds what each compound was called. Dose 0 is that of its
    plates.
    """
    import seaborn

    names = list(fits)[:MOST_COMPOUNDS]
    something_to_draw(names, "fits")
    shown = wells[(wells["dose_uM"] > 0) & wells["damage"].notna()]
    something_to_draw(shown, "wells that have a compound and a normalised effect")
    positive = shown["dose_uM"]
    zero = positive.min() / 4  # where dose 0 stands on the logarithmic axis
    axes = _panels(names, min(3, len(names)), 2.5, sharey=True, sharex=True)
    call = {} if hits is None else dict(zip(hits["compound"], hits["call"], strict=True))
    doses = sorted(positive.unique())
    for axis, name in zip(axes.flat, names, strict=False):
        own = with_controls(wells, name).assign(compound=name)
        dots = _on_axis(own, wells, zero)
        means = _on_axis(condition_scores(own), wells, zero)
        looks = {
            "x": "at",
            "y": "damage",
            "hue": "arm",
            "hue_order": list(ARMS),
            "palette": [colour for colour, *_ in ARMS.values()],
            "legend": False,
            "ax": axis,
        }
        seaborn.scatterplot(dots, s=8, alpha=0.35, linewidth=0, **looks)
        seaborn.pointplot(
            interval_rows(means, "damage", "damage_low", "damage_high"),
            markers=[marker for _, marker, _ in ARMS.values()],
            linestyle="none",
            linewidth=2,
            markersize=5.5,
            markeredgewidth=0,
            native_scale=True,
            **AS_GIVEN,
            **looks | {"legend": axis is axes[0, 0]},
        )
        for arm, (colour, _, line) in ARMS.items():
            _curve(axis, fits[name].get(arm, {}), (zero, positive.max()), colour, line)
        axis.set_xscale("log")
        axis.set_xticks([zero, *doses], ["0", *(f"{dose:g}" for dose in doses)])
        axis.minorticks_off()
        for control in (0, 1):
            axis.axhline(control, color=FAINT, linewidth=0.8, zorder=0)
        said = f": {call[name]}" if name in call else ""
        axis.set_title(shortened(name, max(8, 32 - len(said))) + said, loc="left", fontsize=SMALL)
        axis.set(xlabel="dose, µM", ylabel="")
        axis.tick_params(labelbottom=True)
    for line in axes:
        line[0].set_ylabel("normalised effect")
    legend_below(axes[0, 0], 2, " (mean of wells, 95 % interval)")
    return axes[0, 0].figure


def _on_axis(table: pd.DataFrame, wells: pd.DataFrame, zero: float) -> pd.DataFrame:
    """The rows without and with the most amyloid-beta, with their arm and their place (``at``) on
    the axis: a little to the left and right of the dose, so that no arm hides the other.
    """
    without, with_amyloid = ARMS
    arms = {0.0: without, wells["amyloid_uM"].max(): with_amyloid}
    table = table.assign(arm=table["amyloid_uM"].map(arms)).dropna(subset=["arm"])
    side = table["arm"].map({without: 1 / 1.06, with_amyloid: 1.06})
    return table.assign(at=table["dose_uM"].where(table["dose_uM"] > 0, zero) * side)


def _curve(axis, fit: Mapping, ends: tuple[float, float], colour: str, line: str) -> None:
    """The fitted curve between the ``ends`` of the axis, its EC50 and the interval of that."""
    if not fit.get("fitted"):
        return
    zero, highest = ends
    middle = fit["ec50_uM"]
    dose = np.geomspace(zero, highest, 100)
    curve = hill(dose, fit["at_zero"], fit["at_most"], middle, fit["slope"])
    axis.plot(dose, curve, line, color=colour, linewidth=1.4)
    low = zero if fit["low"] is None else max(fit["low"], zero)
    high = highest if fit["high"] is None else min(fit["high"], highest)
    axis.axvspan(low, high, color=colour, alpha=0.10, linewidth=0)
    axis.axvline(middle, color=colour, linewidth=1, linestyle=":")
    right = middle > np.sqrt(zero * highest)  # then there is room at the left only
    axis.text(
        middle,
        0.98,
        f" EC50 {middle:.2g} µM ",
        transform=axis.get_xaxis_transform(),
        va="top",
        ha="right" if right else "left",
        fontsize=SMALL,
        color=colour,
    )


@styled
def stain_sheet(images: ImageSet, *, seed: int = 0) -> Figure:
    """Two fields of each class, drawn by ``seed``, stain by stain, and all stains together at the
    right.

    A stain has the same grey scale in all fields shown (0.5th to 99.8th percentile over them), so
    that they can be compared.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(len(images.classes)):
        positions = np.flatnonzero(images.labels == index)
        rows.extend(rng.choice(positions, min(2, len(positions)), replace=False))
    something_to_draw(rows, f"{images.name}, fields with a known treatment")
    fields = np.stack([np.asarray(images.pixels[row]) for row in rows]).astype(np.float64)
    low, high = np.percentile(fields, [0.5, 99.8], axis=(0, 2, 3))[:, :, None, None]
    shown = np.clip((fields - low) / np.maximum(high - low, 1e-9), 0, 1)
    columns = shown.shape[1] + 1
    size = min(1.8, (WIDTH - 1.5) / columns)
    height = len(rows) * (size * shown.shape[2] / shown.shape[3] + 0.05) + 0.6
    figure, axes = picture_grid(max(5.8, size * columns + 1.5), height, len(rows), columns)
    for line, field, row in zip(axes, shown, rows, strict=True):
        for axis, stain in zip(line, field, strict=False):
            axis.imshow(stain, cmap="gray", vmin=0, vmax=1)
        line[-1].imshow(composite(field))
        about = images.table.iloc[row]
        treatment = about["treatment"] if about["treatment"] != "none" else about["label"] or "none"
        words = textwrap.fill(str(treatment).replace(" uM", " µM"), 19, max_lines=4)
        row_title(line[0], f"{words}\n{about['well']}")
    for axis, name in zip(axes[0], [*images.channels, "together"], strict=True):
        axis.set_title(name, fontsize=SMALL)
    channel_legend(figure, images)
    if images.pixel_size_nm:
        scale_bar(axes[0, 0], shown.shape[-2:], images.pixel_size_nm[-1])
    return figure
