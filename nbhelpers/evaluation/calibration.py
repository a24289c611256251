"""Probabilities that mean what they say: what is fitted on validation images and applied once to
test images, and first of all one temperature per fold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.means import mean_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import logarithms

TEMPERATURES = np.geomspace(1 / 20, 20, 241)  # steps of 2.5 %
UNCHANGED = len(TEMPERATURES) // 2  # the place of 1 among them
FLOOR = 1e-6  # a true class with less counts as with this much, so that no row decides alone


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
    """The temperature of VALIDATION predictions: 1, unless another one lowers their log-loss beyond
    chance, and then that one, drawn towards 1.

    Above 1: the model was too sure of itself (Guo et al. 2017). Each group (slide, neuron) is left
    out in turn and judged half-way between 1 and the temperature that is best for the others, of
    0.05 to 20; the 95 % interval of what it gains over 1 must lie above 0. (At the best one itself
    the gain varies too much to be told from chance.) The logarithm of the best temperature then
    moves one standard error (robust, by groups) towards 0, as few groups make a temperature extreme
    more often than modest. Raises PredictionsError on an empty table, or on test rows.
    """
    from scipy.special import softmax

    check_validation(predictions, "a temperature")
    evidence = logarithms(predictions)
    rows = np.arange(len(predictions))
    true = predictions.true_index
    group, names = pd.factorize(predictions.table["group"], sort=True)
    losses = np.empty((len(names), len(TEMPERATURES)))
    for index, temperature in enumerate(TEMPERATURES):
        likelihood = softmax(evidence / temperature, axis=1)[rows, true]
        losses[:, index] = np.bincount(group, -np.log(np.maximum(likelihood, FLOOR)))
    of_others = (losses.sum(axis=0) - losses).argmin(axis=1)
    half_way = (of_others + UNCHANGED) // 2
    gains = losses[:, UNCHANGED] - losses[np.arange(len(names)), half_way]
    if not mean_interval(gains).above_zero:
        return 1.0
    best = int(losses.sum(axis=0)[1:-1].argmin()) + 1
    below, at, above = losses[:, best - 1 : best + 2].T
    curvature = (below - 2 * at + above).sum()
    steps = best - UNCHANGED  # of log-temperature
    error = np.linalg.norm(above - below) / 2 / max(curvature, 1e-12)
    return float(TEMPERATURES[UNCHANGED + 1] ** (np.sign(steps) * max(abs(steps) - error, 0)))


def apply_temperature(predictions: Predictions, temperature: float) -> Predictions:
    """The same predictions with log-probabilities divided by ``temperature``; ``predicted`` stays
    as it is.

    Raises ParameterError unless the temperature is a finite number above 0.
    """
    from scipy.special import softmax

    if not np.isfinite(temperature) or temperature <= 0:
        raise ParameterError(
            "parameter temperature", f"{temperature} is out of range.", "Give a number above 0."
        )
    table = predictions.table.copy()
    table[predictions.probability_columns] = softmax(logarithms(predictions) / temperature, axis=1)
    return Predictions(table, predictions.classes)


def calibrate_folds(predictions: Predictions) -> tuple[Predictions, pd.DataFrame]:
    """The test rows, each fold with the temperature of its own validation rows, and a table of the
    temperatures (``model``, ``run``, ``repeat``, ``fold``, ``temperature``, ``n_validation``).
    """
    folds = fit_folds(predictions, fit_temperature)
    calibrated = [apply_temperature(one.tested, one.fitted) for one in folds]
    columns = ("model", "run", "repeat", "fold", "fitted", "n_validation")
    table = pd.DataFrame([one.about(*columns) for one in folds])
    return Predictions.concatenate(calibrated), table.rename(columns={"fitted": "temperature"})


def average_by_image(predictions: Predictions) -> Predictions:
    """One row per image, as repeat 0 and fold 0: the mean of its probabilities over all the folds
    and repeats in which it was predicted. What is fitted on that counts each image once.
    """
    grouped = predictions.table.groupby("id", sort=True)
    about = grouped[["label", "group", "split", "model", "run"]].first()
    return Predictions.build(
        ids=about.index,
        labels=about["label"],
        groups=about["group"],
        probabilities=grouped[predictions.probability_columns].mean().to_numpy(),
        classes=predictions.classes,
        split=about["split"].iloc[0],
        model=about["model"].iloc[0],
        run=about["run"].iloc[0],
    )
