"""Columns of features on one scale."""

from __future__ import annotations

import numpy as np

LEAST = 1e-6


def column_scale(features: np.ndarray) -> np.ndarray:
    """(n, d) to (d,) float64: the standard deviation of each column, and infinity for a column that
    is next to constant (below a millionth of the largest).

    What is divided by infinity is 0 for every image. Divided by its own 1e-15, which is no more
    than rounding, such a column would be in the tens of thousands for the next image.
    """
    spread = np.asarray(features, np.float64).std(axis=0)
    return np.where(spread > LEAST * spread.max(initial=0), spread, np.inf)
