"""The expected calibration error, beside what a perfectly calibrated model would show.

On few images the error is far above 0 whatever the model: gaps of bins do not cancel, they add up.
So the error stands with its expectation for a calibrated model of the same images, and its interval
is of the error without that part.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    FEWEST_GROUPS,
    LEVEL,
    PRIOR_WEIGHT,
    likeness_effect,
    mean_size,
    share_interval,
)

METHOD = "the calibration errors under which the one that was seen is not unusual"


@dataclass(frozen=True)
class CalibrationError:
    """``estimate``: the error that was seen, and the interval of the true one, without the part
    that any model of so few images shows. ``expected_if_calibrated``: that part. ``corrected``: the
    error without it. ``p``: how often a calibrated model shows as much. None below three groups.
    """

    estimate: Estimate
    expected_if_calibrated: float
    corrected: float | None
    p: float | None

    def as_dict(self) -> dict[str, float | None]:
        return {
            "expected_if_calibrated": self.expected_if_calibrated,
            "corrected": self.corrected,
            "p": self.p,
        }


def calibration_error(
    confidence: np.ndarray,
    right: np.ndarray,
    bins: np.ndarray,
    group: np.ndarray,
    repeat: np.ndarray,
) -> CalibrationError:
    """Of (n,) confidences (0..1), right or wrong (0, 1), and the numbers of bin, group and repeat.

    With several repeats all figures are means over them: they are of the same images, so they do
    not make the interval narrower.
    """
    found = []
    for one in np.unique(repeat):
        here = repeat == one
        found.append(_BinnedGaps(confidence[here], right[here], bins[here], group[here]).result())
    means = {}
    for key in found[0]:
        values = [entry[key] for entry in found]
        means[key] = None if None in values else float(np.mean(values))
    n = int((repeat == repeat[0]).sum())
    seen = means["seen"]
    if means["low"] is None:
        reason = f"not assessable: how groups differ takes {FEWEST_GROUPS} groups"
        estimate = Estimate(seen, n=n, reason=reason)
    else:
        note = f"a calibrated model would show {means['expected']:.3f}"
        low = min(means["low"], seen)
        estimate = Estimate(seen, low, max(means["high"], seen), n, METHOD, note=note)
    return CalibrationError(estimate, means["expected"], means["corrected"], means["p"])


class _BinnedGaps:
    """Gaps between confidence and share of right answers in bins, each taken as normal around a
    true gap that has the same size in every bin, in units of the gap's standard deviation.

    The sum of absolute gaps is then above the true one by a part that a formula gives (consistency
    resampling, Broecker and Smith 2007, without resampling). Images of a group enlarge the
    deviations, and make those of the bins go together.
    """

    def __init__(
        self, confidence: np.ndarray, right: np.ndarray, bins: np.ndarray, group: np.ndarray
    ):
        bins = np.unique(bins, return_inverse=True)[1]
        group = np.unique(group, return_inverse=True)[1]
        n = len(right)
        n_bins = int(bins.max()) + 1
        self.sizes = np.bincount(group).astype(np.float64)
        count = np.bincount(bins).astype(np.float64)
        gap = np.bincount(bins, confidence - right)
        sure = np.bincount(bins, confidence)
        share = (np.bincount(bins, right) + 2 * sure / count) / (count + 2)
        self.seen = float(abs(gap).sum() / n)
        self.confidence = float(confidence.mean())
        self.accuracy = float(right.mean())
        # variances of the gaps: if the model were calibrated, and as it is, which never counts as
        # less: a bin that was right every time seems to have none
        self.claimed = np.bincount(bins, confidence * (1 - confidence)) / n**2
        self.found = np.maximum(count * share * (1 - share) / n**2, self.claimed)
        self.freedom = self.sizes.sum() ** 2 / (self.sizes**2).sum() - 1
        self.effect = 1.0
        self.within = 1.0
        if len(self.sizes) >= FEWEST_GROUPS:
            residual = (confidence - right) - gap.sum() / n
            between = (np.bincount(group, residual) ** 2).sum() / n**2
            between *= len(self.sizes) / (len(self.sizes) - 1)
            assumed = PRIOR_WEIGHT * likeness_effect(self.sizes)
            seen = self.freedom * between / max(self.found.sum(), 1e-12)
            self.effect = max((assumed + seen) / (PRIOR_WEIGHT + self.freedom), 1.0)
            cells = np.bincount(group * n_bins + bins).astype(np.float64)
            alike = 0.0
            if mean_size(self.sizes) > 1:
                alike = (self.effect - 1) / (mean_size(self.sizes) - 1)
            self.within = 1 + alike * max(mean_size(cells) - 1, 0)

    def expected(self, size: float, variance: np.ndarray) -> tuple[float, float]:
        """Mean and standard deviation of the error that is seen where every true gap has this
        ``size``, in units of its bin's deviation."""
        deviation = np.sqrt(variance * self.within)
        apart = deviation.sum() ** 2 - (deviation**2).sum()
        likeness = 0.0
        if apart > 0:
            likeness = (self.effect - self.within) * variance.sum() / apart
            likeness = float(np.clip(likeness, 0, 0.99))
        # mean and variance of the absolute value of a normal around ``size``
        mean = np.sqrt(2 / np.pi) * np.exp(-(size**2) / 2) + size * (1 - 2 * stats.norm.cdf(-size))
        spread = 1 + size**2 - mean**2
        # how absolute values go together where the normals do: exact at 0, between for the rest
        folded = 2 / np.pi * (likeness * np.arcsin(likeness) + np.sqrt(1 - likeness**2) - 1)
        least = folded / (1 - 2 / np.pi)
        nearer = (spread - (1 - 2 / np.pi)) / (2 / np.pi)
        together = least + (likeness - least) * nearer
        variance_of_sum = spread * ((deviation**2).sum() + together * apart)
        return float(deviation.sum() * mean), float(np.sqrt(max(variance_of_sum, 0.0)))

    def true_error(self, shift: float) -> float:
        """The true error under which the one seen lies ``shift`` deviations above what is expected;
        0 where none is small enough.
        """
        from scipy.optimize import brentq

        def beyond(size: float) -> float:
            mean, deviation = self.expected(size, self.found)
            return mean + shift * deviation - self.seen

        if beyond(0.0) >= 0:
            return 0.0
        top = 1.0
        while beyond(top) < 0 and top < 1e6:
            top *= 2
        size = brentq(beyond, 0.0, top) if beyond(top) > 0 else top
        return float(size * np.sqrt(self.found * self.within).sum())

    def result(self) -> dict[str, float | None]:
        expected, deviation = self.expected(0.0, self.claimed)
        found = {"seen": self.seen, "expected": expected}
        if len(self.sizes) < FEWEST_GROUPS:
            return found | dict.fromkeys(("corrected", "low", "high", "p"))
        t = stats.t.ppf((1 + LEVEL) / 2, self.freedom + PRIOR_WEIGHT)
        p = float(self.seen <= expected)  # probabilities of 0 and 1 allow no error at all
        if deviation > 0:
            p = stats.t.sf((self.seen - expected) / deviation, self.freedom + PRIOR_WEIGHT)
        # The true error is never below the gap over all images. A sure model that was right every
        # time shows next to no gap in any bin, and may still be wrong once in twenty.
        size = self.sizes.sum() / self.effect
        ends = share_interval(self.accuracy, size, self.freedom + PRIOR_WEIGHT)
        overall = max(self.confidence - ends[0], ends[1] - self.confidence)
        return found | {
            "corrected": self.true_error(0),
            "low": self.true_error(t),
            "high": min(1.0, max(self.true_error(-t), overall)),
            "p": float(p),
        }
