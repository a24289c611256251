"""Whether new images lie elsewhere than the training images as a set, as those of another scanner
or stain do while each by itself looks usual; and which threshold they then get.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nbhelpers.evaluation.decisions import FEWEST_IN_MIXTURE, mixture_threshold
from nbhelpers.inference.new_images import OutOfDistribution, warning_for
from nbhelpers.inference.reference import PARTS, span

ROUNDED = 1e-6  # as probabilities stand in tables


@dataclass(frozen=True)
class UsualPlaces:
    """Where the training images lie in the space of an OutOfDistribution.

    ``means`` (classes, k) are the mean places of the classes, ``spread`` (k,) how far the mean of a
    part (slides, neurons) lies from them, squared. ``limit`` is the largest size that was found for
    a part of the training images, left out of all that in turn.
    """

    means: np.ndarray
    spread: np.ndarray
    limit: float = np.inf

    @classmethod
    def fit(
        cls, usual: OutOfDistribution, features: np.ndarray, labels: np.ndarray, groups: np.ndarray
    ) -> UsualPlaces | None:
        """From the (n, d) features that ``usual`` was fitted on, (n,) int labels and the groups.
        None where no part can be left out without its class.
        """
        part = np.unique(groups, return_inverse=True)[1] % PARTS
        sizes = []
        for number in range(part.max() + 1):
            out = part == number
            if set(labels[~out]) == set(labels):
                there = span(features[~out], usual.weight, usual.axes.shape[1])
                others = cls._of(there.place(features[~out]), labels[~out], part[~out])
                sizes.append(others.size(there.place(features[out]).mean(0)))
        found = cls._of(usual.place(features), labels, part)
        return replace(found, limit=max(sizes)) if sizes else None

    @classmethod
    def _of(cls, places: np.ndarray, labels: np.ndarray, part: np.ndarray) -> UsualPlaces:
        means = np.stack([places[labels == index].mean(0) for index in range(labels.max() + 1)])
        beside = places - means[labels]
        apart = [beside[part == number].mean(0) for number in np.unique(part)]
        return cls(means, np.maximum(np.square(apart).mean(0), 1e-12))

    def size(self, mean: np.ndarray) -> float:
        """How far the (k,) mean place of new images lies from that of training images of any share
        of classes, in spreads (root mean square over the axes).
        """
        from scipy.optimize import nnls

        scale = np.sqrt(self.spread)
        certain = 1e4  # the shares add up to 1
        columns = np.vstack([(self.means / scale).T, np.full(len(self.means), certain)])
        apart = nnls(columns, np.append(mean / scale, certain))[1] / np.sqrt(len(mean))
        return round(float(apart), 3)  # two runs give the same digits


@dataclass(frozen=True)
class Shift:
    """The ``size`` of a shift, None where it is not known, its ``limit``, and the ``threshold``
    for the last class: ``before``, or, where the shift is beyond the limit, that between the two
    groups of the new images, if those in distribution are most and form such.
    """

    threshold: float | None
    before: float | None
    size: float | None = None
    limit: float | None = None

    @classmethod
    def of(
        cls,
        usual: UsualPlaces | None,
        total: np.ndarray,
        last_class: np.ndarray,
        threshold: float | None,
        flagged: np.ndarray,
    ) -> Shift:
        """Of new images with the (k,) sum of places ``total`` and the (n,) probabilities of the
        last class, as they stand in tables. Of fewer than 30 images no size is given. Those that
        are out of distribution, ``flagged`` (n,) bool, set no threshold, nor do others beside them
        where they are most.
        """
        if usual is None or len(last_class) < FEWEST_IN_MIXTURE:
            return cls(threshold, threshold)
        size = usual.size(total / len(last_class))
        found = None
        most = warning_for(flagged.sum(), len(flagged))
        if threshold is not None and size > usual.limit and not most:
            sure = np.clip(last_class[~flagged], ROUNDED, 1 - ROUNDED)
            found = mixture_threshold(np.stack([1 - sure, sure], axis=1))
        return cls(threshold if found is None else found, threshold, size, usual.limit)

    def __str__(self) -> str:
        if self.size is None:
            return (
                "Whether the new images are shifted as a set is not known: they are fewer than "
                f"{FEWEST_IN_MIXTURE}, or the training slides too few."
            )
        text = (
            f"As a set the new images lie {self.size:.1f} from the training images, in spreads of "
            f"their slides; of these none that was left out lay farther than {self.limit:.1f}. "
        )
        if self.size <= self.limit:
            return text + "No shift is seen."
        if self.threshold != self.before:
            return (
                f"{text}They are shifted, as images of another stain or scanner are: the threshold "
                f"was found from their own scores, {self.threshold:.3f} instead of "
                f"{self.before:.3f}. Check some of them by eye."
            )
        return (
            f"{text}They are shifted, as images of another stain or scanner are; most are out of "
            "distribution, or the scores of the others do not form two groups, so the threshold "
            "stayed as it was. Check some of them by eye."
        )
