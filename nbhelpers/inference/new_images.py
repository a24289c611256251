"""Predictions for images without a label: one table, with the doubtful ones flagged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.columns import column_scale
from nbhelpers.core.errors import InputError
from nbhelpers.core.intervals import FEWEST_GROUPS, likeness_effect, mean_squares
from nbhelpers.core.predictions import PROBABILITY_PREFIX

if TYPE_CHECKING:
    from nbhelpers.core.imageset import ImageSet

NEIGHBOURS = 5
FEWEST = 20  # training images from which one can tell what is usual; of FEWEST_GROUPS groups
AXES = 24
FARTHEST = 10.0  # standard deviations that a feature counts at most
PARTS = 20  # groups are left out in so many parts at most
RATE = 0.01  # of images like the training ones that are flagged all the same
ROUNDING = 1 / 255


def image_statistics(pixels: np.ndarray) -> np.ndarray:
    """How images look, whatever a network makes of them: (n, c, y, x) unsigned integers to
    (n, 8 c) float64.

    Of the mean of the channels, and of each channel minus the next, averaged by 2 pixels (what is
    finer depends on the file format): mean, logarithm of the spread, both again for the middle
    (half of height and width) minus those of the whole, what of the spread is left when averaged
    by 4, 8 and 16, and skewness.
    """
    rows = []
    for image in pixels:
        values = np.asarray(image, np.float32) / np.iinfo(pixels.dtype).max
        planes = _halved(np.concatenate([values.mean(0, keepdims=True), values[:-1] - values[1:]]))
        height, width = planes.shape[1:]
        middle = planes[:, height // 4 : height - height // 4, width // 4 : width - width // 4]
        mean = planes.mean((1, 2))
        spread = _log_spread(planes)
        found = [mean, spread, middle.mean((1, 2)) - mean, _log_spread(middle) - spread]
        coarse = planes
        for _ in range(3):
            finer = _log_spread(coarse)
            coarse = _halved(coarse)
            found.append(_log_spread(coarse) - finer)
        cubes = (planes - mean[:, None, None]) ** 3
        rows.append(np.concatenate([*found, cubes.mean((1, 2)) / np.exp(3 * spread)]))
    return np.array(rows, np.float64)


def _halved(planes: np.ndarray) -> np.ndarray:
    height, width = (side // 2 for side in planes.shape[1:])
    blocks = planes[:, : 2 * height, : 2 * width].reshape(len(planes), height, 2, width, 2)
    return blocks.mean((2, 4))


def _log_spread(planes: np.ndarray) -> np.ndarray:
    return np.log(planes.std((1, 2)) + ROUNDING)


@dataclass(frozen=True)
class OutOfDistribution:
    """How far an image lies from the training images, in a space of features.

    The space are the main axes of the standardised training features and the distance from these.
    Distance is the mean distance to the five nearest training images. ``limit`` was found on groups
    (neurons, slides) that were left out of all that in turn: of new images from new groups that are
    otherwise like the training ones, about the share ``rate`` lies beyond it.
    """

    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    weight: np.ndarray  # (d,)
    axes: np.ndarray  # (d, k)
    reference: np.ndarray  # (n, k + 1)
    limit: float = np.inf
    rate: float = 0.0

    @classmethod
    def fit(cls, *tables: np.ndarray, groups: Sequence[str] | None = None) -> OutOfDistribution:
        """From one or more tables of features of the training images, (n, d) each, which count
        alike however wide they are; and from the groups of the images, by default each its own.

        A rate of 1 in 100 is promised from 100 images on, where these say as much as 50 independent
        ones (images of a group resemble each other); else a higher one. Raises InputError with
        fewer than 20 images or 3 groups.
        """
        size = len(tables[0])
        own = np.arange(size) if groups is None else groups
        names, group = np.unique(own, return_inverse=True)
        if size < FEWEST or len(names) < FEWEST_GROUPS:
            raise InputError(
                "training images",
                f"there are only {size} of {len(names)} groups, too few to know what is usual.",
                f"At least {FEWEST} of {FEWEST_GROUPS} groups are needed.",
            )
        features = np.concatenate(tables, axis=1, dtype=np.float64)
        widths = [table.shape[1] for table in tables]
        weight = 1 / np.sqrt(np.repeat(widths, widths))
        part = group % PARTS
        fewest = size - np.bincount(part).max()
        axes = max(1, min(AXES, len(weight), fewest // 4))
        distances = np.zeros(size)
        for number in range(part.max() + 1):
            out = part == number
            distances[out] = cls._span(features[~out], weight, axes).distances(features[out])
        rate = max(RATE, 1 / (size + 1), 0.5 / effective_size(np.cbrt(distances), group))
        limit = np.quantile(distances, 1 - rate, method="hazen")
        return replace(cls._span(features, weight, axes), limit=float(limit), rate=rate)

    @classmethod
    def _span(cls, features: np.ndarray, weight: np.ndarray, axes: int) -> OutOfDistribution:
        from sklearn.decomposition import PCA

        nothing = np.zeros((len(weight), 0))
        found = cls(features.mean(0), column_scale(features), weight, nothing, nothing)
        main = PCA(axes, random_state=0).fit(found._standardised(features)).components_.T
        found = replace(found, axes=main)
        return replace(found, reference=found._place(features))

    def _standardised(self, features: np.ndarray) -> np.ndarray:
        """A filter that fires on one slide alone would outweigh all others there: hence the cut."""
        return np.clip((features - self.mean) / self.scale, -FARTHEST, FARTHEST) * self.weight

    def _place(self, features: np.ndarray) -> np.ndarray:
        standardised = self._standardised(features)
        along = standardised @ self.axes
        beside = np.linalg.norm(standardised - along @ self.axes.T, axis=1)
        return np.column_stack([along, beside])

    def distances(self, *tables: np.ndarray) -> np.ndarray:
        """(m,) float64 distances of (m, d) features, in one or more tables."""
        from sklearn.neighbors import NearestNeighbors

        near = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(self.reference)))
        placed = self._place(np.concatenate(tables, axis=1, dtype=np.float64))
        return near.fit(self.reference).kneighbors(placed)[0].mean(1)

    def unlike(self, *tables: np.ndarray) -> np.ndarray:
        """(m,) bool: farther from the training images than nearly all images of new groups."""
        return self.distances(*tables) > self.limit


def can_judge(known: ImageSet) -> bool:
    """Whether these training images are enough to tell what is unlike them."""
    return len(known) >= FEWEST and len(set(known.groups)) >= FEWEST_GROUPS


def effective_size(values: np.ndarray, group: np.ndarray) -> float:
    """How many independent values say as much as these, (n,), of which those of a ``group``, (n,)
    int from 0, resemble each other: n over the design effect (Kish 1965), with the correlation
    within groups from an analysis of variance.
    """
    count = np.bincount(group)
    total = len(values)
    if len(count) == total:
        return float(total)
    mean_square, within, usual = mean_squares(values, group)
    between = max(0.0, (mean_square - within) / usual)
    likeness = between / (between + within) if between else 0.0
    return total / likeness_effect(count, likeness)


def evaluation_table(
    names: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    unlike: np.ndarray | None,
    *,
    rate: float | None = None,
    confidence: float,
    failures: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``evaluation.csv``: one row per file, those that could not be read last, without
    a prediction.

    Columns: name, predicted class, ``probability <class>`` per class, low_confidence (the highest
    probability is below ``confidence``), out_of_distribution ("unknown" where ``unlike`` is None),
    flagged_by_chance (``rate``: the share of images like the training ones, but from new groups,
    that are out of distribution all the same), problem (why a file has no prediction; empty
    otherwise). Where most images are out of distribution, as :func:`warned` has it.
    """
    probabilities = np.asarray(probabilities, np.float64).reshape(len(names), len(classes))
    table = pd.DataFrame({"name": list(names)})
    table["predicted"] = [classes[index] for index in probabilities.argmax(1)]
    for index, label in enumerate(classes):
        table[f"probability {label}"] = probabilities[:, index].round(6)
    table["low_confidence"] = probabilities.max(1) < confidence
    table["out_of_distribution"] = "unknown" if unlike is None else np.asarray(unlike, bool)
    table["flagged_by_chance"] = rate
    table["problem"] = ""
    if len(failures):
        rows = pd.DataFrame(
            {"name": failures["file"], "problem": failures["why"] + " " + failures["fix"]}
        )
        table = pd.concat([table.astype(object), rows], ignore_index=True)
    return warned(table)


def out_of_distribution(table: pd.DataFrame) -> pd.Series:
    """(n,) bool: the rows that are out of distribution, as far as that is known."""
    return table["out_of_distribution"].astype(str) == "True"


def warning_for(flagged: int, predicted: int) -> str:
    """What must stand above predictions of which most are out of distribution; else ""."""
    if 2 * flagged <= predicted:
        return ""
    return (
        f"{flagged} of {predicted} new images are unlike the training images: the classes given to "
        "them mean nothing."
    )


def warned(table: pd.DataFrame, warning: str | None = None) -> pd.DataFrame:
    """The table with a column ``warning``, where there is one to give (by default that for these
    rows); images that are out of distribution then have no probability, no set and low confidence.
    """
    if warning is None:
        warning = warning_for(out_of_distribution(table).sum(), table["predicted"].notna().sum())
    if not warning:
        return table
    table = table.assign(warning=warning)
    flagged = out_of_distribution(table)
    table.loc[flagged, table.columns.str.startswith(PROBABILITY_PREFIX)] = np.nan
    table.loc[flagged, "low_confidence"] = True
    if "set" in table:
        table.loc[flagged, "set"] = "unknown"
    return table
