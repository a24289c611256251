"""Probabilities that mean what they say: what is fitted on validation images and applied once to
test images, and first of all one temperature per fold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.predictions import Predictions

COLDEST = 0.05
HOTTEST = 20.0


# Fit on validation, apply to test


@dataclass(frozen=True)
class FittedFold:
    """One fold: its test rows, and what was ``fitted`` on its validation rows."""

    model: str
    run: str
    repeat: int
    fold: int
    tested: Predictions
    n_validation: int
    fitted: object

    def about(self, *names: str) -> dict[str, object]:
        """Some of these as columns of a table."""
        return {name: getattr(self, name) for name in names}


def fit_folds(
    predictions: Predictions,
    fit: Callable[[Predictions], object],
    *,
    on: str = "validation",
) -> list[FittedFold]:
    """Fit on the validation rows of every fold, to be applied to its test rows.

    Fitted per model, run, repeat and fold: what is fitted on all validation rows at once would have
    seen the labels of images that other folds test. ``on="test"`` hands the test rows to ``fit``,
    which then must not look at their labels. Folds without test rows are left out. Raises
    PredictionsError naming a fold without validation rows, and where there are no test rows at all.
    """
    keys = ["model", "run", "repeat", "fold"]
    found = []
    for key, table in predictions.table.groupby(keys, sort=True):
        rows = Predictions(table, predictions.classes)
        tested = rows.where(split="test")
        validation = rows.where(split="validation")
        if len(tested) == 0:
            continue
        if len(validation) == 0 and on == "validation":
            raise PredictionsError(
                f"{key[0]}, repeat {key[2]}, fold {key[3]}",
                "it has no validation predictions.",
                "Save the validation rows too: they are fitted on.",
            )
        fitted = fit(tested if on == "test" else validation)
        found.append(FittedFold(*key, tested, len(validation), fitted))
    if not found:
        raise PredictionsError(
            "predictions",
            "there are no test rows.",
            "Give the table with validation and test rows.",
        )
    return found


def check_validation(predictions: Predictions, what: str) -> None:
    if len(predictions) == 0:
        raise PredictionsError(
            "predictions",
            f"there are no rows to fit {what} on.",
            "Give the validation predictions.",
        )
    if (predictions.table["split"] == "test").any():
        raise PredictionsError(
            "predictions",
            f"{what} must not be fitted on test images: that would flatter the test score.",
            "Give the validation rows: where(split='validation').",
        )


# Temperature


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that minimises the log-loss of VALIDATION predictions (Guo et al. 2017).

    Above 1: the model was too sure of itself. Searched between 0.05 and 20 on the
    log-probabilities. Raises PredictionsError on an empty table, or on test rows.
    """
    from scipy.optimize import minimize_scalar

    check_validation(predictions, "a temperature")
    logarithms = _logarithms(predictions)
    true = predictions.true_index

    def log_loss(log_temperature: float) -> float:
        scaled = logarithms / np.exp(log_temperature)
        highest = scaled.max(axis=1, keepdims=True)
        normaliser = highest[:, 0] + np.log(np.exp(scaled - highest).sum(axis=1))
        return float((normaliser - scaled[np.arange(len(true)), true]).mean())

    best = minimize_scalar(
        log_loss,
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(best.x))


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with log-probabilities divided by ``temperature``; ``predicted`` stays
    as it is.

    Raises ParameterError unless the temperature is a finite number above 0.
    """
    if not np.isfinite(temperature) or temperature <= 0:
        raise ParameterError(
            "parameter temperature", f"{temperature} is out of range.", "Give a number above 0."
        )
    scaled = _logarithms(predictions) / temperature
    probabilities = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    table = predictions.table.copy()
    table[predictions.probability_columns] = probabilities
    return Predictions(table, predictions.classes)


def calibrate_folds(predictions: Predictions) -> tuple[Predictions, pd.DataFrame]:
    """The test rows, each fold with the temperature of its own validation rows, and a table of the
    temperatures (``model``, ``run``, ``repeat``, ``fold``, ``temperature``, ``n_validation``).
    """
    folds = fit_folds(predictions, fit_temperature)
    calibrated = [apply_temperature(one.tested, one.fitted) for one in folds]
    rows = [
        {
            **one.about("model", "run", "repeat", "fold"),
            "temperature": one.fitted,
            "n_validation": one.n_validation,
        }
        for one in folds
    ]
    return Predictions.concatenate(calibrated), pd.DataFrame(rows)


def _logarithms(predictions: Predictions) -> np.ndarray:
    return np.log(np.clip(predictions.probabilities, np.finfo(float).tiny, 1))
