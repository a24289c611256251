"""Shares of each class per unit (animal, culture, patient) and condition, corrected for the errors
of the classifier, and how conditions differ.

A classifier that misses a third of the thin spines counts too few, and a rise of them is counted
too small. The counted shares of a unit are those of its true classes times the error rates; turned
round (the adjusted count of Forman 2008, for several classes by the matrix) they give shares that
are right on average wherever the error rates of the validation images hold.

What makes them uncertain is both: the units that were sampled (Student's t over units, each
counting the same) and the error rates (how each group of validation images moves the result, the
infinitesimal jackknife). A difference of conditions is moved by wrong error rates only as far as
the conditions differ, as both have the same ones; Satterthwaite's degrees of freedom put the parts
together. ``benchmarks/answer.py`` shows what the intervals cover.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from nbhelpers.core.intervals import LEVEL, PRIOR_WEIGHT

LIKENESS = 0.06  # assumed correlation of a class between two images of a unit; by simulation


Part = tuple[int, np.ndarray, np.ndarray]  # sign, counted shares, images; see corrected


def corrected(parts: Sequence[Part], counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """The corrected mean share of each class over the units of one part, or the sum of several
    parts by their signs (a difference of conditions).

    A part is the units of one condition: its sign, +1 or -1; their counted shares, (..., units,
    classes) float; and how many images each has, (..., units). ``counts`` is (..., groups, true
    class, predicted class), the validation images of each group. Leading dimensions are experiments
    of their own. Each part needs two units, each class images in two groups, and the error rates
    must differ from class to class.

    Returns, (..., classes) each, the value, not limited to what shares can be, the ends of its 95 %
    interval, and p that it is 0, which makes sense of a difference.
    """
    sizes = counts.sum(-1)
    of_class = sizes.sum(-2)
    rates = counts.sum(-3) / of_class[..., None]
    back = np.linalg.inv(rates)
    value = 0.0
    variance = 0.0
    lost = 0.0  # of the degrees of freedom
    beyond = 1e-12  # what units differ by, beyond what their few images make
    spread = 0.0
    tilt = 0.0
    bow = 0.0
    for sign, shares, images in parts:
        units = shares.shape[-2]
        freedom = units - 1
        own = shares @ back
        mean = own.mean(-2)
        least = _drawn(shares.mean(-2), units**2 / (1 / images).sum(-1), back)
        seen = np.maximum(own.var(-2, ddof=1) / units, least)
        value = value + sign * mean
        variance = variance + seen
        lost = lost + seen**2 / freedom
        # few units of a rare class are often all alike by chance
        near = _inside(mean, np.sqrt(least))
        assumed = least + LIKENESS * near * (1 - near) / units
        wide = (PRIOR_WEIGHT * assumed + freedom * seen) / (PRIOR_WEIGHT + freedom)
        wide = np.maximum(wide, seen)
        near = _inside(mean, np.sqrt(wide))
        excess = wide - least
        beyond = beyond + excess
        spread = spread + wide
        tilt = tilt + excess**2 * sign * (1 - 2 * near) / (near * (1 - near))
        bow = bow + excess**3 / (near * (1 - near))
    # how far each group moves the corrected share of an image of each true class
    groups = 1 / ((sizes / of_class[..., None, :]) ** 2).sum(-2)  # as good as so many equal ones
    off = counts - sizes[..., None] * rates[..., None, :, :]
    moved = off / (of_class * np.sqrt(1 - 1 / groups))[..., None, :, None] @ back[..., None, :, :]
    together = np.einsum("...t,...gtk->...gk", value, moved)
    squares = value[..., :, None] ** 2
    least = (squares * _drawn(rates, of_class, back[..., None, :, :])).sum(-2)
    of_rates = np.maximum((together**2).sum(-2), least)
    rows = squares * (moved**2).sum(-3) + 1e-12
    variance = variance + of_rates
    lost = lost + of_rates**2 * (rows**2 / (groups - 1)[..., None]).sum(-2) / rows.sum(-2) ** 2
    # the inverse of uncertain rates is too large on average, by so much
    value = value - np.einsum("...gt,...gtk->...k", together, moved)
    freedom = variance**2 / lost
    t = stats.t.ppf((1 + LEVEL) / 2, freedom)
    deviation = np.sqrt(variance)
    # ends that are wider, as units differ more where the share is farther from 0 and 1 (Wilson's)
    wide = t**2 * (of_rates + spread)
    slope = t**2 * tilt / beyond / 2
    bend = 1 + t**2 * bow / beyond**2
    root = np.sqrt(slope**2 + bend * wide)
    low = value - np.maximum(np.sqrt(wide), (root - slope) / bend)
    high = value + np.maximum(np.sqrt(wide), (root + slope) / bend)
    if len(parts) > 1:  # the end towards 0 is that of the test
        low = np.where(value < 0, low, value - t * deviation)
        high = np.where(value > 0, high, value + t * deviation)
    return value, low, high, 2 * stats.t.sf(abs(value) / deviation, freedom)


def _drawn(shares: np.ndarray, images: np.ndarray, back: np.ndarray) -> np.ndarray:
    """The variance of corrected shares, (..., classes), of so many images drawn at random of which
    ``shares`` are counted. One image more is spread over all classes, as few show no rare error.
    """
    images = np.asarray(images)[..., None]
    smooth = (shares * images + 1 / shares.shape[-1]) / (images + 1)
    mean = np.einsum("...p,...pk->...k", smooth, back)
    return (np.einsum("...p,...pk->...k", smooth, back**2) - mean**2) / images


def _inside(share: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """The share, at least the margin away from 0 and 1."""
    margin = np.clip(margin, 0.01, 0.5)
    return np.clip(share, margin, 1 - margin)
