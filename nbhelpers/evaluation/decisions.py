"""Decisions fitted on validation images: thresholds, and prediction sets with a stated coverage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.calibration import check_validation, fit_folds
from nbhelpers.evaluation.metrics import binned_shares
from nbhelpers.evaluation.paired import compare

SOFTNESS = 0.1  # of the spread of the log-odds: how wide each image counts for a threshold
FEWEST_IN_MIXTURE = 30
MARGIN = 0.1  # how far below the coverage asked for its interval may reach at most


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


def sweep_thresholds(validation: Predictions) -> pd.DataFrame:
    """Balanced accuracy of VALIDATION rows at 801 thresholds: ``threshold``, its ``log_odds``,
    ``balanced_accuracy``.

    ``threshold`` is the probability of the last class from which it is predicted. Each image counts
    as a small bell rather than a step, so that one image more or less does not move the best
    threshold. Raises PredictionsError on test rows, without both classes, or with more than two.
    """
    from scipy.special import expit, ndtr

    check_validation(validation, "a threshold")
    positive = validation.true_index == len(validation.classes) - 1
    if positive.all() or not positive.any():
        raise PredictionsError(
            "predictions",
            "the validation images are all of one class.",
            "Choose validation groups (neurons, slides) with images of both.",
        )
    odds = log_odds(validation.probabilities)
    width = max(SOFTNESS * odds.std(), 1e-6)
    at = np.linspace(odds.min(), odds.max(), 801)[:, None]
    found = ndtr((odds[positive] - at) / width).mean(1)
    spared = ndtr((at - odds[~positive]) / width).mean(1)
    return pd.DataFrame(
        {
            "threshold": expit(at[:, 0]),
            "log_odds": at[:, 0],
            "balanced_accuracy": (found + spared) / 2,
        }
    )


def choose_threshold(validation: Predictions) -> float:
    """The threshold nearest to one half among those as good, on VALIDATION rows, as the best within
    one standard error; and one half itself, unless what the other gains over it lies beyond chance.

    Few validation images make the best threshold of :func:`sweep_thresholds` a matter of luck, and
    luck does not travel to other slides or neurons. So one half stays unless validation speaks
    against it: the 95 % interval of the gain in balanced accuracy, whole groups (slides, neurons)
    resampled, must exclude zero. Source: the one-standard-error rule of Breiman et al.,
    Classification and Regression Trees (1984).
    """
    sweep = sweep_thresholds(validation)
    odds = sweep["log_odds"].to_numpy()
    score = sweep["balanced_accuracy"].to_numpy()
    found = log_odds(validation.probabilities) >= odds[score.argmax()]
    positive = validation.true_index == len(validation.classes) - 1
    variance = 0.0
    for hits in (found[positive], ~found[~positive]):
        # two images are added to each class, one right and one wrong: no recall is certain
        recall = (hits.sum() + 1) / (len(hits) + 2)
        variance += recall * (1 - recall) / (len(hits) + 2)
    least = score.max() - 0.5 * np.sqrt(variance)
    if odds[0] <= 0 <= odds[-1] and np.interp(0, odds, score) >= least:
        return 0.5
    good = score >= least
    nearest = float(sweep["threshold"].to_numpy()[good][np.abs(odds[good]).argmin()])
    moved = compare(apply_threshold(validation, nearest), apply_threshold(validation, 0.5))
    gain = moved["balanced_accuracy"]
    # a single group has no interval
    return nearest if gain.low is None or gain.low > 0 else 0.5


def mixture_threshold(probabilities: np.ndarray) -> float | None:
    """The threshold between two groups of images without labels, as those of a new centre, or None
    without two groups.

    Two Gaussians are fitted to the log-odds of the last class; the threshold is where both are as
    likely. No label is used, but a batch of images is: at least 30, with some of either class among
    them. None when one Gaussian describes them as well (Bayesian information criterion, Schwarz
    1978), the two lie nearer to each other than twice their widths, or the smaller has less than
    5 %.
    """
    from scipy.special import expit
    from sklearn.mixture import GaussianMixture

    odds = log_odds(probabilities)
    if len(odds) < FEWEST_IN_MIXTURE or odds.std() < 1e-6:
        return None
    values = odds[:, None]
    mixture = GaussianMixture(2, n_init=3, random_state=0).fit(values)
    if mixture.bic(values) >= GaussianMixture(1).fit(values).bic(values):
        return None
    low, high = mixture.means_.ravel().argsort()
    means = mixture.means_.ravel()
    widths = np.sqrt(mixture.covariances_.ravel())
    if means[high] - means[low] < 2 * widths.mean() or mixture.weights_.min() < 0.05:
        return None
    at = np.linspace(means[low], means[high], 801)
    undecided = np.abs(mixture.predict_proba(at[:, None])[:, high] - 0.5).argmin()
    return float(expit(at[undecided]))


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

    def without_labels(tested: Predictions) -> float:
        found = None
        if how == "unlabelled":
            found = mixture_threshold(tested.probabilities)
        return 0.5 if found is None else found

    if how == "validation":
        folds = fit_folds(predictions, choose_threshold)
    else:
        folds = fit_folds(predictions, without_labels, on="test")
    moved = [apply_threshold(one.tested, one.fitted) for one in folds]
    rows = [{**one.about("repeat", "fold"), "how": how, "threshold": one.fitted} for one in folds]
    return Predictions.concatenate(moved), pd.DataFrame(rows)


# Prediction sets


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

    def sets(self, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> np.ndarray:
        """(n, classes) probabilities to (n, classes) bool. The ``predicted`` class, (n,) int, is
        always in the set; without it, the most probable one."""
        probabilities = np.asarray(probabilities, np.float64)
        found = probabilities >= self.lowest - 1e-12
        always = probabilities.argmax(1) if predicted is None else predicted
        found[np.arange(len(found)), always] = True
        return found

    def names(self, probabilities: np.ndarray, predicted: np.ndarray | None = None) -> list[str]:
        """The sets as text, the classes joined by " or "."""
        classes = np.asarray(self.classes, dtype=object)
        return [" or ".join(classes[row]) for row in self.sets(probabilities, predicted)]

    def as_dict(self) -> dict:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, stored: dict) -> ConformalSets:
        return cls(
            tuple(stored["classes"]),
            float(stored["coverage"]),
            np.asarray(stored["lowest"], np.float64),
            int(stored["n"]),
        )


def fit_conformal(predictions: Predictions, coverage: float = 0.9) -> ConformalSets:
    """Find how improbable the true class may be, from VALIDATION predictions (Papadopoulos et al.
    2002, Vovk 2005).

    On new images that are exchangeable with these, the set holds the true class with at least this
    probability, for each class by itself (Mondrian), which a rare class needs. Images of one slide
    resemble each other, and a new centre is not exchangeable at all: check on held-out slides with
    :func:`coverage_table`. Raises ParameterError for a coverage outside 0.5 to 0.999,
    PredictionsError on an empty table, on test rows, and for a class without validation images.
    """
    if not 0.5 <= coverage <= 0.999:
        raise ParameterError(
            "parameter coverage", f"{coverage} is out of range.", "Give 0.5 to 0.999."
        )
    check_validation(predictions, "prediction sets")
    true = predictions.true_index
    of_true = predictions.probabilities[np.arange(len(true)), true]
    lowest = []
    for index, name in enumerate(predictions.classes):
        if not (true == index).any():
            raise PredictionsError(
                f"predictions, class {name}",
                "there is no validation image of it.",
                "Use other validation slides.",
            )
        lowest.append(_lowest(of_true[true == index], coverage))
    return ConformalSets(predictions.classes, coverage, np.array(lowest), len(true))


def _lowest(probabilities: np.ndarray, coverage: float) -> float:
    """The largest value that at least ceil((n + 1) coverage) of n probabilities reach; 0 where n is
    too small.
    """
    n = len(probabilities)
    rank = int(np.ceil((n + 1) * coverage - 1e-9))
    return 0.0 if rank > n else float(np.sort(probabilities)[n - rank])


def conformal_folds(predictions: Predictions, coverage: float = 0.9) -> pd.DataFrame:
    """Sets for the test rows, each fold fitted on its own validation rows.

    Returns the test rows (id, label, group, repeat, fold) with ``covered`` (bool), ``size``
    (classes in the set) and ``set`` (text).
    """
    parts = []
    for one in fit_folds(predictions, lambda validation: fit_conformal(validation, coverage)):
        probabilities = one.tested.probabilities
        sets = one.fitted.sets(probabilities)
        parts.append(
            one.tested.table[["id", "label", "group", "repeat", "fold"]].assign(
                covered=sets[np.arange(len(sets)), one.tested.true_index],
                size=sets.sum(1),
                set=one.fitted.names(probabilities),
            )
        )
    return pd.concat(parts, ignore_index=True)


def coverage_table(sets: pd.DataFrame, coverage: float) -> pd.DataFrame:
    """How often the sets of :func:`conformal_folds` hold the true class: over all, and per class.

    Columns: ``class``, ``asked``, ``coverage`` with ``low`` and ``high`` (95 %, over groups),
    ``mean size``, ``one class`` (share of sets that decide), ``n`` images, and ``verdict``, see
    :func:`coverage_verdict`.
    """
    rows = []
    for name in ["all", *sorted(sets["label"].unique())]:
        part = sets if name == "all" else sets[sets["label"] == name]
        everything = np.zeros(len(part), int)
        covered = binned_shares(part, part["covered"].to_numpy(), everything)[0]
        rows.append(
            {
                "class": name,
                "asked": coverage,
                **covered.columns("coverage"),
                "mean size": part["size"].mean(),
                "one class": (part["size"] == 1).mean(),
                "n": covered.n,
                "verdict": coverage_verdict(covered, coverage),
            }
        )
    return pd.DataFrame(rows)


def coverage_verdict(covered: Estimate, asked: float) -> str:
    """What the interval of a coverage says: "not reached" where it lies below what was asked for,
    "reached" where all of it lies above the least that passes (twice the misses that were asked
    for, and at most .1 below), and "not assessable" where it is too wide for either, or missing.
    """
    if covered.low is None:
        return "not assessable"
    if covered.high < asked:
        return "not reached"
    return "reached" if covered.low >= asked - min(1 - asked, MARGIN) else "not assessable"
