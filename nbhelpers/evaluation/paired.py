"""Two models on the same images: differences with intervals, and tests that know the images are the
same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.intervals import (
    PRIOR_LIKENESS_OF_DIFFERENCES,
    Difference,
    Sampling,
    difference_interval,
)
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import GroupSums

COMPARED = ("accuracy", "balanced_accuracy", "macro_f1", "auc")
KEYS = ["id", "repeat", "fold", "split"]


def compare(a: Predictions, b: Predictions) -> dict:
    """Score differences a - b on the same images and folds.

    A :class:`~nbhelpers.core.intervals.Difference` for accuracy, balanced accuracy, macro-F1 and
    AUC, over groups. ``mcnemar``: the images that only one of the two gets right (with repeats: by
    the class of the mean probability per image), and the exact test where every group is one image;
    elsewhere ``p`` is None, as the test takes images of a group as independent. Raises
    PredictionsError when images, folds, labels, groups or classes differ, saying which.
    """
    a, b = _aligned(a, b)
    sums = GroupSums.of(a)
    other = GroupSums.of(b)
    return {
        "model_a": str(a.table["model"].iloc[0]),
        "model_b": str(b.table["model"].iloc[0]),
        "n_images": sums.n_images,
        "n_groups": sums.n_groups,
        "n_repeats": sums.n_repeats,
        **differences_of(sums, other),
        "mcnemar": _mcnemar(a, b, sums),
    }


def differences_of(sums: GroupSums, other: GroupSums) -> dict[str, Difference]:
    """The differences of :func:`compare`, of two models whose rows stand in the same order."""
    scores_a = sums.scores()
    scores_b = other.scores()
    found = {}
    share = sums.n_true / sums.n_true.sum()
    equal = (sums.n_true > 0) / (sums.n_true > 0).sum()
    differing = (sums.chosen == sums.true) != (other.chosen == other.true)
    differing = float(differing.sum()) / sums.n_repeats
    over_classes = sums.over_classes(PRIOR_LIKENESS_OF_DIFFERENCES)
    over_images, fixed = _over_images(sums)
    for name in COMPARED:
        difference = scores_a[name] - scores_b[name]
        sampling = over_classes
        weights = equal
        if name == "accuracy":
            sampling = over_images
            weights = share
            if fixed:
                recall = np.nan_to_num(scores_a["recall"]) - np.nan_to_num(scores_b["recall"])
                difference[1:] = (recall * share).sum(axis=1)[1:]
        found[name] = replace(
            difference_interval(
                difference[0],
                difference[1:],
                sampling,
                sums.n_images,
                image_variance=_image_variance(sums, other, weights),
                differing=differing,
            ),
            a=float(scores_a[name][0]),
            b=float(scores_b[name][0]),
        )
    return found


def _over_images(sums: GroupSums) -> tuple[Sampling, bool]:
    """How a difference in accuracy was sampled, and whether the shares of the classes are held
    fixed when a group is left out.

    They are, where the classes lie in several groups each: a floor that always names the commonest
    class differs from a model by as much as one class from the other, and that alone would drown
    the difference.
    """
    counts = sums.class_counts
    by_class = sums.over_classes(PRIOR_LIKENESS_OF_DIFFERENCES).stratum
    alone = bool((counts[:, sums.n_true > 0] > 0).sum(axis=0).min() < 2)
    sampling = sums.over_images(
        likeness=PRIOR_LIKENESS_OF_DIFFERENCES, stratum=None if alone else by_class
    )
    return sampling, not alone


def _image_variance(sums: GroupSums, other: GroupSums, weights: np.ndarray) -> float:
    """Variance of the difference if images were independent and the classes as they are.

    ``weights``: (classes,) weight of each in the score. One pseudo-image on either side keeps it
    above 0 (Agresti and Min 2005; Bonett and Price 2012).
    """
    change = (sums.chosen == sums.true).astype(float) - (other.chosen == other.true)
    n = sums.n_images
    total = 0.0
    for kind, weight in enumerate(weights):
        mine = change[sums.true == kind]
        if len(mine):
            within = float((mine**2).mean() - mine.mean() ** 2)
            total += weight**2 * (n * within + 2) / (n + 2) / sums.n_true[kind]
    return total


def _mcnemar(a: Predictions, b: Predictions, sums: GroupSums) -> dict:
    from sklearn.metrics import confusion_matrix
    from statsmodels.stats.contingency_tables import mcnemar

    right = [_right_per_image(one, sums.n_repeats) for one in (a, b)]
    table = confusion_matrix(*right, labels=[True, False]).tolist()
    independent = sums.n_groups == sums.n_images
    return {
        "both_right": table[0][0],
        "only_a_right": table[0][1],
        "only_b_right": table[1][0],
        "both_wrong": table[1][1],
        "p": float(mcnemar(table, exact=True).pvalue) if independent else None,
        "n": len(right[0]),
        "of": "the mean probability over the repeats"
        if sums.n_repeats > 1
        else "the predicted class",
    }


def _right_per_image(predictions: Predictions, n_repeats: int) -> np.ndarray:
    """(images,) bool in the order of the ids."""
    if n_repeats == 1:
        table = predictions.table.sort_values("id")
        return (table["predicted"] == table["label"]).to_numpy(bool)
    grouped = predictions.table.groupby("id", sort=True)
    top = grouped[predictions.probability_columns].mean().to_numpy().argmax(axis=1)
    return np.asarray(predictions.classes, dtype=object)[top] == grouped["label"].first().to_numpy()


def _aligned(a: Predictions, b: Predictions) -> tuple[Predictions, Predictions]:
    """Both tables in the same order, or the reason why that cannot be."""
    if a.classes != b.classes:
        raise PredictionsError(
            "comparison",
            f"the classes differ: {list(a.classes)} and {list(b.classes)}.",
            "Only models of the same task can be compared.",
        )
    tables = [one.table.sort_values(KEYS).reset_index(drop=True) for one in (a, b)]
    parts = {"images": ["id"], "folds": KEYS, "labels": ["id", "label"], "groups": ["id", "group"]}
    for what, columns in parts.items():
        ours, theirs = (set(table[columns].itertuples(index=False, name=None)) for table in tables)
        if ours != theirs:
            only = sorted(ours - theirs) or sorted(theirs - ours)
            where = ", ".join(
                f"{name} {value}" for name, value in zip(columns, only[0], strict=True)
            )
            raise PredictionsError(
                "comparison",
                f"the two models have different {what}: {len(ours - theirs)} only in the first, "
                f"{len(theirs - ours)} only in the second, e.g. {where}.",
                "Predict both with the same split.",
            )
    return Predictions(tables[0], a.classes), Predictions(tables[1], b.classes)
