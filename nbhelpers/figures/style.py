"""One look for all figures: palette, type sizes and widths that suit an HTML report and a printed
page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nbhelpers.core.errors import InputError

# Okabe and Ito (2008): told apart with any kind of colour vision. Yellow last, as it is faint on
# white.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#F0E442")
RIGHT = "#0072B2"
WRONG = "#D55E00"
INK = "#222222"
FAINT = "#8a8a8a"
WIDTH = 8.0  # inches: the text width of a report
DPI = 150
# Points at final size. No text of a figure is smaller than SMALL: the report's column is 58 rem
# wide (9.7 inches), and a figure of WIDTH that is shrunk to half of that still has letters of
# 9 * 4.8 / 8 = 5.4 points; journals ask for 5.
SMALL = 9
NORMAL = 10

SETTINGS = {
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "figure.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.6,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a dollar in the name of a class or file is a dollar
}


@contextmanager
def use_style() -> Iterator[None]:
    """The style of all figures, as a context; nothing of it stays afterwards."""
    from cycler import cycler
    from matplotlib import style

    # From matplotlib's defaults, so that nobody's own settings change a figure of a report.
    with style.context(["default", SETTINGS | {"axes.prop_cycle": cycler(color=PALETTE)}]):
        yield


def styled(make: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: make the figure under :func:`use_style`."""

    @functools.wraps(make)
    def under_style(*arguments, **named):
        with use_style():
            return make(*arguments, **named)

    return under_style


def new_figure(width: float = WIDTH, height: float = 4.0) -> Figure:
    """An empty figure in inches that no pyplot state knows of: it is gone when the last name for it
    is.
    """

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def new_axes(width: float = WIDTH, height: float = 4.0):
    """The only axes of a new figure."""
    return new_figure(width, height).subplots()


def picture_grid(width: float, height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure with (rows, columns) axes for pictures: no ticks, and little room between them."""
    figure = new_figure(width, height)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def row_title(axis, text: str, height: float = 0.5, colour: str = INK) -> None:
    """A text at the left of the first picture of a row."""
    axis.text(
        -0.06,
        height,
        text,
        transform=axis.transAxes,
        ha="right",
        va="center",
        fontsize=SMALL,
        color=colour,
    )


# Intervals are known before anything is drawn, while seaborn works them out from rows. With these
# settings it gives back what stands in the three rows that ``interval_rows`` makes of each value.
AS_GIVEN = {"estimator": "median", "errorbar": ("pi", 100)}


def interval_rows(
    table: pd.DataFrame, value: str = "value", low: str = "low", high: str = "high"
) -> pd.DataFrame:
    """The table three times, with ``value`` as it is, as its lower and as its upper end: the
    median of the three is the value, their range its interval. The value stands in for an end that
    is missing; where there is no value, nothing is drawn.
    """
    middle = table[value].astype(float)
    bottom = np.minimum(table[low].astype(float).fillna(middle), middle)
    top = np.maximum(table[high].astype(float).fillna(middle), middle)
    rows = [table.assign(**{value: ends}) for ends in (middle, bottom, top)]
    return pd.concat(rows, ignore_index=True)


def interval_dots(
    axis, table: pd.DataFrame, labels: Sequence[str], notes: Sequence[str] = (), **look
) -> None:
    """A dot and its interval per row of the table (``at``, ``value``, ``low``, ``high``), with the
    ``labels`` from the top at the left and ``notes`` at the right; ``at`` is the number of a label.
    ``look`` are options of seaborn's pointplot.
    """
    import seaborn

    look = {"linestyle": "none", "linewidth": 2, "markeredgewidth": 1, "ax": axis} | look
    seaborn.pointplot(interval_rows(table), x="value", y="at", orient="y", **AS_GIVEN, **look)
    for at, note in enumerate(notes):
        place = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": SMALL}
        axis.annotate(note, (1.01, at), **place)
    axis.set_yticks(range(len(labels)), labels)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)
    axis.set(ylim=(len(labels) - 0.4, -0.6), ylabel="")
    axis.grid(axis="x")
    axis.set_axisbelow(True)


def heat_map(axis, table: pd.DataFrame, words: pd.DataFrame | None, **look) -> None:
    """A field per cell of the table, with its words. ``look`` are options of seaborn's heatmap."""
    import seaborn

    look = {"fmt": "", "annot_kws": {"fontsize": SMALL, "linespacing": 0.95}, "ax": axis} | look
    seaborn.heatmap(table, annot=words, **look)
    picture = axis.collections[0]
    for text in axis.texts:
        # Seaborn changes to dark letters only on fields so bright that grey ones are hard to read.
        x, y = text.get_position()
        red, green, blue, _ = picture.cmap(picture.norm(table.iat[int(y), int(x)]))
        text.set_color(INK if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white")
    axis.tick_params(length=0, rotation=0)
    axis.set(xlabel="", ylabel="")


def legend_above(axis, columns: int = 1) -> None:
    """The legend above the axes, where it hides nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.3}
    axis.legend(ncols=columns, title=None, **place)


def something_to_draw(rows: Sized, where: str) -> None:
    """Raises InputError when there are no rows."""
    if not len(rows):
        raise InputError(where, "there is nothing to draw.", "Give at least one row.")


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour per class, the same in every figure; beyond eight classes they repeat."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(classes)}


def shortened(text: object, longest: int) -> str:
    """The text, cut with an ellipsis where it is longer than ``longest`` characters."""
    text = str(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
