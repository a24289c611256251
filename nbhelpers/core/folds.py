"""The one loop over the folds of a split: what is predicted in each of them becomes one table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.splits import Split


@dataclass(frozen=True)
class Fold:
    """One fold of a split: its parts as row numbers (int64) of an image set, in stored order.

    ``fitted`` is train and validation together, each image once: what a model may be fitted on that
    chooses nothing by validation. In a published split that leaks, parts share images.
    """

    repeat: int
    fold: int
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    fitted: np.ndarray


def folds_of(images: ImageSet, split: Split) -> list[Fold]:
    """All folds in order. Raises InputError for a split of other images."""
    found = []
    for repeat, fold in split.folds():
        together = pd.unique(split.ids(repeat, fold, "train", "validation"))
        found.append(
            Fold(
                repeat,
                fold,
                train=images.positions(split.ids(repeat, fold, "train")),
                validation=images.positions(split.ids(repeat, fold, "validation")),
                test=images.positions(split.ids(repeat, fold, "test")),
                fitted=images.positions(together),
            )
        )
    return found


def predict_folds(
    predict: Callable[[Fold], dict[str, tuple[np.ndarray, np.ndarray]]],
    images: ImageSet,
    split: Split,
    *,
    model: str,
    report: Callable[[str], None] | None = None,
) -> Predictions:
    """Call ``predict`` for every fold and put what it gives together.

    ``predict(fold)`` gives, for "validation" or "test" or both, the rows that it predicted and
    their probabilities, (n, classes) float. ``report`` is told after every fold how long it took.
    """
    parts = []
    folds = folds_of(images, split)
    for number, fold in enumerate(folds, start=1):
        started = time.monotonic()
        said = f"{model}: fold {number:>2} of {len(folds)}"
        for part, (rows, probabilities) in predict(fold).items():
            placed = {"split": part, "repeat": fold.repeat, "fold": fold.fold, "model": model}
            made = Predictions.of(images, probabilities, rows, **placed)
            parts.append(made)
            if part == "validation":
                right = (made.predicted_index == made.true_index).mean()
                said += f", validation accuracy {right:.3f}"
        if report:
            report(f"{said}, {time.monotonic() - started:.0f} s")
    return Predictions.concatenate(parts)


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-probability of the true class (nats), to choose a model by: it judges the
    probabilities, not only the winners. ``probabilities`` is (n, classes), ``labels`` (n,).
    """
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(true, 1e-12, 1)).mean())
