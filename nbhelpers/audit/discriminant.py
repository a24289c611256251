"""How well features tell the label of images of unseen groups: a linear discriminant, tested
against shuffled labels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError
from nbhelpers.core.seeds import generator_for

MOST_IMAGES = 4000  # looked at; evenly from all groups
FEWEST_UNITS = 6  # groups: fewer cannot be shuffled often enough to tell anything from chance
RIDGE = 0.05  # of the variance: grey-value statistics are nearly collinear
BLOCK = 200  # shuffles at a time
ENOUGH = 10  # shuffles that do as well, after which there is no need for more: it is chance


@dataclass(frozen=True)
class Told:
    """How well features tell the label of images of unseen groups.

    ``auc`` (one against the rest, mean over the classes), ``chance`` (the AUC that 95 in 100
    shuffles stay below), ``p`` (share of shuffles that do as well, counting the true labels as
    one), ``n`` images, ``n_units`` that are shuffled as one, ``rows`` that were looked at and their
    ``scores`` (n, classes). ``reason`` stands in place of the figures where the test is not
    possible.
    """

    n: int
    n_units: int = 0
    rows: np.ndarray | None = None
    reason: str = ""
    auc: float | None = None
    chance: float | None = None
    p: float | None = None
    shuffles: int = 0
    scores: np.ndarray | None = None


def label_from_features(
    features: pd.DataFrame,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    shuffles: int = 1000,
    least_p: float | None = None,
    seed: int = 0,
) -> Told:
    """How well features tell the label of images of unseen groups, against shuffled labels.

    A linear discriminant, equal weight to the classes, each group (or each of 20 lots of groups)
    predicted by the others. Labels are shuffled between groups, as images of a group are no
    independent witnesses; where most groups hold several classes, within groups. At most 4,000
    images, evenly from all groups, are looked at.

    Parameters
    ----------
    features : (n, columns) numbers. labels : (n,) int, 0 or more. groups : (n,) text.
    least_p : shuffle no longer than until ten shuffles have done as well, but else so often that p
        can fall below this: a few shuffles for what is chance, as many as it takes for what is not.
        None: ``shuffles``, neither more nor fewer.
    """
    values = finite(features)
    groups = np.asarray(groups).astype(str)
    rows = evenly(groups, seed)
    values = values[rows]
    labels = np.asarray(labels)[rows]
    group, names = pd.factorize(groups[rows], sort=True)
    kinds = np.unique(labels)
    unit, unit_labels, within = _units(group, labels)
    found = Told(len(rows), len(unit_labels), rows)
    if len(kinds) < 2:
        return replace(found, reason="there is only one class")
    if len(names) < 2:
        return replace(found, reason="there is only one group")
    if not within and found.n_units < FEWEST_UNITS:
        return replace(found, reason=f"{found.n_units} groups are too few to shuffle")
    rng = generator_for(seed, "shuffle labels")
    fold = rng.permutation(len(names))[group] % 20 if len(names) > 20 else group
    auc, scores = _cross_validated(values, labels[:, None], fold, kinds)
    wanted = shuffles if least_p is None else max(shuffles, int(np.ceil(1 / least_p)))
    null = []
    made = 0
    as_good = 0
    while made < wanted and (least_p is None or as_good < ENOUGH):
        size = min(BLOCK, wanted - made)
        if within:
            shuffled = np.stack([_shuffled_within(labels, group, rng) for _ in range(size)], axis=1)
        else:
            shuffled = rng.permuted(np.tile(unit_labels, (size, 1)), axis=1).T[unit]
        null.append(_cross_validated(values, shuffled, fold, kinds)[0])
        made += size
        as_good += int((null[-1] >= auc[0] - 1e-12).sum())
    return replace(
        found,
        auc=float(auc[0]),
        chance=float(np.quantile(np.concatenate(null), 0.95)),
        p=(1 + as_good) / (1 + made),
        shuffles=made,
        scores=scores,
    )


def finite(features: pd.DataFrame) -> np.ndarray:
    values = features.to_numpy(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"feature {features.columns[bad[0, 1]]}, row {bad[0, 0]}",
            "the value is not a finite number.",
            "Fill or leave out what is missing.",
        )
    return values


def evenly(groups: np.ndarray, seed: int) -> np.ndarray:
    """Rows, sorted: all, or about 4,000 with the same number from each group as far
    as it has them."""
    if len(groups) <= MOST_IMAGES:
        return np.arange(len(groups))
    order = generator_for(seed, "rows").permutation(len(groups))
    rank = pd.Series(groups[order]).groupby(groups[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(rank, kind="stable")[:MOST_IMAGES]])


def _units(group: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
    """What is shuffled as one: unit of each image, label of each unit, and whether to shuffle
    within groups instead.
    """
    pairs, unit = np.unique(np.stack([group, labels], axis=1), axis=0, return_inverse=True)
    mixed = np.bincount(pairs[:, 0]) > 1
    return unit.reshape(-1), pairs[:, 1], bool(mixed.mean() > 0.5)


def _shuffled_within(labels: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shuffled = np.empty_like(labels)
    drawn = np.lexsort((rng.random(len(labels)), group))
    shuffled[np.argsort(group, kind="stable")] = labels[drawn]
    return shuffled


def _discriminant(
    values: np.ndarray, labels: np.ndarray, kind: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (columns, sets) and offsets (sets,) of one class against the rest for every set of
    labels (n, sets).
    """
    inside = (labels == kind).astype(np.float64)
    n_in = inside.sum(axis=0)
    n_out = (1 - inside).sum(axis=0)
    sums = values.T @ inside
    both = (n_in > 0) & (n_out > 0)  # where all images are of one class, or none is: no opinion
    high = np.where(both, sums / np.maximum(n_in, 1), 0.0)
    low = np.where(both, (values.sum(axis=0)[:, None] - sums) / np.maximum(n_out, 1), 0.0)
    centred = values - values.mean(axis=0)
    spread = centred.T @ centred / len(values)
    spread[np.diag_indices_from(spread)] += RIDGE * np.trace(spread) / len(spread) + 1e-12
    weights = np.linalg.solve(spread, high - low)
    return weights, (weights * (high + low)).sum(axis=0) / 2


def discriminant_scores(
    values: np.ndarray, labels: np.ndarray, fitted: np.ndarray, tested: np.ndarray, kind: int
) -> np.ndarray:
    """(tested, sets) scores of a class from the discriminant of the fitted rows; ``labels`` is
    (n, sets).
    """
    mean = values[fitted].mean(axis=0)
    scale = values[fitted].std(axis=0)
    scaled = (values - mean) / np.where(scale > 1e-9, scale, 1.0)
    weights, offset = _discriminant(scaled[fitted], labels[fitted], kind)
    return scaled[tested] @ weights - offset


def _cross_validated(
    values: np.ndarray, labels: np.ndarray, fold: np.ndarray, kinds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """AUC (sets,) for every set of labels (n, sets), and the scores (n, classes) of
    the first set."""
    found = []
    first = np.zeros((len(values), len(kinds)))
    for column, kind in enumerate(kinds):
        scores = np.zeros(labels.shape)
        for one in np.unique(fold):
            tested = fold == one
            scores[tested] = discriminant_scores(values, labels, ~tested, tested, kind)
        first[:, column] = scores[:, 0]
        found.append(auc_of_scores(scores, labels == kind))
    return np.mean(found, axis=0), first


def auc_of_scores(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(sets,) from (n, sets); ties count half; 0.5 where a class is empty."""
    from scipy.stats import rankdata

    n_in = positive.sum(axis=0)
    n_out = len(positive) - n_in
    ranks = rankdata(scores, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = ((ranks * positive).sum(axis=0) - n_in * (n_in + 1) / 2) / (n_in * n_out)
    return np.where((n_in > 0) & (n_out > 0), auc, 0.5)
