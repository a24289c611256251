"""95 % intervals of means of any size, and of counts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    INDEPENDENT,
    LEVEL,
    PAIRED,
    PRIOR_WEIGHT,
    Sampling,
    means_without_each,
    share_interval,
    warning_of,
)


def count_interval(hits: float, n: int) -> Estimate:
    """The share of ``hits`` out of ``n`` that are independent of each other."""
    if not n:
        return Estimate.undefined("there is nothing to count")
    low, high = share_interval(hits / n, n)
    return Estimate(float(hits) / n, low, high, int(n), INDEPENDENT)


def mean_interval(values: np.ndarray, groups: Sequence[str] | None = None) -> Estimate:
    """Mean of (n,) values of any size, NaN left out: Student's t over groups, by default each value
    alone. Values that are all the same show no spread, and have no interval.
    """
    values = np.asarray(values, np.float64)
    kept = np.isfinite(values)
    values = values[kept]
    n = len(values)
    if not n:
        return Estimate(float("nan"), reason="there are no values")
    own = np.arange(n) if groups is None else np.asarray(groups)[kept]
    group = np.unique(own, return_inverse=True)[1]
    sizes = np.bincount(group).astype(np.float64)
    sums = np.bincount(group, values)
    value = float(values.mean())
    sampling = Sampling.of_sizes(sizes)
    left = means_without_each(sums, sizes)
    reason = sampling.lacking(left)
    if not reason and np.ptp(values) < 1e-12:
        reason = "all values are the same, and show no spread"
    if reason:
        return Estimate(value, n=n, reason=reason)
    alone = sampling.expected_effect * values.var(ddof=1) / n
    weight = sampling.freedom
    variance = PRIOR_WEIGHT * alone + weight * sampling.variance(value, left)
    deviation = np.sqrt(variance / (PRIOR_WEIGHT + weight))
    half = float(stats.t.ppf((1 + LEVEL) / 2, sampling.freedom) * deviation)
    note = warning_of(sampling, 1.0) if sampling.expected_effect > 1 else None
    return Estimate(value, value - half, value + half, n, PAIRED, note=note)
