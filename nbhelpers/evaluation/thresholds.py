"""The threshold of two classes: chosen on validation rows, or without labels, and applied once to
test rows.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.paired import compare


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """(n, 2) probabilities to (n,) log-odds of the last class. Raises PredictionsError for other
    than two classes.
    """
    if probabilities.shape[1] != 2:
        raise PredictionsError(
            "predictions", f"there are {probabilities.shape[1]} classes.", "A threshold needs two."
        )
    clipped = np.clip(probabilities, 1e-12, 1)
    return np.log(clipped[:, 1]) - np.log(clipped[:, 0])


def sweep_thresholds(validation: Predictions, softness: float = 0.1) -> pd.DataFrame:
    """Balanced accuracy of VALIDATION rows at 801 thresholds: ``threshold``, its ``log_odds``,
    ``balanced_accuracy``.

    ``threshold`` is the probability of the last class from which it is predicted. Each image counts
    as a small bell (``softness`` times the spread of all log-odds) rather than a step, so that one
    image more or less does not move the best threshold. Raises PredictionsError on test rows,
    without both classes, or with more than two.
    """
    from scipy.special import expit, ndtr

    if (validation.table["split"] == "test").any():
        raise PredictionsError(
            "predictions",
            "a threshold must not be chosen on test images.",
            "Give the validation rows: where(split='validation').",
        )
    positive = validation.true_index == len(validation.classes) - 1
    if positive.all() or not positive.any():
        raise PredictionsError(
            "predictions",
            "the validation images are all of one class.",
            "Choose validation groups (neurons, slides) with images of both.",
        )
    odds = log_odds(validation.probabilities)
    width = max(softness * odds.std(), 1e-6)
    at = np.linspace(odds.min(), odds.max(), 801)[:, None]
    recalls = ndtr((odds[positive] - at) / width).mean(1) + ndtr(
        (at - odds[~positive]) / width
    ).mean(1)
    return pd.DataFrame(
        {"threshold": expit(at[:, 0]), "log_odds": at[:, 0], "balanced_accuracy": recalls / 2}
    )


def choose_threshold(validation: Predictions, softness: float = 0.1) -> float:
    """The threshold nearest to one half among those as good, on VALIDATION rows, as the best within
    one standard error; and one half itself, unless what the other gains over it lies beyond chance.

    Few validation images make the best threshold of :func:`sweep_thresholds` a matter of luck, and
    luck does not travel to other slides or neurons. So one half stays unless validation speaks
    against it: the 95 % interval of the gain in balanced accuracy, whole groups (slides, neurons)
    resampled, must exclude zero. Source: the one-standard-error rule of Breiman et al.,
    Classification and Regression Trees (1984).
    """
    sweep = sweep_thresholds(validation, softness)
    odds = sweep["log_odds"].to_numpy()
    score = sweep["balanced_accuracy"].to_numpy()
    found = log_odds(validation.probabilities) >= odds[score.argmax()]
    positive = validation.true_index == len(validation.classes) - 1
    # two images are added to each class, one right and one wrong: no recall is certain
    recalls = [
        ((hits.sum() + 1) / (len(hits) + 2), len(hits) + 2)
        for hits in (found[positive], ~found[~positive])
    ]
    error = 0.5 * np.sqrt(sum(recall * (1 - recall) / count for recall, count in recalls))
    good = score >= score.max() - error
    if odds[0] <= 0 <= odds[-1] and np.interp(0, odds, score) >= score.max() - error:
        return 0.5
    nearest = float(sweep["threshold"].to_numpy()[good][np.abs(odds[good]).argmin()])
    gain = compare(apply_threshold(validation, nearest), apply_threshold(validation, 0.5))[
        "balanced_accuracy"
    ]
    return (
        nearest if gain["low"] is None or gain["low"] > 0 else 0.5
    )  # None: a single group has no interval


def mixture_threshold(probabilities: np.ndarray, seed: int = 0) -> float | None:
    """The threshold between two groups of images without labels, as those of a new centre, or None
    without two groups.

    Two Gaussians are fitted to the log-odds of the last class; the threshold is where both are as
    likely. No label is used, but a batch of images is: at least 30, with some of either class among
    them. None when the two lie nearer to each other than twice their widths, or the smaller has
    less than 5 %.
    """
    from scipy.special import expit
    from sklearn.mixture import GaussianMixture

    odds = log_odds(probabilities)
    if len(odds) < 30 or odds.std() < 1e-6:
        return None
    mixture = GaussianMixture(2, n_init=3, random_state=seed).fit(odds[:, None])
    low, high = mixture.means_.ravel().argsort()
    means = mixture.means_.ravel()
    widths = np.sqrt(mixture.covariances_.ravel())
    if means[high] - means[low] < 2 * widths.mean() or mixture.weights_.min() < 0.05:
        return None
    at = np.linspace(means[low], means[high], 801)
    return float(expit(at[np.abs(mixture.predict_proba(at[:, None])[:, high] - 0.5).argmin()]))


def apply_threshold(predictions: Predictions, threshold: float) -> Predictions:
    """The same rows with the last class predicted from this probability on."""
    positive = predictions.probabilities[:, -1] >= threshold
    names = np.asarray(predictions.classes, dtype=object)
    return Predictions(
        predictions.table.assign(predicted=names[positive.astype(int)]), predictions.classes
    )


def threshold_folds(
    predictions: Predictions, how: str = "validation"
) -> tuple[Predictions, pd.DataFrame]:
    """The test rows of every fold with the threshold of that fold, and the table of the thresholds.

    ``how`` is "half" (one half), "validation" (``choose_threshold`` on the fold's validation rows)
    or "unlabelled" (``mixture_threshold`` on the fold's test images without their labels; one half
    where there are no two groups).
    """
    parts = []
    rows = []
    for (repeat, fold), table in predictions.table.groupby(["repeat", "fold"], sort=True):
        tested, validation = (
            Predictions(table[table["split"] == part].reset_index(drop=True), predictions.classes)
            for part in ("test", "validation")
        )
        threshold = 0.5
        if how == "validation":
            threshold = choose_threshold(validation)
        elif how == "unlabelled":
            found = mixture_threshold(tested.probabilities)
            threshold = 0.5 if found is None else found
        parts.append(apply_threshold(tested, threshold))
        rows.append({"repeat": repeat, "fold": fold, "how": how, "threshold": threshold})
    return Predictions.concatenate(parts), pd.DataFrame(rows)
