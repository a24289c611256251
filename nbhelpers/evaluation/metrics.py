"""Scores of a predictions table, each with its count and its 95 % interval."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    BOOTSTRAP,
    bootstrap_interval,
    group_weights,
    proportion_interval,
    resampled_means,
)
from nbhelpers.core.predictions import Predictions

CALIBRATION_BINS = 10
FEWER_RESAMPLES = 1000  # where many intervals are drawn in one figure
SCORE_NAMES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_f1": "Macro-F1",
    "auc": "AUC (one against the rest, mean)",
    "ece": "Expected calibration error",
    "log_loss": "Log-loss",
}


def evaluate(predictions: Predictions, *, resamples: int = 2000, seed: int = 0) -> dict:
    """All scores of one model.

    ``n_images``, ``n_groups``, ``n_repeats``, ``classes`` (true images per class); ``accuracy``,
    ``balanced_accuracy``, ``macro_f1``, ``auc``, ``ece``, ``log_loss``, each an Estimate;
    ``per_class`` with ``precision``, ``recall``, ``f1``, ``auc`` (Estimates), ``n_true``,
    ``n_predicted``; ``confusion_matrix`` (rows true, columns predicted, added up over the repeats;
    ``confusion_matrix_is`` says so); ``per_repeat`` with accuracy and macro-F1.

    Right and wrong follow the column ``predicted``; AUC, log-loss and calibration follow the
    probabilities. With repeated cross-validation a score is the mean over the repeats, and each
    resample draws the same groups in every repeat. What is not defined (precision of a class never
    predicted, AUC of a class without images) is None with its reason, never 0. Raises
    PredictionsError on an empty table, several models or several splits, and on an image whose
    label or group changes between repeats.
    """
    sums = GroupSums(predictions)
    everything = np.ones((1, sums.n_groups))
    point = sums.scores(everything)
    drawn = sums.resampled(resamples, seed)

    def score(name: str, **limits) -> Estimate:
        value = point[name][0]
        return bootstrap_interval(
            value, drawn[name], n=sums.n_images, n_groups=sums.n_groups, **limits
        )

    by_class = {
        name: _scores_of_class(sums, point, drawn, index)
        for index, name in enumerate(predictions.classes)
    }
    balanced_accuracy = score("balanced_accuracy", lowest=0, highest=1)
    auc = Estimate.undefined("no class has both images and other images to rank them against")
    if not np.isnan(point["auc"][0]):
        auc = score("auc", lowest=0, highest=1)
    absent = [name for name, entry in by_class.items() if entry["n_true"] == 0]
    if absent:
        note = f"without {', '.join(absent)}: no images"
        balanced_accuracy = replace(balanced_accuracy, note=note)
        auc = replace(auc, note=note)
    meaning = "rows: true class, columns: predicted class"
    if sums.n_repeats > 1:
        meaning += f"; added up over {sums.n_repeats} repeats"
    repeats = sums.by_repeat(everything)
    return {
        "n_images": sums.n_images,
        "n_groups": sums.n_groups,
        "n_repeats": sums.n_repeats,
        "classes": {name: entry["n_true"] for name, entry in by_class.items()},
        "accuracy": proportion_interval(
            point["accuracy"][0],
            drawn["accuracy"],
            n=sums.n_images,
            group_hits=sums.hits_per_group,
            group_sizes=sums.images_per_group,
        ),
        "balanced_accuracy": balanced_accuracy,
        "macro_f1": score("macro_f1", lowest=0, highest=1),
        "auc": auc,
        "ece": score("ece", reflect=True, lowest=0, highest=1),
        "log_loss": score("log_loss", lowest=0),
        "per_class": by_class,
        "confusion_matrix": sums.confusion_matrix.astype(int).tolist(),
        "confusion_matrix_is": meaning,
        "per_repeat": [
            {
                "repeat": int(name),
                "accuracy": float(repeats["accuracy"][0, at]),
                "macro_f1": float(repeats["macro_f1"][0, at]),
            }
            for at, name in enumerate(sums.repeats)
        ],
    }


def _scores_of_class(sums: GroupSums, point: dict, drawn: dict, index: int) -> dict:
    name = sums.classes[index]
    true, hits, chosen = sums.per_group(index)
    n_true = round(float(true.sum()))
    n_predicted = round(float(chosen.sum()))

    def proportion(score: str, sizes: np.ndarray, n: int, reason: str) -> Estimate:
        value = point[score][0, index]
        if np.isnan(value):
            return Estimate.undefined(reason)
        samples = drawn[score][:, index]
        return proportion_interval(value, samples, n=n, group_hits=hits, group_sizes=sizes)

    def other(score: str, reason: str) -> Estimate:
        value = point[score][0, index]
        if np.isnan(value):
            return Estimate.undefined(reason)
        n_groups = int((true > 0).sum())
        samples = drawn[score][:, index]
        return bootstrap_interval(value, samples, n=n_true, n_groups=n_groups, lowest=0, highest=1)

    lacking = "no image" if n_true == 0 else "all images"
    return {
        "n_true": _tidy(true.sum()),
        "n_predicted": _tidy(chosen.sum()),
        "precision": proportion(
            "precision", chosen, n_predicted, f"no image was predicted as {name}"
        ),
        "recall": proportion("recall", true, n_true, f"no image is of the class {name}"),
        "f1": other(
            "f1_by_class", f"{name} occurs neither among the labels nor among the predictions"
        ),
        "auc": other("auc_by_class", f"{name} has {lacking}, so nothing can be ranked"),
    }


class GroupSums:
    """What the scores are made of, summed per group, so that a resample is one matrix product.

    Used by :func:`evaluate` and by the paired comparison, which hands the same weights to two
    models.
    """

    def __init__(self, predictions: Predictions):
        table = predictions.table
        check_one_model(predictions)
        self.classes = predictions.classes
        self.true = predictions.true_index
        self.chosen = predictions.predicted_index
        if (self.chosen < 0).any():
            wrong = table["predicted"].iloc[int(np.flatnonzero(self.chosen < 0)[0])]
            raise PredictionsError(
                "predictions",
                f"the predicted class {wrong!r} is none of the classes.",
                f"The classes are {list(self.classes)}.",
            )
        self.group, groups = pd.factorize(table["group"], sort=True)
        self.repeat, self.repeats = pd.factorize(table["repeat"], sort=True)
        self.n_groups = len(groups)
        self.n_repeats = len(self.repeats)
        self.n_images = int(table["id"].nunique())
        self.probabilities = predictions.probabilities
        kinds = len(self.classes)

        cell = (self.repeat * kinds + self.true) * kinds + self.chosen
        self.confusion = self._per_group(cell, self.n_repeats * kinds * kinds)
        self.confusion_matrix = (
            self.confusion.sum(axis=0).reshape(self.n_repeats, kinds, kinds).sum(axis=0)
        )
        self.images_per_group = (
            self._per_group(self.repeat, self.n_repeats).sum(axis=1) / self.n_repeats
        )
        self.hits_per_group = (
            np.bincount(self.group, self.true == self.chosen, self.n_groups) / self.n_repeats
        )
        likelihood = self.probabilities[np.arange(len(table)), self.true]
        surprise = -np.log(np.clip(likelihood, np.finfo(float).eps, 1))
        self.surprise = self._per_group(self.repeat, self.n_repeats, surprise)

        confidence, right = confidence_and_right(predictions)
        bins = bin_of(confidence, bin_edges(confidence, CALIBRATION_BINS))
        self.n_bins = int(bins.max()) + 1
        self.gaps = self._per_group(
            self.repeat * self.n_bins + bins, self.n_repeats * self.n_bins, confidence - right
        )
        # AUC needs the images themselves: sorted once per repeat and class, with ties marked.
        self.orders = [
            [self._order(np.flatnonzero(self.repeat == repeat), kind) for kind in range(kinds)]
            for repeat in range(self.n_repeats)
        ]

    def _per_group(
        self, cell: np.ndarray, cells: int, values: np.ndarray | None = None
    ) -> np.ndarray:
        """(groups, cells): counts, or sums of ``values``, per group and cell."""
        flat = np.bincount(self.group * cells + cell, values, self.n_groups * cells)
        return flat.reshape(self.n_groups, cells).astype(np.float64)

    def _order(self, rows: np.ndarray, kind: int):
        rows = rows[np.argsort(self.probabilities[rows, kind], kind="stable")]
        values = self.probabilities[rows, kind]
        starts = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
        return self.group[rows], self.true[rows] == kind, starts

    def per_group(self, kind: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """True, rightly predicted and predicted images of a class per group, (groups,), mean over
        repeats.
        """
        cells = self.confusion.reshape(
            self.n_groups, self.n_repeats, *[len(self.classes)] * 2
        ).mean(axis=1)
        return cells[:, kind].sum(axis=1), cells[:, kind, kind], cells[:, :, kind].sum(axis=1)

    def by_repeat(self, weights: np.ndarray, with_auc: bool = True) -> dict[str, np.ndarray]:
        """Every score per resample and repeat, (resamples, repeats) or (resamples, repeats,
        classes); NaN where it is not defined. ``weights`` is (resamples, groups) float."""
        shape = (len(weights), self.n_repeats)
        kinds = len(self.classes)
        cells = (weights @ self.confusion).reshape(*shape, kinds, kinds)
        hits = np.einsum("brkk->brk", cells)
        true = cells.sum(axis=3)
        chosen = cells.sum(axis=2)
        total = cells.sum(axis=(2, 3))
        with np.errstate(invalid="ignore", divide="ignore"):
            found = {
                "accuracy": hits.sum(axis=2) / total,
                "precision": hits / chosen,
                "recall": hits / true,
                "f1_by_class": 2 * hits / (true + chosen),
                "log_loss": (weights @ self.surprise) / total,
                "ece": abs((weights @ self.gaps).reshape(*shape, self.n_bins)).sum(axis=2) / total,
            }
            if with_auc:
                found["auc_by_class"] = np.stack(
                    [
                        np.stack([_weighted_auc(weights, *order) for order in orders], axis=1)
                        for orders in self.orders
                    ],
                    axis=1,
                )
        found["balanced_accuracy"] = _mean(found["recall"], 2)
        found["macro_f1"] = _mean(found["f1_by_class"], 2)
        if with_auc:
            found["auc"] = _mean(found["auc_by_class"], 2)
        return found

    def scores(self, weights: np.ndarray, with_auc: bool = True) -> dict[str, np.ndarray]:
        """As :meth:`by_repeat`, averaged over the repeats."""
        return {
            name: _mean(values, 1) for name, values in self.by_repeat(weights, with_auc).items()
        }

    def resampled(
        self, resamples: int, seed: int, scores: Callable | None = None
    ) -> dict[str, np.ndarray]:
        """The scores of each bootstrap resample, (resamples, ...)."""
        rows = int(np.clip(1_000_000 // max(len(self.group), 1), 1, 500))
        pieces = [
            (scores or self.scores)(weights)
            for weights in group_weights(self.n_groups, resamples, seed, rows)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _weighted_auc(
    weights: np.ndarray, group: np.ndarray, positive: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Area under the ROC curve per row of ``weights``; ties count half. Images stand in the order
    of score.
    """
    weights = weights[:, group]
    above = np.add.reduceat(weights * positive, starts, axis=1)
    below = np.add.reduceat(weights * ~positive, starts, axis=1)
    ranked = np.cumsum(below, axis=1) - 0.5 * below
    return (above * ranked).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1))


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


def confidence_and_right(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the most probable class, and 1 where that class is the true one; both (n,)
    float64.

    Calibration is about the probabilities, so a threshold that moved ``predicted`` plays no part
    here.
    """
    probabilities = predictions.probabilities
    top = probabilities.argmax(axis=1)
    return probabilities.max(axis=1), (top == predictions.true_index).astype(np.float64)


def bin_edges(values: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges of bins with about equal counts; equal values stay together, so there may be
    fewer bins.
    """
    return np.unique(np.quantile(values, np.arange(1, bins) / bins, method="higher"))


def bin_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(n,) int64 bin numbers without gaps."""
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1].astype(
        np.int64
    )


@dataclass(frozen=True)
class BinnedShares:
    """A share in each of several bins of images: Estimates, and the shares of each resample,
    (resamples, bins), for what is made of several bins.
    """

    shares: list[Estimate]
    drawn: np.ndarray


def binned_shares(
    table: pd.DataFrame,
    hits: np.ndarray,
    which: np.ndarray,
    seed: int,
    resamples: int = FEWER_RESAMPLES,
) -> BinnedShares:
    """The share of ``hits`` (n,) in each bin ``which`` (n,) of the rows of a predictions table,
    with intervals that resample its groups; what is repeated counts once.
    """
    group, groups = pd.factorize(table["group"], sort=True)
    bins = int(which.max()) + 1
    repeats = table["repeat"].nunique()
    cell = group * bins + which
    shape = (len(groups), bins)
    found = np.bincount(cell, hits, len(groups) * bins).reshape(shape) / repeats
    sizes = np.bincount(cell, minlength=len(groups) * bins).reshape(shape) / repeats
    drawn = resampled_means(found, sizes, seed, resamples)
    shares = []
    for index in range(bins):
        inside = which == index
        share = proportion_interval(
            np.mean(hits[inside]),
            drawn[:, index],
            n=int(table["id"][inside].nunique()),
            group_hits=found[:, index],
            group_sizes=sizes[:, index],
        )
        shares.append(share)
    return BinnedShares(shares, drawn)


def reliability_bins(predictions: Predictions, seed: int = 0) -> pd.DataFrame:
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
    found = binned_shares(predictions.table, right, which, seed)
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
    sums = GroupSums(predictions)
    return float(sums.scores(np.ones((1, sums.n_groups)), with_auc=False)["ece"][0])


def aggregate_by_group(predictions: Predictions) -> Predictions:
    """One row per group (neuron, plate ...) from its images: mean of log-probabilities,
    renormalised.

    The group's name becomes the id; per model, run, repeat and split; ``fold`` is -1 where the
    images come from several folds. Raises PredictionsError when the images of a group have
    different labels.
    """
    table = predictions.table
    labels = table.groupby("group")["label"].nunique()
    if (labels > 1).any():
        raise PredictionsError(
            f"group {labels.idxmax()}",
            "its images have different labels.",
            "Only groups with one label can be scored as a whole.",
        )
    columns = predictions.probability_columns
    work = table.copy()
    work[columns] = np.log(np.clip(predictions.probabilities, np.finfo(float).tiny, 1))
    grouped = work.groupby(["model", "run", "repeat", "split", "group"], sort=True)
    means = grouped[columns].mean().to_numpy()
    probabilities = np.exp(means - means.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    result = grouped[["label", "fold"]].first()
    several = grouped["fold"].nunique() > 1
    result["fold"] = result["fold"].where(~several, -1)
    result = result.reset_index()
    result["id"] = result["group"]
    names = np.asarray(predictions.classes, dtype=object)
    result["predicted"] = names[probabilities.argmax(axis=1)]
    result[columns] = probabilities
    kept = [name for name in table.columns if name in result]
    return Predictions(result[kept], predictions.classes)


def score_table(metrics: dict) -> pd.DataFrame:
    """The scores of :func:`evaluate` as text for a report: Score, Value, 95 % interval, n."""
    scores = {label: metrics[name] for name, label in SCORE_NAMES.items()}
    titles = {"precision": "Precision", "recall": "Recall", "f1": "F1", "auc": "AUC"}
    for name, entry in metrics["per_class"].items():
        scores |= {f"{title} of {name}": entry[score] for score, title in titles.items()}
    rows = [
        {
            "Score": label,
            "Value": format_value(score),
            "95 % interval": format_interval(score),
            "n": score.n,
        }
        for label, score in scores.items()
    ]
    return pd.DataFrame(rows)


def format_value(score: Estimate) -> str:
    """ "0.931", or "not defined: ..." with the reason."""
    return f"not defined: {score.reason}" if score.value is None else f"{score.value:.3f}"


def format_interval(score: Estimate) -> str:
    """ "0.905 to 0.954", with what must be said about it in brackets; or the reason why there is
    none.
    """
    if score.value is None:
        return "none"
    if score.low is None:
        return f"none: {score.reason}"
    text = f"{score.low:.3f} to {score.high:.3f}"
    if not score.method.startswith(BOOTSTRAP):
        text += f" ({score.method})"
    return f"{text} ({score.note})" if score.note else text
