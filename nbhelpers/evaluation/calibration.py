"""Calibration: do probabilities mean what they say, and one temperature that fixes it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.intervals import group_weights, proportion_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import (
    CALIBRATION_BINS,
    bin_edges,
    bin_of,
    check_one_model,
    confidence_and_right,
)

COLDEST = 0.05
HOTTEST = 20.0


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that minimises the log-loss of VALIDATION predictions (Guo et al. 2017).

    Above 1: the model was too sure of itself. Searched between 0.05 and 20 on the
    log-probabilities. Raises PredictionsError on an empty table, or on test rows: a temperature
    fitted there would flatter the test score.
    """
    from scipy.optimize import minimize_scalar

    if len(predictions) == 0:
        raise PredictionsError(
            "predictions",
            "there are no rows to fit a temperature on.",
            "Give the validation predictions.",
        )
    if (predictions.table["split"] == "test").any():
        raise PredictionsError(
            "predictions",
            "a temperature must not be fitted on test images.",
            "Give the validation rows: where(split='validation').",
        )
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
    """The test rows after temperature scaling, each fold with the temperature of its own validation
    rows.

    Fitted per model, run, repeat and fold: a temperature from all validation rows at once would
    have seen the labels of images that other folds test. Returns the calibrated test rows and a
    table of the temperatures (``model``, ``run``, ``repeat``, ``fold``, ``temperature``,
    ``n_validation``). Raises PredictionsError naming a fold without validation rows.
    """
    table = predictions.table
    parts = []
    rows = []
    keys = ["model", "run", "repeat", "fold"]
    for key, fold in table.groupby(keys, sort=True):
        tested, validation = (
            Predictions(fold[fold["split"] == split].reset_index(drop=True), predictions.classes)
            for split in ("test", "validation")
        )
        if len(tested) == 0:
            continue
        if len(validation) == 0:
            raise PredictionsError(
                f"{key[0]}, repeat {key[2]}, fold {key[3]}",
                "it has no validation predictions.",
                "Save the validation rows too; the temperature is fitted on them.",
            )
        temperature = fit_temperature(validation)
        parts.append(apply_temperature(tested, temperature))
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "temperature": temperature,
                "n_validation": len(validation),
            }
        )
    return Predictions.concatenate(parts), pd.DataFrame(rows)


def _logarithms(predictions: Predictions) -> np.ndarray:
    return np.log(np.clip(predictions.probabilities, np.finfo(float).tiny, 1))


def reliability_bins(
    predictions: Predictions, bins: int = CALIBRATION_BINS, seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """How often the model is right at each level of confidence.

    One row per bin of about equal count (equal confidences stay together, so there may be fewer):
    ``confidence`` (mean), ``accuracy`` with ``low`` and ``high`` (95 %, bootstrap over groups or
    Wilson; None where there is none), ``n`` images, ``rows`` (images times repeats), ``method``.
    Confidence is the probability of the most probable class.
    """
    _check_bins(bins)
    check_one_model(predictions)
    confidence, right = confidence_and_right(predictions)
    which = bin_of(confidence, bin_edges(confidence, bins))
    group, groups = pd.factorize(predictions.table["group"], sort=True)
    n_bins = int(which.max()) + 1
    n_groups = len(groups)
    repeats = predictions.table["repeat"].nunique()
    shape = (n_groups, n_bins)
    hits = np.bincount(group * n_bins + which, right, n_groups * n_bins).reshape(shape)
    sizes = (
        np.bincount(group * n_bins + which, minlength=n_groups * n_bins)
        .reshape(shape)
        .astype(float)
    )
    with np.errstate(invalid="ignore"):
        drawn = np.concatenate(
            [
                (weights @ hits) / (weights @ sizes)
                for weights in group_weights(n_groups, resamples, seed)
            ]
        )
    rows = []
    for index in range(n_bins):
        inside = which == index
        found = proportion_interval(
            right[inside].mean(),
            drawn[:, index],
            n=int(predictions.table["id"][inside].nunique()),
            group_hits=hits[:, index] / repeats,
            group_sizes=sizes[:, index] / repeats,
        )
        rows.append(
            {
                "confidence": confidence[inside].mean(),
                "accuracy": found["value"],
                "low": found["low"],
                "high": found["high"],
                "n": found["n"],
                "rows": int(inside.sum()),
                "method": found["method"] or found["reason"],
            }
        )
    return pd.DataFrame(rows)


def expected_calibration_error(predictions: Predictions, bins: int = CALIBRATION_BINS) -> float:
    """Mean distance between confidence and accuracy over bins of about equal count; the mean over
    repeats.

    Naeini et al. 2015. Even a perfectly calibrated model scores above 0 on few images.
    """
    _check_bins(bins)
    check_one_model(predictions)
    confidence, right = confidence_and_right(predictions)
    which = bin_of(confidence, bin_edges(confidence, bins))
    errors = []
    for _, rows in predictions.table.reset_index(drop=True).groupby("repeat").groups.items():
        gaps = np.bincount(which[rows], (confidence - right)[rows])
        errors.append(abs(gaps).sum() / len(rows))
    return float(np.mean(errors))


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise ParameterError("parameter bins", f"{bins} is out of range.", "Give 1 or more.")
