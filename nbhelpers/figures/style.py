"""One look for all figures: palette, type sizes and widths that suit an HTML report and a printed
page.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
# wide (9.7 inches), and a
# figure of WIDTH that is shrunk to half of that still has letters of 9 * 4.8 / 8 = 5.4 points;
# journals ask for 5.
SMALL = 9
NORMAL = 10

SETTINGS = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": NORMAL,
    "axes.titlesize": NORMAL,
    "axes.labelsize": NORMAL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "figure.titlesize": 11,
    "axes.titleweight": "normal",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "axes.grid": False,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": DPI,
    "figure.dpi": DPI,
    "image.interpolation": "nearest",
    "svg.fonttype": "path",
}


@contextmanager
def use_style() -> Iterator[None]:
    """The style of all figures, as a context; nothing of it stays afterwards."""
    import matplotlib
    from cycler import cycler

    with matplotlib.rc_context(SETTINGS | {"axes.prop_cycle": cycler(color=PALETTE)}):
        yield


def styled(make: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator: make the figure under :func:`use_style`; a dollar in a name is a dollar and no
    mathematics.
    """

    @functools.wraps(make)
    def under_style(*arguments, **named):
        with use_style():
            return _plain_dollars(make(*arguments, **named))

    return under_style


def _plain_dollars(figure: Figure) -> Figure:
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if (
            "$" in text.get_text() and "\\mathdefault" not in text.get_text()
        ):  # the latter: ticks of matplotlib's own
            text.set_parse_math(False)
    return figure


def new_figure(width: float = WIDTH, height: float = 4.0) -> Figure:
    """An empty figure in inches that no pyplot state knows of: it is gone when the last name for it
    is.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def class_colours(classes: Sequence[str]) -> dict[str, str]:
    """A colour per class, the same in every figure; beyond eight classes they repeat."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(classes)}


def shortened(text: object, longest: int) -> str:
    """The text, cut with an ellipsis where it is longer than ``longest`` characters."""
    text = str(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
