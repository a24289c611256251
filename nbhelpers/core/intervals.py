"""95 % intervals that hold with few groups: shares, averages over classes, AUC, log-loss and paired
differences, all from one family, as are the means of :mod:`nbhelpers.core.means`.

Images of one neuron, slide or plate resemble each other, so a score is worth fewer images than it
has. Every interval starts from the score without each group in turn (the delete-one-group
jackknife; Rust and Rao 1996 for groups in strata). The spread is turned into the number of
independent images that would spread as much (the effective size of Kish 1965). Few groups say
little about their own spread, so that number is drawn towards what groups of this size commonly do.
Agresti and Coull's interval (1998) then takes it, with Student's t in place of z. The constants
below were chosen by simulation; ``benchmarks/statistics.py`` shows what the intervals cover, also
where the constants were not chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from nbhelpers.core.estimate import Estimate

LEVEL = 0.95
FEWEST_GROUPS = 3  # below this no interval can be given
FEWEST_EQUAL_GROUPS = 2  # as which unequal ones must count at least
FEW_GROUPS = 6  # below this an interval is mostly an assumption
LARGE_EFFECT = 5.0  # a design effect above this is told
PRIOR_LIKENESS = 0.1  # assumed correlation of "right" between two images of a group
PRIOR_LIKENESS_OF_DIFFERENCES = 0.05  # the same of "only one of two models is right"
PRIOR_WEIGHT = 2.0  # the assumption counts like so many groups
HALF_ERRORS = 10.0  # with so many errors beyond the first, the spread that was seen counts half

GROUPED = "Agresti-Coull, each group left out in turn"
INDEPENDENT = "Agresti-Coull"
PAIRED = "each group left out in turn, Student's t"


@dataclass(frozen=True)
class Sampling:
    """How the images behind a score were sampled; known before the score is looked at.

    ``influence``: (groups,) float, the share that each group has in the score. ``stratum``:
    (groups,) int, groups of different strata are not compared. ``size``: the independent images
    that the score would be worth if those of a group were no more alike than others.
    ``expected_effect``: by how much fewer they are commonly worth (the design effect).
    ``least_effect``: the design effect is never taken as less.
    """

    influence: np.ndarray
    stratum: np.ndarray
    size: float
    expected_effect: float
    least_effect: float = 0.5

    @classmethod
    def of_sizes(
        cls,
        sizes: np.ndarray,
        *,
        n: float | None = None,
        likeness: float = PRIOR_LIKENESS,
        stratum: np.ndarray | None = None,
        least_effect: float = 0.5,
    ) -> Sampling:
        """For a score in which each image counts the same: ``sizes``, (groups,) images of each
        group, of ``n`` images (their sum).
        """
        n = float(sizes.sum() if n is None else n)
        stratum = np.zeros(len(sizes), np.int64) if stratum is None else stratum
        return cls(sizes / n, stratum, n, likeness_effect(sizes, likeness), least_effect)

    @property
    def n_groups(self) -> int:
        return int((self.influence > 0).sum())

    @property
    def equal_groups(self) -> float:
        """How many groups of one size would count as much (Kish 1965)."""
        return float(self.influence.sum() ** 2 / (self.influence**2).sum())

    def _strata(self) -> list[np.ndarray]:
        """The groups that count of each stratum, (groups,) bool each."""
        counted = self.influence > 0
        return [counted & (self.stratum == one) for one in np.unique(self.stratum[counted])]

    @property
    def freedom(self) -> float:
        """Satterthwaite's degrees of freedom of a variance between groups: unequal groups count as
        fewer, but for up to two never as fewer than their number of equal ones says. 0 where a
        stratum has one group only.
        """
        together = 0.0
        below = 0.0
        for here in self._strata():
            squares = self.influence[here] ** 2
            freedom = squares.sum() ** 2 / (squares**2).sum() - 1
            if len(squares) < 2 or freedom <= 1e-9:
                return 0.0
            variance = squares.sum() * len(squares) / (len(squares) - 1)
            together += variance
            below += variance**2 / freedom
        found = float(together**2 / below) if below > 0 else 0.0
        return max(found, min(self.equal_groups - 1, FEWEST_GROUPS - 1.0))

    def variance(self, value: float, left: np.ndarray) -> float:
        """Jackknife variance of ``value`` from the (groups,) scores without each group."""
        total = 0.0
        for here in self._strata():
            total += (here.sum() - 1) / here.sum() * ((left[here] - value) ** 2).sum()
        return float(total)

    def lacking(self, left: np.ndarray) -> str | None:
        """Why no interval can be given, or None."""
        groups = self.n_groups
        if groups < FEWEST_GROUPS:
            told = "all images are of one group" if groups == 1 else f"there are {groups} groups"
            return f"not assessable: {told}, and how groups differ takes {FEWEST_GROUPS}"
        if self.equal_groups < FEWEST_EQUAL_GROUPS:
            return "not assessable: one group holds most of the images"
        if self.freedom == 0:
            return "not assessable: a class comes from one group"
        if not np.isfinite(left[self.influence > 0]).all():
            return "not assessable: it hangs on one group, without which it is not defined"
        return None


def strata_of(class_counts: np.ndarray) -> np.ndarray:
    """(groups,) stratum of each group, from its images per class, (groups, classes).

    Where every group has one class (neurons), the groups of a class vary among themselves, and each
    class is a stratum; otherwise all groups form one.
    """
    pure = ((class_counts > 0).sum(axis=1) <= 1).all()
    return class_counts.argmax(axis=1) if pure else np.zeros(len(class_counts), np.int64)


def mean_size(sizes: np.ndarray) -> float:
    """The size of the group that a random image is in, of (groups,) sizes."""
    return float((sizes**2).sum() / sizes.sum())


def likeness_effect(sizes: np.ndarray, likeness: float = PRIOR_LIKENESS) -> float:
    """The design effect that groups of these sizes, (groups,), commonly have: 1 + (m - 1) times the
    likeness, where m is their :func:`mean_size`.
    """
    if sizes.sum() <= 0:
        return 1.0
    return 1.0 + max(mean_size(sizes) - 1.0, 0.0) * likeness


def mean_squares(values: np.ndarray, group: np.ndarray) -> tuple[float, float, float]:
    """One-way analysis of variance of (n,) values in groups, (n,) int counted from 0: the mean
    square between groups, that within them, and the size that stands for groups of unequal size
    (Ridout et al. 1999).
    """
    sizes = np.bincount(group)
    total = len(values)
    means = np.bincount(group, values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum() / (len(sizes) - 1))
    within = float(((values - means[group]) ** 2).sum() / (total - len(sizes)))
    return between, within, float((total - (sizes**2).sum() / total) / (len(sizes) - 1))


def share_interval(value: float, size: float, freedom: float = np.inf) -> tuple[float, float]:
    """Agresti and Coull's ends for a share of ``size`` independent images: t^2 / 2 hits and misses
    are added. ``freedom``: degrees of freedom of Student's t. The ends always hold the value.
    """
    t = stats.t.ppf((1 + LEVEL) / 2, freedom)
    wider = size + t * t
    centre = (size * value + t * t / 2) / wider
    half = t * np.sqrt(centre * (1 - centre) / wider)
    low = max(0.0, centre - half)
    high = min(1.0, centre + half)
    return float(min(low, value)), float(max(high, value))


def bounded_interval(
    value: float, left: np.ndarray, sampling: Sampling, n: int, *, least_variance: float = 0.0
) -> Estimate:
    """The interval of any score between 0 and 1 over ``n`` images.

    ``left``: (groups,) the score without each group in turn. Where no interval can be given, the
    Estimate says why. ``n_effective`` says how many independent images would tell as much.
    """
    if not np.isfinite(value):
        return Estimate.undefined("it is not a finite number", n)
    value = float(value)
    reason = sampling.lacking(left)
    if reason:
        return Estimate(value, n=n, reason=reason)
    freedom = sampling.freedom
    variance = max(sampling.variance(value, left), least_variance)
    size = _effective_size(value, variance, sampling)
    low, high = share_interval(value, size, freedom + PRIOR_WEIGHT)
    effect = sampling.size / size
    found = Estimate(value, low, high, n, GROUPED, note=warning_of(sampling, effect))
    if sampling.expected_effect > 1:  # some group has several images
        found = replace(found, n_effective=n / max(effect, 1))
    return found


def _effective_size(value: float, variance: float, sampling: Sampling) -> float:
    """Number of independent images that would make the score vary as much.

    The design effect that was seen is averaged with the expected one; its weight grows with the
    groups and with the errors. Up to one error the groups show nothing: at and near 0 and 1 the
    size is that of the expectation, so nothing jumps there.
    """
    size = sampling.size
    beyond = size * min(value, 1 - value) - 1
    if beyond <= 0:
        return size / sampling.expected_effect
    seen = max(variance * size / (value * (1 - value)), sampling.least_effect)
    weight = sampling.freedom * beyond / (beyond + HALF_ERRORS)
    together = PRIOR_WEIGHT * sampling.expected_effect + weight * seen
    return size * (PRIOR_WEIGHT + weight) / together


def warning_of(sampling: Sampling, effect: float) -> str | None:
    """What must be said beside an interval, if anything; ``effect``: the design effect."""
    equal = round(sampling.equal_groups)
    if equal < FEW_GROUPS:
        count = f"{sampling.n_groups} groups"
        if equal < sampling.n_groups:
            count += f", as good as {equal} of one size,"
        return f"mostly an assumption: {count} say little about how groups differ"
    if effect > LARGE_EFFECT:
        return f"few groups decide: images count as {effect:.1f} times fewer (design effect)"
    return None


def grouped_share(hits: np.ndarray, sizes: np.ndarray, n: int, *, repeats: int = 1) -> Estimate:
    """The share of right images: ``hits`` of ``sizes``, both (groups,) float, means over the
    ``repeats`` of a cross-validation; ``n`` is the number of images.
    """
    total = sizes.sum()
    if total <= 0:
        return Estimate.undefined("there is nothing to count")
    value = float(hits.sum() / total)
    if repeats == 1 and sizes.max() <= 1 and n >= FEWEST_GROUPS:
        low, high = share_interval(value, float(total))
        return Estimate(value, low, high, n, INDEPENDENT)
    sampling = Sampling.of_sizes(sizes, least_effect=1.0 if repeats == 1 else 0.5)
    return bounded_interval(value, means_without_each(hits, sizes), sampling, n)


def means_without_each(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(groups,) the mean without each group in turn, from the sum and the number of its values; NaN
    where nothing is left.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sums.sum() - sums) / (sizes.sum() - sizes)


def log_loss_interval(
    value: float, left: np.ndarray, sampling: Sampling, n: int, *, claimed_variance: float
) -> Estimate:
    """The interval of a mean log-loss (nats), by way of exp(-log-loss): the geometric mean of the
    probability of the true class lies between 0 and 1.

    The hits and misses that are added there stand for sure mistakes not met yet.
    ``claimed_variance``: that of one image's loss if the probabilities were right, mean over the
    images; the spread never counts as less, as few images often hold none of the rare large losses.
    """
    share = np.exp(-value)
    least = share**2 * claimed_variance / n
    found = bounded_interval(share, np.exp(-left), sampling, n, least_variance=least)
    if found.low is None:
        return replace(found, value=float(value))
    low = abs(float(np.log(found.high)))  # no -0.0
    high = float(-np.log(max(found.low, np.finfo(float).eps)))
    return replace(
        found, value=float(value), low=min(low, float(value)), high=max(high, float(value))
    )


@dataclass(frozen=True)
class Difference(Estimate):
    """How much higher ``a`` scores than ``b``; ``p`` is the two-sided p-value of no difference,
    at most .05 exactly where 0 lies outside the interval; None where there is no interval.
    """

    a: float = float("nan")
    b: float = float("nan")
    p: float | None = None

    def as_dict(self) -> dict[str, object]:
        found = super().as_dict()
        found["difference"] = found.pop("value")
        return found


def difference_interval(
    value: float,
    left: np.ndarray,
    sampling: Sampling,
    n: int,
    *,
    image_variance: float,
    differing: float,
) -> Difference:
    """The interval of a difference of two scores between 0 and 1 that were found on the same images
    or groups.

    ``image_variance``: the variance of the difference if images were independent, above 0.
    ``differing``: on how many images the two disagree; the more, the more counts the spread between
    the groups that was seen.
    """
    if not np.isfinite(value):
        return Difference(None, n=n, reason="it is not a finite number")
    value = float(value)
    reason = sampling.lacking(left)
    if reason:
        return Difference(value, n=n, reason=reason)
    freedom = sampling.freedom
    weight = freedom * differing / (differing + HALF_ERRORS)
    assumed = PRIOR_WEIGHT * sampling.expected_effect * image_variance
    variance = assumed + weight * sampling.variance(value, left)
    deviation = np.sqrt(variance / (PRIOR_WEIGHT + weight))
    half = stats.t.ppf((1 + LEVEL) / 2, freedom) * deviation
    return Difference(
        value,
        float(max(-1.0, value - half)),
        float(min(1.0, value + half)),
        n,
        PAIRED,
        note=warning_of(sampling, 1.0),
        p=float(2 * stats.t.sf(abs(value) / deviation, freedom)),
    )
