"""Two models on the same images: differences with intervals, and tests that know the images are the
same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import bootstrap_interval
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import GroupSums

COMPARED = ("accuracy", "balanced_accuracy", "macro_f1")
KEYS = ["id", "repeat", "fold", "split"]


@dataclass(frozen=True)
class Difference(Estimate):
    """How much higher model ``a`` scores than model ``b``; ``p`` is the two-sided bootstrap
    p-value, None where there is one group.
    """

    a: float = math.nan
    b: float = math.nan
    p: float | None = None

    def as_dict(self) -> dict[str, object]:
        found = super().as_dict()
        found["difference"] = found.pop("value")
        return found


def compare(a: Predictions, b: Predictions, resamples: int = 2000, seed: int = 0) -> dict:
    """Score differences a - b on the same images and folds.

    A :class:`Difference` for accuracy, balanced accuracy and macro-F1, where every resample draws
    the same groups for both models. ``mcnemar``: exact test on the images that only one of the two
    gets right (with repeats: the class of the mean probability per image). Raises PredictionsError
    when images, folds, labels, groups or classes differ, saying which.
    """
    a, b = _aligned(a, b)
    sums = GroupSums(a)
    other = GroupSums(b)

    def both(weights: np.ndarray) -> dict[str, np.ndarray]:
        first = sums.scores(weights, with_auc=False)
        second = other.scores(weights, with_auc=False)
        found = {f"a {name}": first[name] for name in COMPARED}
        return found | {f"b {name}": second[name] for name in COMPARED}

    point = both(np.ones((1, sums.n_groups)))
    drawn = sums.resampled(resamples, seed, both)
    found = {
        "model_a": str(a.table["model"].iloc[0]),
        "model_b": str(b.table["model"].iloc[0]),
        "n_images": sums.n_images,
        "n_groups": sums.n_groups,
        "n_repeats": sums.n_repeats,
    }
    for name in COMPARED:
        value_a = float(point[f"a {name}"][0])
        value_b = float(point[f"b {name}"][0])
        differences = drawn[f"a {name}"] - drawn[f"b {name}"]
        difference = bootstrap_interval(
            value_a - value_b, differences, n=sums.n_images, n_groups=sums.n_groups
        )
        p = _p_value(differences, sums.n_groups)
        found[name] = Difference(**vars(difference), a=value_a, b=value_b, p=p)
    found["mcnemar"] = _mcnemar(a, b, sums.n_repeats)
    return found


def _p_value(differences: np.ndarray, n_groups: int) -> float | None:
    """Twice the smaller share of resamples on one side of zero, one added so that it is never
    exactly 0.
    """
    if n_groups < 2:
        return None
    below = (1 + (differences <= 0).sum()) / (1 + len(differences))
    above = (1 + (differences >= 0).sum()) / (1 + len(differences))
    return float(min(1.0, 2 * min(below, above)))


def _mcnemar(a: Predictions, b: Predictions, n_repeats: int) -> dict:
    from statsmodels.stats.contingency_tables import mcnemar

    right_a = _right_per_image(a, n_repeats)
    right_b = _right_per_image(b, n_repeats)
    table = [
        [int((right_a & right_b).sum()), int((right_a & ~right_b).sum())],
        [int((~right_a & right_b).sum()), int((~right_a & ~right_b).sum())],
    ]
    return {
        "both_right": table[0][0],
        "only_a_right": table[0][1],
        "only_b_right": table[1][0],
        "both_wrong": table[1][1],
        "p": float(mcnemar(table, exact=True).pvalue),
        "n": len(right_a),
        "of": "the mean probability over the repeats" if n_repeats > 1 else "the predicted class",
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
    for columns, what in ((["id"], "images"), (KEYS, "folds")):
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
    if len(tables[0]) != len(tables[1]):
        raise PredictionsError(
            "comparison",
            f"{len(tables[0])} rows against {len(tables[1])}.",
            "Give one model on each side.",
        )
    for column in ("label", "group"):
        differing = (tables[0][column].to_numpy() != tables[1][column].to_numpy()).nonzero()[0]
        if len(differing):
            raise PredictionsError(
                f"comparison, image {tables[0]['id'].iloc[differing[0]]}",
                f"the {column} differs between the two ({len(differing)} rows).",
                "Predict both from the same image set.",
            )
    return Predictions(tables[0], a.classes), Predictions(tables[1], b.classes)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for their number by Holm's method (1979), (n,) float64."""
    from statsmodels.stats.multitest import multipletests

    p_values = np.asarray(p_values, dtype=float)
    return multipletests(p_values, method="holm")[1] if len(p_values) else p_values


def compare_with_reference(
    predictions: Predictions, reference: str, *, resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Every other model of the table against the model named ``reference``; one row per model.

    Columns: ``model``, ``reference``, ``n``, then per score ``<score>``, ``<score> difference``
    (model - reference), ``<score> low``, ``<score> high``, ``<score> p`` and ``<score> p (Holm)``,
    and last ``right alone`` and ``reference right alone`` (images that only one of the two gets
    right), ``McNemar p`` and ``McNemar p (Holm)``. Holm's method adjusts for the number of models.
    Raises PredictionsError when the reference is missing or stands alone, or images and folds
    differ.
    """
    names = list(dict.fromkeys(predictions.table["model"]))
    if reference not in names:
        raise PredictionsError(
            "comparison", f"there is no model {reference!r}.", f"The models are {names}."
        )
    others = [name for name in names if name != reference]
    if not others:
        raise PredictionsError(
            "comparison", f"{reference!r} is the only model.", "Add predictions of another one."
        )
    rows = []
    for name in others:
        found = compare(
            predictions.where(model=name), predictions.where(model=reference), resamples, seed
        )
        row = {"model": name, "reference": reference, "n": found["n_images"]}
        for score in COMPARED:
            entry = found[score]
            row[score] = entry.a
            row |= entry.columns(f"{score} difference", f"{score} low", f"{score} high")
            row[f"{score} p"] = entry.p
        alone = found["mcnemar"]
        row |= {
            "right alone": alone["only_a_right"],
            "reference right alone": alone["only_b_right"],
            "McNemar p": alone["p"],
        }
        rows.append(row)
    table = pd.DataFrame(rows)
    for column in [name for name in table.columns if name.endswith(" p")]:
        if table[column].notna().all():
            table.insert(table.columns.get_loc(column) + 1, f"{column} (Holm)", holm(table[column]))
    return table
