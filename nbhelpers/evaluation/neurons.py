"""From synapses to neurons: many predictions of one neuron combined, and how much their errors go
together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, PredictionsError
from nbhelpers.core.intervals import FEW_GROUPS, LEVEL, group_weights, undefined, wilson
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import aggregate_by_group, check_one_model

COMBINATIONS = ("log-odds", "majority")
UNSEEN = (
    0.25  # the variance of one more neuron of which nothing is known: right or wrong, even odds
)


def combine_neurons(predictions: Predictions, how: str = "log-odds") -> Predictions:
    """One row per neuron (group) from all its synapses; the neuron's name becomes the id.

    ``how``: "log-odds" takes the mean of the log-probabilities, "majority" the share of votes per
    class (a tie goes to the class with the higher mean probability). Raises PredictionsError when
    the synapses of a neuron have different labels.
    """
    _check_how(how)
    combined = aggregate_by_group(predictions)
    if how == "log-odds":
        return combined
    keys = ["model", "run", "repeat", "split", "group"]
    votes = np.eye(len(predictions.classes))[predictions.predicted_index]
    votes += 1e-6 * predictions.probabilities
    work = pd.concat(
        [
            predictions.table[keys].reset_index(drop=True),
            pd.DataFrame(votes, columns=predictions.probability_columns),
        ],
        axis=1,
    )
    shares = work.groupby(keys, sort=True)[predictions.probability_columns].mean()
    shares = shares.reindex(pd.MultiIndex.from_frame(combined.table[keys])).to_numpy()
    shares /= shares.sum(axis=1, keepdims=True)
    table = combined.table.copy()
    table[predictions.probability_columns] = shares
    table["predicted"] = np.asarray(predictions.classes, dtype=object)[shares.argmax(axis=1)]
    return Predictions(table, predictions.classes)


def neuron_table(predictions: Predictions, how: str = "log-odds") -> pd.DataFrame:
    """One row per neuron: ``neuron``, ``label``, ``predicted``, ``right`` (1 or 0), ``synapses``,
    ``synapses_right`` (share) and ``probability`` (of its true class, combined).

    With repeats ``right``, ``synapses_right`` and ``probability`` are means over them, and
    ``predicted`` is the commonest. One model and one split.
    """
    check_one_model(predictions)
    combined = combine_neurons(predictions, how)
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


def neuron_accuracy(predictions: Predictions, how: str = "log-odds") -> dict:
    """Share of neurons whose combined class is right: value, low, high, n (neurons), method; as
    :func:`evaluate` does.

    The interval is :func:`neuron_interval`: neurons, not synapses, are what was sampled.
    """
    table = neuron_table(predictions, how)
    return neuron_interval(table["right"].to_numpy(), int(table["synapses"].sum()))


def neuron_interval(values: np.ndarray, n_synapses: int | None = None) -> dict:
    """95 % interval of a mean over neurons of values from 0 to 1, e.g. the accuracy within each.

    Wilson's interval, with the number of neurons replaced by an effective one: how many independent
    right-or-wrong outcomes would scatter as much as the neurons do, as if one more neuron with even
    odds had been seen. For neurons that are each all right or all wrong that is the number of
    neurons; where they differ less it is more (never more than ``n_synapses``). Unlike a bootstrap
    it does not collapse when a dozen neurons are all right: simulated with 6 to 24 neurons of 25
    synapses it held the truth in 95 to 100 of 100 cases, a bootstrap over neurons in 65 to 94. None
    where there are fewer than two.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n == 0:
        return undefined("there are no neurons")
    value = float(values.mean())
    if n < 2:
        return {
            "value": value,
            "low": None,
            "high": None,
            "n": n,
            "method": None,
            "reason": "there is only one neuron: how neurons differ cannot be seen",
        }
    expected = n * value * (1 - value) + UNSEEN
    seen = ((values - value) ** 2).sum() * n / (n - 1) + UNSEEN
    effective = n * max(1.0, expected / seen)
    effective = min(effective, n_synapses) if n_synapses else effective
    low, high = wilson(value * effective, effective)
    found = {
        "value": value,
        "low": low,
        "high": high,
        "n": n,
        "method": f"Wilson over {n} neurons"
        + (f", scatter as of {effective:.0f}" if effective > 1.05 * n else ""),
    }
    if n < FEW_GROUPS:
        found["note"] = f"only {n} neurons"
    return found


def neuron_curve(
    predictions: Predictions,
    counts: Sequence[int] | None = None,
    *,
    how: str = "log-odds",
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy per neuron when only ``k`` of its synapses are seen, beside what independent errors
    would give.

    Columns: ``k``; ``accuracy`` with ``low``, ``high`` and ``method`` (:func:`neuron_interval`),
    over ``draws`` random sets of k synapses per neuron and repeat, without replacement;
    ``independent``: the same from k synapses drawn over all neurons of the class, so that every
    error stays as likely but none go together; ``binomial``: the majority of k votes that are each
    right with the accuracy of single synapses; ``n_neurons``.

    The same neurons stand at every k: those with as many synapses as the largest one, by default
    the number that nine in ten neurons have; ``attrs["left_out"]`` says how many have fewer. Ties
    count half (majority: the class with the higher mean probability). Raises ParameterError when a
    count is out of range, PredictionsError as :func:`combine_neurons`.
    """
    from scipy.stats import binom

    check_one_model(predictions)
    _check_how(how)
    aggregate_by_group(predictions)  # refuses neurons with two labels
    table = predictions.table
    evidence = _evidence(predictions, how)
    synapses = table.groupby("group")["id"].nunique()
    counts = (
        _default_counts(synapses) if counts is None else sorted({int(count) for count in counts})
    )
    if not counts or counts[0] < 1 or counts[-1] > synapses.max():
        raise ParameterError(
            "parameter counts",
            f"{counts} is out of range.",
            f"Give numbers from 1 to {synapses.max()}, the most synapses that a neuron has.",
        )
    if draws < 1:
        raise ParameterError("parameter draws", f"{draws} is out of range.", "Give 1 or more.")
    names = synapses.index[synapses >= counts[-1]]
    rng = np.random.default_rng(seed)
    true = predictions.true_index
    rows_of = {
        key: rows.to_numpy()
        for key, rows in pd.Series(np.arange(len(table))).groupby(
            [table["repeat"].to_numpy(), table["group"].to_numpy()]
        )
    }
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
            order = rng.permuted(np.tile(rows, (draws, 1)), axis=1)[:, : counts[-1]]
            seen[at] += _right_at(evidence[order], counts, label)
            pool = np.flatnonzero(kept & (table["repeat"] == repeat).to_numpy() & (true == label))
            free[at] += _right_at(evidence[rng.choice(pool, (draws, counts[-1]))], counts, label)
    seen = seen / len(repeats)
    free = free / len(repeats)
    right = (predictions.predicted_index == true)[kept]
    share = (
        pd.Series(right.astype(float)).groupby(table["group"].to_numpy()[kept]).mean().mean()
    )  # each neuron alike
    rows = []
    for column, count in enumerate(counts):
        found = neuron_interval(seen[:, column], int(synapses[names].sum()))
        votes = binom.sf(count // 2, count, share) + (
            0.5 * binom.pmf(count // 2, count, share) if count % 2 == 0 else 0
        )
        rows.append(
            {
                "k": count,
                "accuracy": found["value"],
                "low": found["low"],
                "high": found["high"],
                "independent": free[:, column].mean(),
                "binomial": float(votes),
                "n_neurons": len(names),
                "method": found["method"] or found["reason"],
            }
        )
    curve = pd.DataFrame(rows)
    curve.attrs["left_out"] = int((synapses < counts[-1]).sum())
    return curve


def _default_counts(synapses: pd.Series) -> list[int]:
    most = max(1, int(np.quantile(synapses, 0.1, method="lower")))
    steps = [
        count
        for count in (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200, 300, 500, 1000)
        if count < most
    ]
    return [*steps, most]


def _evidence(predictions: Predictions, how: str) -> np.ndarray:
    """(n, classes): what is added up over the synapses of a neuron."""
    if how == "majority":
        return (
            np.eye(len(predictions.classes))[predictions.predicted_index]
            + 1e-6 * predictions.probabilities
        )
    return np.log(np.clip(predictions.probabilities, np.finfo(float).tiny, 1))


def _right_at(evidence: np.ndarray, counts: Sequence[int], label: int) -> np.ndarray:
    """(counts,) share of the draws that are right; ``evidence`` is (draws, synapses, classes)."""
    sums = evidence.cumsum(axis=1)[:, np.asarray(counts) - 1]
    best = sums >= sums.max(axis=2, keepdims=True) - 1e-12
    return (best[..., label] / best.sum(axis=2)).mean(axis=0)


def error_correlation(predictions: Predictions, *, resamples: int = 2000, seed: int = 0) -> dict:
    """How much the errors within a neuron go together: the intraclass correlation of right and
    wrong.

    ``value`` with ``low`` and ``high`` (the one-way analysis-of-variance estimator, Ridout et al.
    1999; bootstrap over neurons), ``n`` neurons, ``n_synapses``, ``synapses_per_neuron`` (weighted
    by size, so that the next is exact), ``design_effect`` 1 + (m - 1) x correlation, and
    ``effective_synapses``: how many independent ones say as much about the accuracy. 0: independent
    errors; 1: a neuron is all right or all wrong. It may be below 0 by chance. Classes of unlike
    difficulty add to it. None, with the reason, when nothing varies or no neuron has two synapses.
    """
    check_one_model(predictions)
    table = predictions.table.assign(
        right=(predictions.predicted_index == predictions.true_index).astype(float)
    )
    right = table.groupby(["group", "id"])["right"].mean()  # over repeats
    grouped = right.groupby(level="group")
    sizes = grouped.size().to_numpy(float)
    sums = grouped.sum().to_numpy()
    squares = (right**2).groupby(level="group").sum().to_numpy()
    n = len(sizes)
    total = int(sizes.sum())
    about = {"n": n, "n_synapses": total, "synapses_per_neuron": float((sizes**2).sum() / total)}
    found = about | {
        "value": None,
        "low": None,
        "high": None,
        "design_effect": None,
        "effective_synapses": None,
        "method": None,
    }
    if n < 2 or sizes.max() < 2:
        return found | {
            "reason": "there is only one neuron" if n < 2 else "no neuron has two synapses"
        }
    value = float(_intraclass(np.ones((1, n)), sizes, sums, squares)[0])
    if not np.isfinite(value):
        return found | {
            "reason": "all synapses are right" if sums.sum() > 0 else "all synapses are wrong"
        }
    drawn = np.concatenate(
        [
            _intraclass(weights, sizes, sums, squares)
            for weights in group_weights(n, resamples, seed)
        ]
    )
    drawn = drawn[np.isfinite(drawn)]
    effect = max(1.0, 1 + (about["synapses_per_neuron"] - 1) * value)
    found |= {"value": value, "design_effect": effect, "effective_synapses": total / effect}
    if len(drawn) < 0.5 * resamples:
        return found | {
            "reason": "the errors are of so few neurons that resampling does not see them"
        }
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found |= {
        "low": float(min(low, value)),
        "high": float(min(1.0, max(high, value))),
        "method": "bootstrap over neurons",
    }
    if n < 30:
        found["note"] = f"only {n} neurons: the interval is likely too narrow at its upper end"
    return found


def _intraclass(
    weights: np.ndarray, sizes: np.ndarray, sums: np.ndarray, squares: np.ndarray
) -> np.ndarray:
    """(resamples,) correlation; ``weights`` is (resamples, neurons), how often each neuron was
    drawn.
    """
    neurons = weights.sum(axis=1)
    total = weights @ sizes
    with np.errstate(invalid="ignore", divide="ignore"):
        grand = (weights @ sums) / total
        between_sum = weights @ (sums**2 / sizes) - total * grand**2
        within_sum = weights @ (squares - sums**2 / sizes)
        between = between_sum / (neurons - 1)
        within = within_sum / (total - neurons)
        size = (total - (weights @ sizes**2) / total) / (neurons - 1)
        found = (between - within) / (between + (size - 1) * within)
    return np.where(between_sum + within_sum > 1e-9, found, np.nan)


def _check_how(how: str) -> None:
    if how not in COMBINATIONS:
        raise ParameterError(
            "parameter how", f"{how!r} is unknown.", f"Give one of {', '.join(COMBINATIONS)}."
        )


def neuron_sentences(predictions: Predictions, curve: pd.DataFrame, correlation: dict) -> list[str]:
    """What the curve and the correlation say, in words for a report."""
    first = curve.iloc[0]
    last = curve.iloc[-1]
    said = [
        f"With {first['k']:.0f} synapse{'s' * int(first['k'] > 1)} a neuron is right in "
        f"{first['accuracy']:.3f} of the "
        f"cases, with {last['k']:.0f} in {last['accuracy']:.3f} ({last['n_neurons']:.0f} neurons); "
        f"independent errors "
        f"would give {last['independent']:.3f}."
    ]
    if curve.attrs.get("left_out"):
        said.append(
            f"{curve.attrs['left_out']} neurons have fewer than {last['k']:.0f} synapses and are "
            f"not in the curve."
        )
    if correlation["value"] is None:
        said.append(
            f"How far errors within a neuron go together cannot be told: {correlation['reason']}."
        )
    else:
        span = (
            f" ({correlation['low']:.2f} to {correlation['high']:.2f})"
            if correlation["low"] is not None
            else ""
        )
        said.append(
            f"The errors within a neuron correlate with {correlation['value']:.2f}{span}: "
            f"{correlation['n_synapses']} synapses say as much about the accuracy as "
            f"{correlation['effective_synapses']:.0f} independent ones would."
        )
    return said
