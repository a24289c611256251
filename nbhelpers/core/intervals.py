"""95 % intervals: bootstrap over groups, and Wilson's interval where the bootstrap collapses.

Every interval of the package is made here, as an :class:`~nbhelpers.core.estimate.Estimate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nbhelpers.core.estimate import Estimate

LEVEL = 0.95
FEW_GROUPS = 8  # below this, resampling groups says too little about how groups vary
BOOTSTRAP = "bootstrap over groups"
RESAMPLES = 2000


def group_weights(
    n_groups: int, resamples: int, seed: int, rows: int = 500
) -> Iterator[np.ndarray]:
    """How often each group was drawn in each resample, in pieces of at most ``rows`` resamples.

    Yields (rows, n_groups) float64 whose rows sum to ``n_groups``. All images of a neuron, slide or
    plate are drawn together, because they resemble each other. The draws do not depend on ``rows``.
    """
    rng = np.random.default_rng(seed)
    shares = np.full(n_groups, 1 / n_groups)
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(n_groups, shares, size=min(rows, resamples - start))
        yield drawn.astype(np.float64)


def resampled(
    measure: Callable[[np.ndarray], np.ndarray],
    n_groups: int,
    seed: int,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """What ``measure`` gives for each resample, (resamples, ...); it is handed
    :func:`group_weights`. NaN where it divides by nothing.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        pieces = [measure(weights) for weights in group_weights(n_groups, resamples, seed)]
    return np.concatenate(pieces)


def resampled_means(
    sums: np.ndarray, sizes: np.ndarray, seed: int, resamples: int = RESAMPLES
) -> np.ndarray:
    """Mean of each resample, (resamples,) or (resamples, columns), from the sum and the number of
    values of each group, (groups,) or (groups, columns); NaN where no group with values was drawn.
    """
    return resampled(
        lambda weights: (weights @ sums) / (weights @ sizes), len(sums), seed, resamples
    )


def percentile_ends(samples: np.ndarray) -> tuple[float, float]:
    """The ends between which 95 % of the finite ``samples`` lie."""
    usable = samples[np.isfinite(samples)]
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_interval(
    value: float,
    samples: np.ndarray,
    *,
    n: int,
    n_groups: int,
    reflect: bool = False,
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> Estimate:
    """The percentile interval of ``samples``, (resamples,) float, around ``value``.

    Resamples in which the score is not defined (NaN: a class was not drawn) are left out and
    counted in ``method``. With ``reflect`` the percentiles are mirrored at the value (the "basic"
    bootstrap of Davison and Hinkley 1997), which takes out the bias of scores such as the
    calibration error that any resampling pushes upwards; the value itself always stays inside.
    Where no interval can be given, ``low`` and ``high`` are None and ``reason`` says why.
    """
    if not np.isfinite(value):
        return Estimate.undefined("it is not a finite number", n)
    value = float(value)
    usable = samples[np.isfinite(samples)]
    reason = None
    if n_groups < 2:
        reason = "all images are of one group: how groups differ cannot be seen"
    elif len(usable) < max(2, 0.5 * len(samples)):
        reason = f"defined in only {len(usable)} of {len(samples)} resamples"
    elif np.ptp(usable) < 1e-12:
        reason = "every resample gives the same value, so the bootstrap shows no spread"
    if reason:
        return Estimate(value, n=n, reason=reason)
    low, high = percentile_ends(usable)
    method = BOOTSTRAP
    if reflect:
        mirrored = 2 * value - np.array([high, low])
        low = min(mirrored[0], value)  # mirroring can pass the value itself
        high = max(mirrored[1], value)
        method += ", reflected"
    if len(usable) < len(samples):
        method += f" ({len(usable)} of {len(samples)} resamples)"
    low, high = np.clip([low, high], lowest, highest)
    note = None
    if n_groups < FEW_GROUPS:
        note = f"only {n_groups} groups: the interval is likely too narrow"
    return Estimate(value, float(low), float(high), n, method, note=note)


def mean_interval(
    values: np.ndarray,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Estimate:
    """Mean of (n,) values, NaN left out; groups are drawn anew, by default each value alone."""
    values = np.asarray(values, np.float64)
    kept = np.isfinite(values)
    values = values[kept]
    if not len(values):
        return Estimate(float("nan"), reason="there are no values")
    own = np.arange(len(values)) if groups is None else np.asarray(groups)[kept]
    names, group = np.unique(own, return_inverse=True)
    sums = np.bincount(group, values)
    samples = resampled_means(sums, np.bincount(group), seed, resamples)
    return bootstrap_interval(values.mean(), samples, n=len(values), n_groups=len(names))


def proportion_interval(
    value: float, samples: np.ndarray, *, n: int, group_hits: np.ndarray, group_sizes: np.ndarray
) -> Estimate:
    """Interval of a proportion (accuracy, recall, precision): bootstrap, or Wilson where that
    collapses.

    ``group_hits`` and ``group_sizes`` are (groups,) float: right and all images per group, averaged
    over repeats; ``n`` is the number of images. Wilson's interval takes over at 0 and 1 and below 8
    groups. With few groups its sample size is divided by the design effect (Kish 1965: how much
    more the groups vary than independent images would); at 0 and 1, where that cannot be seen, it
    is the number of groups, the safe side. ``method`` says what was done.
    """
    n_groups = int((group_sizes > 0).sum())
    collapsed = value <= 0 or value >= 1
    if n_groups < 2:
        return bootstrap_interval(value, samples, n=n, n_groups=n_groups)
    if n_groups >= FEW_GROUPS and not collapsed:
        return bootstrap_interval(value, samples, n=n, n_groups=n_groups, lowest=0, highest=1)
    if collapsed:
        size = float(n_groups)
        method = f"Wilson over {n_groups} {'images' if n_groups == n else 'groups'}"
    else:
        effect = _design_effect(value, group_hits, group_sizes)
        size = max(n / effect, 1.0)
        method = f"Wilson over {n} images of {n_groups} groups (design effect {effect:.1f})"
    low, high = wilson(value * size, size)
    return Estimate(float(value), low, high, n, method)


def _design_effect(value: float, hits: np.ndarray, sizes: np.ndarray) -> float:
    """Variance of the proportion between groups over that of independent images, at least 1."""
    groups = (sizes > 0).sum()
    total = sizes.sum()
    between = groups / (groups - 1) * ((hits - value * sizes) ** 2).sum() / total**2
    return float(max(1.0, between / (value * (1 - value) / total)))


def wilson(hits: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % interval (1927) of ``hits`` out of ``n``."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(hits, n, alpha=1 - LEVEL, method="wilson")
    # the share lies inside: for 10 of 10 the formula alone gives .9999999999999999
    share = float(np.divide(hits, n))
    return min(float(low), share), max(float(high), share)


def count_interval(hits: float, n: int) -> Estimate:
    """The share of ``hits`` out of ``n`` that are independent of each other, with Wilson's
    interval.
    """
    if not n:
        return Estimate.undefined("there is nothing to count")
    low, high = wilson(float(hits), float(n))
    return Estimate(float(hits) / n, low, high, int(n), f"Wilson over {n}")
