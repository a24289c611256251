"""Predictions for images without a label: one table, with the doubtful ones flagged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError

NEIGHBOURS = 5
FEWEST = 20  # training images from which one can tell what is usual


@dataclass(frozen=True)
class OutOfDistribution:
    """How far an image lies from the training images, in a space of features.

    Distance is the mean distance to the five nearest training images, features standardised on the
    training images. ``limit`` is the 99th percentile of the training images' own distances to each
    other, so about 1 in 100 images like the training ones is flagged all the same.
    """

    reference: np.ndarray  # (n, d) float64, standardised
    mean: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    limit: float

    @classmethod
    def fit(cls, features: np.ndarray, share: float = 0.99) -> OutOfDistribution:
        """From (n, d) features of the training images. Raises InputError with fewer
        than 20 images."""
        features = np.asarray(features, np.float64)
        if len(features) < FEWEST:
            raise InputError(
                "training images",
                f"there are only {len(features)}, too few to know what is usual.",
                f"At least {FEWEST} are needed.",
            )
        mean = features.mean(0)
        scale = features.std(0)
        scale = np.where(scale > 1e-9, scale, 1.0)
        reference = (features - mean) / scale
        own = _nearest(reference, reference, skip_self=True)
        return cls(reference, mean, scale, float(np.quantile(own, share)))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """(m,) float64 distances of (m, d) features."""
        return _nearest((np.asarray(features, np.float64) - self.mean) / self.scale, self.reference)

    def unlike(self, features: np.ndarray) -> np.ndarray:
        """(m,) bool: farther from the training images than 99 in 100 of them are
        from each other."""
        return self.distances(features) > self.limit


def _nearest(points: np.ndarray, reference: np.ndarray, skip_self: bool = False) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    count = min(NEIGHBOURS + skip_self, len(reference))
    found = NearestNeighbors(n_neighbors=count).fit(reference).kneighbors(points)[0]
    return found[:, 1:].mean(1) if skip_self else found.mean(1)


def evaluation_table(
    names: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    unlike: np.ndarray | None,
    *,
    confidence: float,
    failures: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``evaluation.csv``: one row per file, those that could not be read last, without
    a prediction.

    Columns: name, predicted class, ``probability <class>`` per class, low_confidence (the highest
    probability is below ``confidence``), out_of_distribution ("unknown" where ``unlike`` is None),
    problem (why a file has no prediction; empty otherwise).
    """
    probabilities = np.asarray(probabilities, np.float64).reshape(len(names), len(classes))
    table = pd.DataFrame({"name": list(names)})
    table["predicted"] = [classes[index] for index in probabilities.argmax(1)]
    for index, label in enumerate(classes):
        table[f"probability {label}"] = probabilities[:, index].round(6)
    table["low_confidence"] = probabilities.max(1) < confidence
    table["out_of_distribution"] = "unknown" if unlike is None else np.asarray(unlike, bool)
    table["problem"] = ""
    if len(failures):
        rows = pd.DataFrame(
            {"name": failures["file"], "problem": failures["why"] + " " + failures["fix"]}
        )
        table = pd.concat([table.astype(object), rows], ignore_index=True)
    return table
