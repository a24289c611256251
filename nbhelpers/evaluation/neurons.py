"""From synapses to neurons: many predictions of one neuron combined, and how much their errors go
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import binom
from scipy.stats import f as f_distribution

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    FEWEST_GROUPS,
    LEVEL,
    Sampling,
    bounded_interval,
    mean_size,
    mean_squares,
    means_without_each,
)
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import check_one_model, logarithms

DRAWS = 200  # random sets of k synapses per neuron and repeat
COUNTS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000)


def neuron_table(predictions: Predictions) -> pd.DataFrame:
    """One row per neuron: ``neuron``, ``label``, ``predicted``, ``right`` (1 or 0), ``synapses``,
    ``synapses_right`` (share) and ``probability`` (of its true class, combined).

    The synapses of a neuron are combined by the mean of their log-probabilities. With repeats
    ``right``, ``synapses_right`` and ``probability`` are means over them, and ``predicted`` is the
    commonest. One model and one split. Raises PredictionsError when the synapses of a neuron have
    different labels.
    """
    check_one_model(predictions)
    combined = aggregate_by_group(predictions)
    whole = combined.table.assign(
        right=(combined.predicted_index == combined.true_index).astype(float),
        probability=combined.probabilities[np.arange(len(combined)), combined.true_index],
    )
    table = predictions.table.assign(right=predictions.predicted_index == predictions.true_index)
    grouped = table.groupby("group", sort=True)
    found = whole.groupby("group", sort=True).agg(
        label=("label", "first"),
        predicted=("predicted", lambda names: names.value_counts().index[0]),
        right=("right", "mean"),
        probability=("probability", "mean"),
    )
    found.insert(3, "synapses", grouped["id"].nunique())
    found.insert(4, "synapses_right", grouped["right"].mean())
    return found.reset_index(names="neuron")


def neuron_accuracy(predictions: Predictions) -> Estimate:
    """Share of neurons whose combined class is right; ``n`` are neurons.

    The interval is :func:`neuron_interval`: neurons, not synapses, are what was sampled.
    """
    table = neuron_table(predictions)
    return neuron_interval(table["right"].to_numpy(), int(table["synapses"].sum()))


def neuron_interval(values: np.ndarray, n_synapses: int | None = None) -> Estimate:
    """95 % interval of a mean over neurons of values from 0 to 1, e.g. the accuracy within each.

    Neurons are what was sampled: with each all right or all wrong, as many independent outcomes as
    there are neurons; where they scatter less, more of them, never more than ``n_synapses``
    (:func:`nbhelpers.core.intervals.bounded_interval`). None below three neurons.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return Estimate.undefined("there are no groups")
    value = float(values.mean())
    left = means_without_each(values, np.ones(n))
    sampling = Sampling.of_sizes(np.ones(n), least_effect=n / max(n_synapses or n, n))
    return bounded_interval(value, left, sampling, n)


def neuron_curve(predictions: Predictions, *, seed: int = 0) -> pd.DataFrame:
    """Accuracy per neuron when only ``k`` of its synapses are seen, beside what independent errors
    would give.

    Columns: ``k``; ``accuracy`` with ``low``, ``high`` and ``method`` (:func:`neuron_interval`),
    over random sets of k synapses per neuron and repeat, without replacement; ``independent``: the
    same from k synapses drawn over all neurons of the class, so that every error stays as likely
    but none go together; ``binomial``: the majority of k votes that are each right with the
    accuracy of single synapses; ``n_neurons``.

    The same neurons stand at every k: those with as many synapses as the largest one, which is the
    number that nine in ten neurons have; ``attrs["left_out"]`` says how many have fewer. Ties count
    half. Raises PredictionsError when the synapses of a neuron have different labels, or a repeat
    lacks a neuron.
    """
    check_one_model(predictions)
    aggregate_by_group(predictions)  # refuses neurons with two labels
    table = predictions.table
    evidence = logarithms(predictions)
    synapses = table.groupby("group")["id"].nunique()
    most = max(1, int(np.quantile(synapses, 0.1, method="lower")))
    counts = [*(count for count in COUNTS if count < most), most]
    names = synapses.index[synapses >= most]
    rng = np.random.default_rng(seed)
    true = predictions.true_index
    rows_of = table.groupby(["repeat", "group"]).indices
    repeats = sorted(table["repeat"].unique())
    kept = table["group"].isin(names).to_numpy()
    seen = np.zeros((len(names), len(counts)))
    free = np.zeros((len(names), len(counts)))
    for at, name in enumerate(names):
        for repeat in repeats:
            if (repeat, name) not in rows_of:
                raise PredictionsError(
                    f"predictions, neuron {name}",
                    f"it is not predicted in repeat {repeat}.",
                    "Every repeat tests every neuron.",
                )
            rows = rows_of[repeat, name]
            label = true[rows[0]]
            order = rng.permuted(np.tile(rows, (DRAWS, 1)), axis=1)[:, :most]
            seen[at] += _right_at(evidence[order], counts, label)
            pool = np.flatnonzero(kept & (table["repeat"] == repeat).to_numpy() & (true == label))
            free[at] += _right_at(evidence[rng.choice(pool, (DRAWS, most))], counts, label)
    seen /= len(repeats)
    free /= len(repeats)
    right = (predictions.predicted_index == true)[kept]
    by_neuron = pd.Series(right.astype(float)).groupby(table["group"].to_numpy()[kept])
    share = by_neuron.mean().mean()  # each neuron alike
    rows = []
    for column, count in enumerate(counts):
        accuracy = neuron_interval(seen[:, column], int(synapses[names].sum()))
        votes = binom.sf(count // 2, count, share)
        if count % 2 == 0:  # half of the ties go the right way
            votes += 0.5 * binom.pmf(count // 2, count, share)
        rows.append(
            {
                "k": count,
                **accuracy.columns("accuracy"),
                "independent": free[:, column].mean(),
                "binomial": float(votes),
                "n_neurons": len(names),
                "method": accuracy.method or accuracy.reason,
            }
        )
    curve = pd.DataFrame(rows)
    curve.attrs["left_out"] = int((synapses < most).sum())
    return curve


def _right_at(evidence: np.ndarray, counts: Sequence[int], label: int) -> np.ndarray:
    """(counts,) share of the draws that are right; ``evidence`` is (draws, synapses, classes)."""
    sums = evidence.cumsum(axis=1)[:, np.asarray(counts) - 1]
    best = sums >= sums.max(axis=2, keepdims=True) - 1e-12
    return (best[..., label] / best.sum(axis=2)).mean(axis=0)


@dataclass(frozen=True)
class ErrorCorrelation(Estimate):
    """Intraclass correlation of right and wrong within neurons; ``n`` are neurons.

    ``synapses_per_neuron`` is weighted by size, so that ``design_effect``, 1 + (m - 1) x
    correlation, is exact; ``effective_synapses``: how many independent ones say as much about the
    accuracy.
    """

    n_synapses: int = 0
    synapses_per_neuron: float = 0.0
    design_effect: float | None = None
    effective_synapses: float | None = None


def error_correlation(predictions: Predictions) -> ErrorCorrelation:
    """How much the errors within a neuron go together: the intraclass correlation of right and
    wrong, by the one-way analysis-of-variance estimator (Ridout et al. 1999), with the interval of
    the F distribution (Searle 1971).

    0: independent errors; 1: a neuron is all right or all wrong. It may be below 0 by chance.
    Classes of unlike difficulty add to it. None, with the reason, when nothing varies or no neuron
    has two synapses.
    """
    check_one_model(predictions)
    hits = (predictions.predicted_index == predictions.true_index).astype(float)
    table = predictions.table.assign(right=hits)
    right = table.groupby(["group", "id"])["right"].mean()  # over repeats
    group = pd.factorize(right.index.get_level_values("group"), sort=True)[0]
    right = right.to_numpy()
    sizes = np.bincount(group)
    n = len(sizes)
    total = int(sizes.sum())
    usual = mean_size(sizes)
    found = ErrorCorrelation(None, n=n, n_synapses=total, synapses_per_neuron=usual)
    if n < 2:
        return replace(found, reason="there is only one group")
    if sizes.max() < 2:
        return replace(found, reason="no group has two synapses")
    between, within, size = mean_squares(right, group)
    if between + within < 1e-12:
        which = "right" if right.any() else "wrong"
        return replace(found, reason=f"all synapses are {which}")
    value = (between - within) / (between + (size - 1) * within)
    effect = max(1.0, 1 + (usual - 1) * value)
    found = replace(found, value=value, design_effect=effect, effective_synapses=total / effect)
    if n < FEWEST_GROUPS:
        return replace(found, reason=f"not assessable: there are {n} groups")
    # as if one synapse at least stood against its neuron, and one neuron against the others: with
    # none the interval had no width
    least = 1 - 1 / usual
    freedom = (n - 1, total - n)
    within = max(within, least / freedom[1])
    smaller = between / within / f_distribution.ppf((1 + LEVEL) / 2, *freedom)
    larger = max(between, least / freedom[0]) / within
    larger /= f_distribution.ppf((1 - LEVEL) / 2, *freedom)
    low = (smaller - 1) / (smaller + size - 1)
    high = (larger - 1) / (larger + size - 1)
    return replace(
        found,
        low=float(min(low, value)),
        high=float(min(1.0, max(high, value))),
        method="F distribution over groups",
    )


def neuron_sentences(
    curve: pd.DataFrame, correlation: ErrorCorrelation, unit: str = "neuron"
) -> list[str]:
    """What the curve and the correlation say, in words for a report; ``unit`` is that for one
    group.
    """
    first = curve.iloc[0]
    last = curve.iloc[-1]
    synapses = "synapse" if first["k"] == 1 else "synapses"
    said = [
        f"With {first['k']:.0f} {synapses} a {unit} is right in {first['accuracy']:.3f} of the "
        f"cases, with {last['k']:.0f} in {last['accuracy']:.3f} ({last['n_neurons']:.0f} {unit}s); "
        f"independent errors would give {last['independent']:.3f}."
    ]
    if curve.attrs.get("left_out"):
        said.append(
            f"{curve.attrs['left_out']} {unit}s have fewer than {last['k']:.0f} synapses and are "
            "not in the curve."
        )
    if correlation.low is None:
        said.append(
            f"How far errors within a {unit} go together cannot be told: {correlation.reason}."
        )
    else:
        said.append(
            f"The errors within a {unit} correlate with {correlation.text(2)}: "
            f"{correlation.n_synapses} synapses say as much about the accuracy as "
            f"{correlation.effective_synapses:.0f} independent ones would."
        )
    return said


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
    work[columns] = logarithms(predictions)
    grouped = work.groupby(["model", "run", "repeat", "split", "group"], sort=True)
    probabilities = softmax(grouped[columns].mean().to_numpy(), axis=1)
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
