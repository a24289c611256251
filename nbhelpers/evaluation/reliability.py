"""How often a model is right at each level of its confidence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import (
    CALIBRATION_BINS,
    bin_edges,
    bin_of,
    binned_shares,
    check_one_model,
    confidence_and_right,
)


def reliability_bins(
    predictions: Predictions, seed: int = 0, resamples: int = 1000
) -> pd.DataFrame:
    """How often the model is right at each level of confidence.

    One row per bin of about equal count (equal confidences stay together, so there may be fewer):
    ``confidence`` (mean), ``accuracy`` with ``low`` and ``high`` (95 %, bootstrap over groups or
    Wilson; None where there is none), ``n`` images, ``rows`` (images times repeats), ``method``.
    Confidence is the probability of the most probable class.
    """
    check_one_model(predictions)
    confidence, right = confidence_and_right(predictions)
    which = bin_of(confidence, bin_edges(confidence, CALIBRATION_BINS))
    rows = []
    found = binned_shares(predictions.table, right, which, resamples, seed)
    for index, accuracy in enumerate(found.shares):
        inside = which == index
        rows.append(
            {
                "confidence": confidence[inside].mean(),
                **accuracy.columns("accuracy"),
                "n": accuracy.n,
                "rows": int(inside.sum()),
                "method": accuracy.method or accuracy.reason,
            }
        )
    return pd.DataFrame(rows)


def expected_calibration_error(predictions: Predictions) -> float:
    """Mean distance between confidence and accuracy over bins of about equal count; the mean over
    repeats.

    Naeini et al. 2015. Even a perfectly calibrated model scores above 0 on few images.
    """
    check_one_model(predictions)
    confidence, right = confidence_and_right(predictions)
    which = bin_of(confidence, bin_edges(confidence, CALIBRATION_BINS))
    errors = []
    for _, rows in predictions.table.reset_index(drop=True).groupby("repeat").groups.items():
        gaps = np.bincount(which[rows], (confidence - right)[rows])
        errors.append(abs(gaps).sum() / len(rows))
    return float(np.mean(errors))
