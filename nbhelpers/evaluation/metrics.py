"""Scores of a predictions table, each with its count and its 95 % interval."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    FEWEST_GROUPS,
    PRIOR_LIKENESS,
    Sampling,
    bounded_interval,
    grouped_share,
    likeness_effect,
    log_loss_interval,
    strata_of,
)
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.calibration_error import CalibrationError, calibration_error

CALIBRATION_BINS = 10
INDEPENDENT = "as good as independent"  # images; a column where those of a group are alike
FEW_LOSSES = 5  # when fewer images make up half of a log-loss, that is told
SCORE_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "auc": "AUC (one against the rest, mean)",
    "ece": "Expected calibration error",
    "log_loss": "Log-loss",
}


def evaluate(predictions: Predictions) -> dict:
    """All scores of one model.

    ``n_images``, ``n_groups``, ``n_repeats``, ``classes`` (true images per class); ``accuracy``,
    ``balanced_accuracy``, ``macro_f1``, ``auc``, ``ece``, ``log_loss``, each an Estimate;
    ``calibration`` with the ECE that a perfectly calibrated model of these images would show
    (``expected_if_calibrated``), the ECE without that part (``corrected``) and ``p`` of a test
    whether the model is calibrated; ``per_class`` with ``precision``, ``recall``, ``f1``, ``auc``
    (Estimates), ``n_true``, ``n_predicted``; ``confusion_matrix`` (rows true, columns predicted,
    added up over the repeats; ``confusion_matrix_is`` says so); ``per_repeat`` with accuracy and
    macro-F1.

    Right and wrong follow the column ``predicted``; AUC, log-loss and calibration follow the
    probabilities. With repeated cross-validation a score is the mean over the repeats
    (precision: of all repeats together), and its interval is of that mean, over groups
    (:mod:`nbhelpers.core.intervals`). What is not defined
    (precision of a class never predicted, AUC of a class without images) is None with its reason,
    never 0. Raises PredictionsError on an empty table, several models or several splits, and on an
    image whose label or group changes between repeats.
    """
    return scores_of(GroupSums.of(predictions))


def scores_of(sums: GroupSums) -> dict:
    """What :func:`evaluate` gives, from sums that were made already."""
    scores = sums.scores()

    def bounded(name: str, sampling: Sampling) -> Estimate:
        return bounded_interval(scores[name][0], scores[name][1:], sampling, sums.n_images)

    over_classes = sums.over_classes()
    balanced_accuracy = bounded("balanced_accuracy", over_classes)
    macro_f1 = bounded("macro_f1", over_classes)
    auc = Estimate.undefined("no class has both images and other images to rank them against")
    if not np.isnan(scores["auc"][0]):
        auc = bounded("auc", sums.over_rankings(scores["auc_by_class"][0]))
    log_loss = log_loss_interval(
        scores["log_loss"][0],
        scores["log_loss"][1:],
        sums.over_images(),
        sums.n_images,
        claimed_variance=sums.claimed_variance(),
    )
    decisive = sums.images_of_half_the_loss()
    if log_loss.has_interval and decisive < FEW_LOSSES:
        hangs = (
            f"hangs on few large losses: of {sums.n_images} images {decisive} make up half of it"
        )
        log_loss = _with_note(log_loss, hangs)
    absent = [name for name, count in zip(sums.classes, sums.n_true, strict=True) if count == 0]
    if absent:
        without = f"without {', '.join(absent)}: no images"
        balanced_accuracy = _with_note(balanced_accuracy, without)
        auc = _with_note(auc, without)
    calibration = sums.calibration()
    by_class = {
        name: _scores_of_class(sums, scores, index) for index, name in enumerate(sums.classes)
    }
    meaning = "rows: true class, columns: predicted class"
    if sums.n_repeats > 1:
        meaning += f"; added up over {sums.n_repeats} repeats"
    return {
        "n_images": sums.n_images,
        "n_groups": sums.n_groups,
        "n_repeats": sums.n_repeats,
        "classes": {name: entry["n_true"] for name, entry in by_class.items()},
        "accuracy": grouped_share(
            sums.hits_per_group, sums.images_per_group, sums.n_images, repeats=sums.n_repeats
        ),
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": macro_f1,
        "auc": auc,
        "ece": calibration.estimate,
        "calibration": calibration.as_dict(),
        "log_loss": log_loss,
        "per_class": by_class,
        "confusion_matrix": sums.confusion.sum(axis=(0, 1)).astype(int).tolist(),
        "confusion_matrix_is": meaning,
        "per_repeat": [
            {
                "repeat": at,
                "accuracy": float(scores["accuracy_by_repeat"][at]),
                "macro_f1": float(scores["macro_f1_by_repeat"][at]),
            }
            for at in range(sums.n_repeats)
        ],
    }


def _with_note(score: Estimate, more: str) -> Estimate:
    return replace(score, note="; ".join(filter(None, [more, score.note])))


def _scores_of_class(sums: GroupSums, scores: dict, index: int) -> dict:
    name = sums.classes[index]
    cells = sums.confusion.mean(axis=1)
    true = cells[:, index].sum(axis=1)
    hits = cells[:, index, index]
    chosen = cells[:, :, index].sum(axis=1)
    n_true = round(float(true.sum()))

    def share(sizes: np.ndarray, reason: str) -> Estimate:
        if sizes.sum() == 0:
            return Estimate.undefined(reason)
        n = round(float(sizes.sum()))
        return grouped_share(hits, sizes, n, repeats=sums.n_repeats)

    def bounded(score: str, sampling: Sampling, reason: str) -> Estimate:
        value = scores[score][0, index]
        if np.isnan(value):
            return Estimate.undefined(reason)
        return bounded_interval(value, scores[score][1:, index], sampling, n_true)

    either = true + chosen
    if (true > 0).sum() < FEWEST_GROUPS:  # images wrongly given the class say nothing about it
        either = true
    lacking = "no image" if n_true == 0 else "all images"
    return {
        "n_true": _tidy(true.sum()),
        "n_predicted": _tidy(chosen.sum()),
        "precision": share(chosen, f"no image was predicted as {name}"),
        "recall": share(true, f"no image is of the class {name}"),
        "f1": bounded(
            "f1_by_class",
            Sampling(
                either / max(either.sum(), 1),
                np.zeros(len(either), np.int64),
                float(either.sum()),
                likeness_effect(either / 2),
            ),
            f"{name} occurs neither among the labels nor among the predictions",
        ),
        "auc": bounded(
            "auc_by_class",
            sums.over_rankings(scores["auc_by_class"][0], [index]),
            f"{name} has {lacking}, so nothing can be ranked",
        ),
    }


@dataclass(eq=False)
class GroupSums:
    """What the scores of one model are made of, summed per group, so that the scores without each
    group in turn come at the price of a few sums.

    ``probabilities`` (n, classes) float; the rest (n,) int, counted from 0 without gaps. Used by
    :func:`evaluate` and by the paired comparison.
    """

    classes: Sequence[str]
    probabilities: np.ndarray
    true: np.ndarray
    chosen: np.ndarray
    group: np.ndarray
    repeat: np.ndarray

    def __post_init__(self):
        self.n_groups = int(self.group.max()) + 1
        self.n_repeats = int(self.repeat.max()) + 1
        self.n_images = len(self.true) // self.n_repeats
        kinds = len(self.classes)
        cell = (self.repeat * kinds + self.true) * kinds + self.chosen
        shape = (self.n_groups, self.n_repeats, kinds, kinds)
        self.confusion = self._per_group(cell, self.n_repeats * kinds * kinds).reshape(shape)
        """(groups, repeats, true, predicted) images."""
        cells = self.confusion.mean(axis=1)
        self.class_counts = cells.sum(axis=2)
        self.images_per_group = self.class_counts.sum(axis=1)
        self.hits_per_group = np.einsum("gkk->g", cells)
        self.n_true = self.class_counts.sum(axis=0)
        likelihood = self.probabilities[np.arange(len(self.true)), self.true]
        self.losses = -np.log(np.clip(likelihood, np.finfo(float).eps, 1))
        self.surprise = self._per_group(self.repeat, self.n_repeats, self.losses)

    @classmethod
    def of(cls, predictions: Predictions) -> GroupSums:
        """The sums of a table. Raises PredictionsError as :func:`evaluate`."""
        check_one_model(predictions)
        chosen = predictions.predicted_index
        if (chosen < 0).any():
            wrong = predictions.table["predicted"].iloc[int(np.flatnonzero(chosen < 0)[0])]
            raise PredictionsError(
                "predictions",
                f"the predicted class {wrong!r} is none of the classes.",
                f"The classes are {list(predictions.classes)}.",
            )
        found = cls(
            predictions.classes,
            predictions.probabilities,
            predictions.true_index,
            chosen,
            pd.factorize(predictions.table["group"], sort=True)[0],
            pd.factorize(predictions.table["repeat"], sort=True)[0],
        )
        found.n_images = int(predictions.table["id"].nunique())
        return found

    def _per_group(
        self, cell: np.ndarray, cells: int, values: np.ndarray | None = None
    ) -> np.ndarray:
        """(groups, cells): counts, or sums of ``values``, per group and cell."""
        flat = np.bincount(self.group * cells + cell, values, self.n_groups * cells)
        return flat.reshape(self.n_groups, cells).astype(np.float64)

    def scores(self) -> dict[str, np.ndarray]:
        """Every score, mean over the repeats, (1 + groups,) or (1 + groups, classes): first of all
        images, then without each group in turn; NaN where it is not defined. The two
        ``..._by_repeat``, (repeats,), are of all images.
        """
        cells = _without_each(self.confusion)
        hits = np.einsum("brkk->brk", cells)
        true = cells.sum(axis=3)
        chosen = cells.sum(axis=2)
        total = cells.sum(axis=(2, 3))
        with np.errstate(invalid="ignore", divide="ignore"):
            accuracy = hits.sum(axis=2) / total
            recall = hits / true
            f1 = 2 * hits / (true + chosen)
            log_loss = _without_each(self.surprise) / total
        macro_f1 = _mean(f1, 2)
        auc = self._auc_without_each()
        # A class that goes with its only group takes the averages over classes with it.
        gone = (true[0] > 0) & (true == 0)
        balanced = np.where(gone.any(axis=2), np.nan, _mean(recall, 2))
        f1_of_all = np.where(gone.any(axis=2), np.nan, macro_f1)
        lost = np.isfinite(auc[0]) & ~np.isfinite(auc)
        return {
            "accuracy": _mean(accuracy, 1),
            "recall": _mean(recall, 1),
            "f1_by_class": _mean(f1, 1),
            "balanced_accuracy": _mean(balanced, 1),
            "macro_f1": _mean(f1_of_all, 1),
            "log_loss": _mean(log_loss, 1),
            "auc_by_class": auc,
            "auc": np.where(lost.any(axis=1), np.nan, _mean(auc, 1)),
            "accuracy_by_repeat": accuracy[0],
            "macro_f1_by_repeat": macro_f1[0],
        }

    def _auc_without_each(self) -> np.ndarray:
        """(1 + groups, classes) area under the ROC curve, mean over the repeats; ties count half.

        The pairs of a positive and a negative image that are ordered rightly, less those in which
        the group has a part.
        """
        kinds = len(self.classes)
        found = np.full((self.n_repeats, 1 + self.n_groups, kinds), np.nan)
        for repeat in range(self.n_repeats):
            rows = np.flatnonzero(self.repeat == repeat)
            for kind in range(kinds):
                found[repeat, :, kind] = self._auc_of(rows, kind)
        return _mean(found, 0)

    def _auc_of(self, rows: np.ndarray, kind: int) -> np.ndarray:
        group = self.group[rows]
        score = self.probabilities[rows, kind]
        positive = self.true[rows] == kind
        # rightly ordered pairs that each image takes part in: its rank among all of them, less that
        # among those of its own kind
        won = rankdata(score)
        won[positive] -= rankdata(score[positive])
        won[~positive] = positive.sum() - won[~positive] + rankdata(score[~positive])
        with_class = np.bincount(group[positive], minlength=self.n_groups)
        others = np.bincount(group[~positive], minlength=self.n_groups)
        # pairs within a group count for both; the ranks of n positive images alone add up to
        # n (n + 1) / 2
        rank = pd.Series(score).groupby(group).rank().to_numpy()
        ranks = np.bincount(group[positive], rank[positive], self.n_groups)
        within = ranks - with_class * (with_class + 1) / 2
        pairs = np.bincount(group, won, self.n_groups) - within
        wanted = (positive.sum() - with_class) * ((~positive).sum() - others)
        right = won[positive].sum()
        with np.errstate(invalid="ignore", divide="ignore"):
            whole = right / (positive.sum() * (~positive).sum())
            return np.concatenate([[whole], (right - pairs) / wanted])

    # How the scores were sampled

    def over_images(self, **how) -> Sampling:
        """For scores in which every image counts the same, see :meth:`Sampling.of_sizes`."""
        return Sampling.of_sizes(self.images_per_group, n=self.n_images, **how)

    def over_classes(self, likeness: float = PRIOR_LIKENESS, size: float | None = None) -> Sampling:
        """For scores in which every class that occurs counts the same; ``size`` as of
        :class:`Sampling`, by default that of a mean of recalls.
        """
        present = self.n_true > 0
        counts = self.class_counts[:, present]
        totals = self.n_true[present]
        kinds = len(totals)
        effects = np.array([likeness_effect(column, likeness) for column in counts.T])
        own_size = kinds**2 / (1 / totals).sum()
        stratum = strata_of(counts)
        shares = counts / totals
        pure = stratum.any()
        influence = np.sqrt((shares**2).sum(axis=1)) if pure else shares.sum(axis=1)
        expected = own_size * (effects / totals).sum() / kinds**2
        return Sampling(
            influence / kinds, stratum, float(own_size if size is None else size), float(expected)
        )

    def over_rankings(self, auc: np.ndarray, kinds: Sequence[int] | None = None) -> Sampling:
        """For the mean AUC of the classes ``kinds`` (all that are defined), ``auc`` (classes,).

        The size is that of a share with the variance of Hanley and McNeil (1982), the larger of its
        two directions.
        """
        wanted = range(len(self.classes)) if kinds is None else kinds
        sizes = [
            _size_of_auc(auc[kind], self.n_true[kind], self.n_images - self.n_true[kind])
            for kind in wanted
            if np.isfinite(auc[kind])
        ]
        size = 1 / np.mean(1 / np.sqrt(sizes)) ** 2 if sizes else 0.0
        return self.over_classes(size=size)

    def images_of_half_the_loss(self) -> int:
        """How few images make up half of the log-loss, mean over the repeats."""
        falling = np.sort(self.losses)[::-1].cumsum()
        rows = int(np.searchsorted(falling, falling[-1] / 2)) + 1
        return -(-rows // self.n_repeats)

    def claimed_variance(self) -> float:
        """Variance of the log-loss of one image if the probabilities were right, mean."""
        logarithm = np.log(np.clip(self.probabilities, np.finfo(float).eps, 1))
        mean = (self.probabilities * logarithm).sum(axis=1)
        square = (self.probabilities * logarithm**2).sum(axis=1)
        return float((square - mean**2).mean())

    def calibration(self) -> CalibrationError:
        confidence, right = confidence_and_right(self.probabilities, self.true)
        which = bins_of(confidence, CALIBRATION_BINS)
        return calibration_error(confidence, right, which, self.group, self.repeat)


def _without_each(parts: np.ndarray) -> np.ndarray:
    """(1 + groups, ...): the sum of (groups, ...), and the sum without each of them."""
    total = parts.sum(axis=0, keepdims=True)
    return np.concatenate([total, total - parts])


def _size_of_auc(auc: float, n_positive: float, n_negative: float) -> float:
    few = min(n_positive, n_negative)
    many = max(n_positive, n_negative)
    auc = max(auc, 1 - auc)
    spread = 1 + (few - 1) * (1 - auc) / (2 - auc) + (many - 1) * auc / (1 + auc)
    return float(few * many / spread)


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is defined; NaN where nothing is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def _tidy(count: float) -> int | float:
    """A count averaged over repeats: whole where it is whole."""
    return round(float(count)) if abs(count - round(count)) < 1e-9 else round(float(count), 2)


def check_one_model(predictions: Predictions) -> None:
    """Refuse a table that holds no rows, several models or splits, or images that change between
    repeats.
    """
    table = predictions.table
    if len(table) == 0:
        raise PredictionsError(
            "predictions", "the table is empty.", "Run the notebook that predicts first."
        )
    for column in ("model", "split"):
        several = sorted(map(str, table[column].unique()))
        if len(several) > 1:
            raise PredictionsError(
                "predictions",
                f"the column {column} holds {several}.",
                f"Choose one with where({column}=...).",
            )
    for column in ("label", "group"):
        differing = table.groupby("id")[column].nunique()
        if (differing > 1).any():
            raise PredictionsError(
                f"predictions, image {differing.idxmax()}",
                f"its {column} is not the same in every fold.",
                "Each image has one.",
            )
    within = table.groupby("repeat")["id"].apply(lambda ids: ids.duplicated().any())
    if within.any():
        raise PredictionsError(
            "predictions",
            f"in repeat {within.idxmax()} an image is predicted in several folds.",
            "Within a repeat each image is tested once.",
        )


def logarithms(predictions: Predictions) -> np.ndarray:
    """(n, classes) logarithms of the probabilities, none of them minus infinity."""
    return np.log(np.clip(predictions.probabilities, np.finfo(float).tiny, 1))


def confidence_and_right(
    probabilities: np.ndarray, true: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the most probable class, and 1 where that class is the ``true`` one, (n,) int;
    both (n,) float64.

    Calibration is about the probabilities, so a threshold that moved ``predicted`` plays no part
    here.
    """
    right = probabilities.argmax(axis=1) == true
    return probabilities.max(axis=1), right.astype(np.float64)


def bins_of(values: np.ndarray, bins: int) -> np.ndarray:
    """(n,) int64 numbers, without gaps, of bins with about equal counts; equal values stay
    together, so there may be fewer bins.
    """
    edges = np.unique(np.quantile(values, np.arange(1, bins) / bins, method="higher"))
    which = np.searchsorted(edges, values, side="right")
    return np.unique(which, return_inverse=True)[1].astype(np.int64)


def binned_shares(table: pd.DataFrame, hits: np.ndarray, which: np.ndarray) -> list[Estimate]:
    """The share of ``hits`` (n,) in each bin ``which`` (n,) of the rows of a predictions table,
    with its interval over groups; what is repeated counts once.
    """
    group, groups = pd.factorize(table["group"], sort=True)
    repeats = table["repeat"].nunique()
    shares = []
    for index in range(int(which.max()) + 1):
        inside = which == index
        found = np.bincount(group[inside], hits[inside], len(groups)) / repeats
        sizes = np.bincount(group[inside], minlength=len(groups)) / repeats
        n = int(table["id"][inside].nunique())
        shares.append(grouped_share(found, sizes, n, repeats=repeats))
    return shares


def reliability_bins(predictions: Predictions) -> pd.DataFrame:
    """How often the model is right at each level of confidence.

    One row per bin of about equal count (equal confidences stay together, so there may be fewer):
    ``confidence`` (mean), ``accuracy`` with ``low`` and ``high`` (95 %, over groups; None where
    there is none), ``n`` images, ``rows`` (images times repeats), ``method``. Confidence is the
    probability of the most probable class.
    """
    check_one_model(predictions)
    confidence, right = confidence_and_right(predictions.probabilities, predictions.true_index)
    which = bins_of(confidence, CALIBRATION_BINS)
    rows = []
    for index, accuracy in enumerate(binned_shares(predictions.table, right, which)):
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


def calibration_of(predictions: Predictions) -> CalibrationError:
    """The expected calibration error: mean distance between confidence and accuracy over bins of
    about equal count, the mean over repeats (Naeini et al. 2015); and that of a calibrated model.
    """
    return GroupSums.of(predictions).calibration()


def score_table(metrics: dict) -> pd.DataFrame:
    """The scores of :func:`evaluate` as text for a report: Score, Value, 95 % interval, n, and as
    how many independent images they are good.
    """
    scores = {label: metrics[name] for name, label in SCORE_NAMES.items()}
    titles = {"precision": "Precision", "recall": "Recall", "f1": "F1", "auc": "AUC"}
    for name, entry in metrics["per_class"].items():
        scores |= {f"{title} of {name}": entry[score] for score, title in titles.items()}
    rows = []
    for label, score in scores.items():
        value = f"not defined: {score.reason}" if score.value is None else f"{score.value:.3f}"
        row = {"Score": label, "Value": value, "95 % interval": format_interval(score)}
        fewer = score.n_effective is not None and score.low is not None
        row |= {"n": score.n, INDEPENDENT: f"{score.n_effective:.0f}" if fewer else ""}
        rows.append(row)
    table = pd.DataFrame(rows)
    return table if table[INDEPENDENT].any() else table.drop(columns=INDEPENDENT)


def format_interval(score: Estimate) -> str:
    """ "0.905 to 0.954", with what must be said about it in brackets; or the reason why there is
    none.
    """
    if score.value is None:
        return "none"
    if score.low is None:
        return f"none: {score.reason}"
    text = f"{score.low:.3f} to {score.high:.3f}"
    return f"{text} ({score.note})" if score.note else text
