"""Prediction sets that hold the true class as often as was asked for: split-conformal, fitted on
validation images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.intervals import group_weights, proportion_interval
from nbhelpers.core.predictions import Predictions


@dataclass(frozen=True)
class ConformalSets:
    """From which probability on a class belongs to the prediction set of an image.

    ``lowest`` is (classes,) float64: class k is in the set when its probability is at least
    ``lowest[k]``. 0 means always: too few validation images were there for the coverage that was
    asked for.
    """

    classes: tuple[str, ...]
    coverage: float
    lowest: np.ndarray
    n: int
    per_class: bool

    def sets(self, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> np.ndarray:
        """(n, classes) probabilities to (n, classes) bool. The ``predicted`` class, (n,) int, is
        always in the set; without it, the most probable one."""
        probabilities = np.asarray(probabilities, np.float64)
        found = probabilities >= self.lowest - 1e-12
        found[
            np.arange(len(found)), probabilities.argmax(1) if predicted is None else predicted
        ] = True
        return found

    def names(self, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> list[str]:
        """The sets as text, the classes joined by " or "."""
        return [
            " or ".join(name for name, inside in zip(self.classes, row, strict=True) if inside)
            for row in self.sets(probabilities, predicted)
        ]

    def as_dict(self) -> dict:
        return {
            "classes": self.classes,
            "coverage": self.coverage,
            "lowest": self.lowest,
            "n": self.n,
            "per_class": self.per_class,
        }

    @classmethod
    def from_dict(cls, stored: dict) -> ConformalSets:
        return cls(
            tuple(stored["classes"]),
            float(stored["coverage"]),
            np.asarray(stored["lowest"], np.float64),
            int(stored["n"]),
            bool(stored["per_class"]),
        )


def fit_conformal(
    predictions: Predictions, coverage: float = 0.9, *, per_class: bool = True
) -> ConformalSets:
    """Find how improbable the true class may be, from VALIDATION predictions (Papadopoulos et al.
    2002, Vovk 2005).

    On new images that are exchangeable with these, the set holds the true class with at least this
    probability; with ``per_class`` (Mondrian) that is so for each class by itself, which a rare
    class needs. Images of one slide resemble each other, and a new centre is not exchangeable at
    all: check on held-out slides with :func:`coverage_table`. Raises ParameterError for a coverage
    outside 0.5 to 0.999, PredictionsError on an empty table, on test rows, and for a class without
    validation images.
    """
    if not 0.5 <= coverage <= 0.999:
        raise ParameterError(
            "parameter coverage", f"{coverage} is out of range.", "Give 0.5 to 0.999."
        )
    if len(predictions) == 0:
        raise PredictionsError(
            "predictions",
            "there are no rows to fit prediction sets on.",
            "Give the validation predictions.",
        )
    if (predictions.table["split"] == "test").any():
        raise PredictionsError(
            "predictions",
            "prediction sets must not be fitted on test images.",
            "Give the validation rows: where(split='validation').",
        )
    true = predictions.true_index
    of_true = predictions.probabilities[np.arange(len(true)), true]
    if not per_class:
        return ConformalSets(
            predictions.classes,
            coverage,
            np.full(len(predictions.classes), _lowest(of_true, coverage)),
            len(true),
            False,
        )
    for index, name in enumerate(predictions.classes):
        if not (true == index).any():
            raise PredictionsError(
                f"predictions, class {name}",
                "there is no validation image of it.",
                "Use other validation slides, or per_class=False.",
            )
    lowest = np.array(
        [_lowest(of_true[true == index], coverage) for index in range(len(predictions.classes))]
    )
    return ConformalSets(predictions.classes, coverage, lowest, len(true), True)


def _lowest(probabilities: np.ndarray, coverage: float) -> float:
    """The largest value that at least ceil((n + 1) coverage) of n probabilities reach; 0 where n is
    too small.
    """
    n = len(probabilities)
    rank = int(np.ceil((n + 1) * coverage - 1e-9))
    return 0.0 if rank > n else float(np.sort(probabilities)[n - rank])


def conformal_folds(
    predictions: Predictions, coverage: float = 0.9, *, per_class: bool = True
) -> pd.DataFrame:
    """Sets for the test rows, each fold fitted on its own validation rows.

    Returns the test rows (id, label, group, repeat, fold) with ``covered`` (bool), ``size``
    (classes in the set) and ``set`` (text). Raises PredictionsError naming a fold without
    validation rows.
    """
    parts = []
    for (repeat, fold), table in predictions.table.groupby(["repeat", "fold"], sort=True):
        tested, validation = (
            Predictions(table[table["split"] == part].reset_index(drop=True), predictions.classes)
            for part in ("test", "validation")
        )
        if not len(tested):
            continue
        if not len(validation):
            raise PredictionsError(
                f"repeat {repeat}, fold {fold}",
                "it has no validation predictions.",
                "Save the validation rows too; the sets are fitted on them.",
            )
        fitted = fit_conformal(validation, coverage, per_class=per_class)
        sets = fitted.sets(tested.probabilities)
        parts.append(
            tested.table[["id", "label", "group", "repeat", "fold"]].assign(
                covered=sets[np.arange(len(sets)), tested.true_index],
                size=sets.sum(1),
                set=fitted.names(tested.probabilities),
            )
        )
    if not parts:
        raise PredictionsError(
            "predictions",
            "there are no test rows.",
            "Give the table with validation and test rows.",
        )
    return pd.concat(parts, ignore_index=True)


def coverage_table(
    sets: pd.DataFrame, coverage: float, *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """How often the sets of :func:`conformal_folds` hold the true class: over all, and per class.

    Columns: ``class``, ``asked``, ``coverage`` with ``low`` and ``high`` (95 %, bootstrap over
    groups, or Wilson), ``mean size``, ``one class`` (share of sets that decide), ``n`` images, and
    ``reached``: whether the coverage asked for lies below ``high``.
    """
    rows = []
    for name in ["all", *sorted(sets["label"].unique())]:
        part = sets if name == "all" else sets[sets["label"] == name]
        repeats = part["repeat"].nunique()
        group, groups = pd.factorize(part["group"], sort=True)
        hits = np.bincount(group, part["covered"], len(groups)) / repeats
        sizes = np.bincount(group, minlength=len(groups)) / repeats
        with np.errstate(invalid="ignore"):
            drawn = np.concatenate(
                [
                    (weights @ hits) / (weights @ sizes)
                    for weights in group_weights(len(groups), resamples, seed)
                ]
            )
        found = proportion_interval(
            part["covered"].mean(),
            drawn,
            n=int(part["id"].nunique()),
            group_hits=hits,
            group_sizes=sizes,
        )
        high = found["high"]
        rows.append(
            {
                "class": name,
                "asked": coverage,
                "coverage": found["value"],
                "low": found["low"],
                "high": high,
                "mean size": part["size"].mean(),
                "one class": (part["size"] == 1).mean(),
                "n": found["n"],
                "reached": found["value"] >= coverage or (high is not None and high >= coverage),
            }
        )
    return pd.DataFrame(rows)
