"""Numbers as people write them in tables: decimal commas, and signs of thousands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# numbers, perhaps with a unit behind them
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(?![\d,.])")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}(?![\d,.])")
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(?![\d,.])")


def with_decimal_points(column: pd.Series) -> pd.Series:
    """A column of numbers with ``0,5`` as ``0.5``, where one of them shows that the comma is no
    sign of thousands; else as it is. A point that may be one of thousands then (``1.000``) becomes
    a word, so that nobody takes it for a number.
    """
    cells = column.unique()
    commas = [cell for cell in cells if _DECIMAL_COMMA.match(cell)]
    if all(_THOUSANDS.match(cell) for cell in commas):
        return column
    changed = {cell: cell.replace(",", ".", 1) for cell in commas}
    changed |= {cell: f"{cell} (1.000 or 1000?)" for cell in cells if _POINTS.match(cell)}
    return column.replace(changed)
