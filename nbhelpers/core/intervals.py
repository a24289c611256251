"""95 % intervals: bootstrap over groups, and Wilson's interval where the bootstrap collapses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LEVEL = 0.95
FEW_GROUPS = 8  # below this, resampling groups says too little about how groups vary
BOOTSTRAP = "bootstrap over groups"


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
        yield rng.multinomial(n_groups, shares, size=min(rows, resamples - start)).astype(
            np.float64
        )


def undefined(reason: str, n: int = 0) -> dict:
    """A score that has no value, and why."""
    return {"value": None, "low": None, "high": None, "n": n, "method": None, "reason": reason}


def with_interval(
    value: float | None, low: float | None, high: float | None, decimals: int = 3
) -> str:
    """ "0.910 [0.870, 0.940]", without brackets where there is no interval; "n/a" where there is no
    value either.
    """

    def known(number: float | None) -> bool:
        return number is not None and bool(np.isfinite(number))

    def text(number: float) -> str:
        return f"{round(float(number), decimals) + 0.0:.{decimals}f}"  # no -0.000

    if not known(value):
        return "n/a"
    return text(value) + (f" [{text(low)}, {text(high)}]" if known(low) and known(high) else "")


def bootstrap_interval(
    value: float,
    samples: np.ndarray,
    *,
    n: int,
    n_groups: int,
    reflect: bool = False,
    lowest: float = -np.inf,
    highest: float = np.inf,
) -> dict:
    """The percentile interval of ``samples``, (resamples,) float, around ``value``.

    Resamples in which the score is not defined (NaN: a class was not drawn) are left out and
    counted in ``method``. With ``reflect`` the percentiles are mirrored at the value (the "basic"
    bootstrap of Davison and Hinkley 1997), which takes out the bias of scores such as the
    calibration error that any resampling pushes upwards; the value itself always stays inside.
    Where no interval can be given, ``low`` and ``high`` are None and ``reason`` says why.
    """
    found = {"value": float(value), "low": None, "high": None, "n": n, "method": None}
    if not np.isfinite(value):
        return undefined("it is not a finite number", n)
    if n_groups < 2:
        return found | {"reason": "all images are of one group: how groups differ cannot be seen"}
    usable = samples[np.isfinite(samples)]
    if len(usable) < max(2, 0.5 * len(samples)):
        return found | {"reason": f"defined in only {len(usable)} of {len(samples)} resamples"}
    if np.ptp(usable) < 1e-12:
        return found | {
            "reason": "every resample gives the same value, so the bootstrap shows no spread"
        }
    low, high = np.quantile(usable, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if reflect:
        low, high = (
            min(2 * value - high, value),
            max(2 * value - low, value),
        )  # mirroring can pass the value itself
    found |= {
        "low": float(np.clip(low, lowest, highest)),
        "high": float(np.clip(high, lowest, highest)),
        "method": BOOTSTRAP + (", reflected" if reflect else ""),
    }
    if len(usable) < len(samples):
        found["method"] += f" ({len(usable)} of {len(samples)} resamples)"
    if n_groups < FEW_GROUPS:
        found["note"] = f"only {n_groups} groups: the interval is likely too narrow"
    return found


def proportion_interval(
    value: float, samples: np.ndarray, *, n: int, group_hits: np.ndarray, group_sizes: np.ndarray
) -> dict:
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
    return {"value": float(value), "low": low, "high": high, "n": n, "method": method}


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
    share = float(
        np.divide(hits, n)
    )  # it lies inside: for 10 of 10 the formula alone gives .9999999999999999
    return min(float(low), share), max(float(high), share)
