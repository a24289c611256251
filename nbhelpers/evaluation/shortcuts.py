"""Shortcuts: can the label be told from what should not matter, such as brightness, and does the
model do so?
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import derive_seed
from nbhelpers.evaluation.metrics import evaluate

if TYPE_CHECKING:
    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.core.splits import Split

FITTED_PARTS = ("train", "validation")
PERCENTILES = (5, 25, 50, 75, 95)
BORDER = 0.05  # of the width, on each side
CHANCE = 0.01  # a shuffle of labels between neurons does as well in fewer than 1 in 100
NOTABLE_AUC = 0.7  # below it a shortcut explains little, however certain it is
FEWEST_UNITS = 6  # neurons: fewer cannot be shuffled often enough to tell anything from chance
MOST_IMAGES = 4000
RIDGE = 0.05  # of the variance: grey-value statistics are nearly collinear
BLOCK = 200  # shuffles at a time
ENOUGH = 10  # shuffles that do as well, after which there is no need for more: it is chance


def appearance(images: ImageSet) -> pd.DataFrame:
    """What a patch looks like to somebody who sees no structure, one row per image, grey levels of
    255.

    ``mean``, ``standard deviation``, ``border mean`` (the outer 5 %), and the percentiles 5, 25,
    50, 75, 95, per channel where there are several.
    """
    channels = [""] if images.pixels.shape[1] == 1 else [f"{name} " for name in images.channels]
    names = [
        channel + name
        for channel in channels
        for name in (
            "mean",
            "standard deviation",
            "border mean",
            *(f"percentile {at}" for at in PERCENTILES),
        )
    ]
    rim = max(1, round(BORDER * images.pixels.shape[-1]))
    rows = []
    for image in images.pixels:
        image = np.asarray(image)
        row = []
        for values in image:
            border = np.concatenate(
                [
                    values[..., :rim, :].ravel(),
                    values[..., -rim:, :].ravel(),
                    values[..., :, :rim].ravel(),
                    values[..., :, -rim:].ravel(),
                ]
            )
            row += [values.mean(), values.std(), border.mean(), *np.percentile(values, PERCENTILES)]
        rows.append(row)
    scale = 255 / np.iinfo(images.pixels.dtype).max
    return pd.DataFrame(np.asarray(rows).reshape(len(images), -1) * scale, columns=names)


def label_from_features(
    features: pd.DataFrame,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    shuffles: int = 1000,
    least_p: float | None = None,
    seed: int = 0,
) -> dict:
    """How well features tell the label of images of unseen groups, against shuffled labels.

    A linear discriminant, equal weight to the classes, each group (or each of 20 lots of groups)
    predicted by the others. ``auc`` (one against the rest, mean over the classes), ``chance`` (the
    AUC that 95 in 100 shuffles stay below), ``p`` (share of shuffles that do as well, counting the
    true labels as one), ``n`` images, ``n_units`` and ``scores`` (n, classes). Labels are shuffled
    between groups, as images of a group are no independent witnesses; where most groups hold
    several classes, within groups. At most 4,000 images, evenly from all groups, are looked at;
    ``rows`` says which. ``reason`` stands in place of the figures where the test is not possible.

    Parameters
    ----------
    features : (n, columns) numbers. labels : (n,) int, 0 or more. groups : (n,) text.
    least_p : shuffle no longer than until ten shuffles have done as well, but else so often that p
        can fall below this: a few shuffles for what is chance, as many as it takes for what is not.
        None: ``shuffles``, neither more nor fewer.
    """
    values = _finite(features)
    labels = np.asarray(labels)
    groups = np.asarray(groups).astype(str)
    rows = _evenly(groups, seed)
    values = values[rows]
    labels = labels[rows]
    group, names = pd.factorize(groups[rows], sort=True)
    kinds = np.unique(labels)
    about = {"n": len(rows), "rows": rows}
    unit, unit_labels, within = _units(group, labels)
    n_units = len(unit_labels)
    if len(kinds) < 2 or len(names) < 2:
        return about | {
            "n_units": n_units,
            "reason": "there is only one " + ("class" if len(kinds) < 2 else "group"),
        }
    if not within and n_units < FEWEST_UNITS:
        return about | {"n_units": n_units, "reason": f"{n_units} groups are too few to shuffle"}
    rng = np.random.default_rng(derive_seed(seed, "shuffle labels"))
    fold = rng.permutation(len(names))[group] % 20 if len(names) > 20 else group
    auc, scores = _cross_validated(values, labels[:, None], fold, kinds)
    wanted = shuffles if least_p is None else max(shuffles, int(np.ceil(1 / least_p)))
    found = []
    made = 0
    as_good = 0
    while made < wanted and (least_p is None or as_good < ENOUGH):
        size = min(BLOCK, wanted - made)
        if within:
            shuffled = np.stack([_shuffled_within(labels, group, rng) for _ in range(size)], axis=1)
        else:
            shuffled = rng.permuted(np.tile(unit_labels, (size, 1)), axis=1).T[unit]
        found.append(_cross_validated(values, shuffled, fold, kinds)[0])
        made = made + size
        as_good = as_good + int((found[-1] >= auc[0] - 1e-12).sum())
    null = np.concatenate(found)
    return about | {
        "auc": float(auc[0]),
        "chance": float(np.quantile(null, 0.95)),
        "scores": scores,
        "n_units": n_units,
        "p": (1 + as_good) / (1 + made),
        "shuffles": made,
    }


def _finite(features: pd.DataFrame) -> np.ndarray:
    values = features.to_numpy(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise InputError(
            f"feature {features.columns[bad[0, 1]]}, row {bad[0, 0]}",
            "the value is not a finite number.",
            "Fill or leave out what is missing.",
        )
    return values


def _evenly(groups: np.ndarray, seed: int) -> np.ndarray:
    """Rows, sorted: all, or about 4,000 with the same number from each group as far
    as it has them."""
    if len(groups) <= MOST_IMAGES:
        return np.arange(len(groups))
    order = np.random.default_rng(derive_seed(seed, "rows")).permutation(len(groups))
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
    shuffled[np.argsort(group, kind="stable")] = labels[
        np.lexsort((rng.random(len(labels)), group))
    ]
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
            test = fold == one
            mean = values[~test].mean(axis=0)
            scale = values[~test].std(axis=0)
            scaled = (values - mean) / np.where(scale > 1e-9, scale, 1.0)
            weights, offset = _discriminant(scaled[~test], labels[~test], kind)
            scores[test] = scaled[test] @ weights - offset
        first[:, column] = scores[:, 0]
        found.append(_auc(scores, labels == kind))
    return np.mean(found, axis=0), first


def _auc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """(sets,) from (n, sets); ties count half; 0.5 where a class is empty."""
    from scipy.stats import rankdata

    n_in = positive.sum(axis=0)
    n_out = len(positive) - n_in
    ranks = rankdata(scores, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        auc = ((ranks * positive).sum(axis=0) - n_in * (n_in + 1) / 2) / (n_in * n_out)
    return np.where((n_in > 0) & (n_out > 0), auc, 0.5)


def part_difference(
    features: pd.DataFrame,
    labels: np.ndarray,
    groups: np.ndarray,
    tested: np.ndarray,
    *,
    shuffles: int = 2000,
    seed: int = 0,
) -> dict:
    """Whether fitted and tested images of the SAME class differ in the features, judged between
    groups.

    ``feature``, ``label`` (int) and ``difference`` (tested less fitted, in the unit of the feature)
    where it is largest, ``effect`` (in standard deviations between groups of the class), and ``p``:
    how often dealing the groups of each class anew into parts gives as large an effect in any
    feature and class. ``tested`` is (n,) bool. ``reason`` in place of the figures where there are
    too few groups.
    """
    values = pd.DataFrame(_finite(features), columns=features.columns)
    units = values.groupby([np.asarray(labels), np.asarray(groups).astype(str)]).mean()
    part = (
        pd.Series(np.asarray(tested, float))
        .groupby([np.asarray(labels), np.asarray(groups).astype(str)])
        .mean()
    )
    kind = units.index.get_level_values(0).to_numpy()
    tests = part.to_numpy() > 0.5
    usable = [
        one
        for one in np.unique(kind)
        if tests[kind == one].sum() >= 2 and (~tests[kind == one]).sum() >= 2
    ]
    if not usable:
        return {
            "n_units": len(units),
            "reason": "no class has two groups in training and two in test",
        }
    rng = np.random.default_rng(derive_seed(seed, "shuffle parts"))
    largest = np.zeros(shuffles)
    effects = []
    differences = []
    for one in usable:
        table = units.to_numpy()[kind == one]
        test = tests[kind == one]
        scale = table.std(axis=0, ddof=1)
        scaled = table / np.where(scale > 1e-9, scale, np.inf)
        drawn = rng.permuted(np.tile(test, (shuffles, 1)), axis=1)
        differences.append(table[test].mean(axis=0) - table[~test].mean(axis=0))
        effects.append(abs(scaled[test].mean(axis=0) - scaled[~test].mean(axis=0)))
        moved = abs(drawn @ scaled / test.sum() - ~drawn @ scaled / (~test).sum())
        largest = np.maximum(largest, moved.max(axis=1))
    at, column = np.unravel_index(np.argmax(effects), np.shape(effects))
    effect = float(effects[at][column])
    return {
        "feature": features.columns[column],
        "label": int(usable[at]),
        "difference": float(differences[at][column]),
        "effect": effect,
        "n_units": len(units),
        "p": float((1 + (largest >= effect - 1e-12).sum()) / (1 + shuffles)),
    }


def shortcut_warnings(
    predictions: Predictions | None,
    images: ImageSet,
    split: Split,
    *,
    features: pd.DataFrame | None = None,
    name: str = "brightness and contrast alone",
    shuffles: int = 1000,
    seed: int = 0,
) -> tuple[list[str], pd.DataFrame]:
    """Sentences to be printed beside the score, none when nothing is found, and the table they rest
    on.

    Parameters
    ----------
    predictions : of the image model on the test part (one model), or None before training.
    features : one row per image of the set, numbers that should not matter (file number, size,
        position ...); by default :func:`appearance`. ``name`` says in words what they are.

    Checks, as rows of the table (``check``, ``value``, ``low``, ``high``, ``chance``, ``p``, ``n``,
    ``groups``, ``verdict``: "warn", "pass", or "" where the row only tells): the label from the
    features within the training part, by unseen neurons (:func:`label_from_features`; of a split
    with several folds, within the whole set); training against test images of the same class
    (:func:`part_difference`); the label of test images from the features, fitted on the training
    part; the image model; and how closely the model's score follows the features within a class
    (rank correlation). Warns when AUC is 0.7 or more and fewer than 1 in 100 shuffles reach it,
    when the parts differ as rarely by chance, and when the model is hardly better than such a
    shortcut. Raises InputError when features and images differ in number, or a feature is not
    finite.
    """
    features = appearance(images) if features is None else features
    if len(features) != len(images):
        raise InputError(
            name,
            f"there are {len(features)} rows of features for {len(images)} images.",
            "Give one row per image, in the order of the set.",
        )
    folds = split.folds()
    labelled = images.labels >= 0
    fitted = np.zeros(len(images), bool)
    tested = np.zeros(len(images), bool)
    if len(folds) == 1:
        fitted[images.positions(split.ids(*folds[0], *FITTED_PARTS))] = True
        tested[images.positions(split.ids(*folds[0], "test"))] = True
        fitted &= ~tested
    else:
        fitted[images.positions(split.table["id"].unique())] = True
    fitted = np.flatnonzero(fitted & labelled)
    tested = np.flatnonzero(tested & labelled)
    labels = images.labels
    groups = images.groups
    where = "the training part" if len(folds) == 1 else "the set"
    said = []
    rows = []

    known = label_from_features(
        features.iloc[fitted], labels[fitted], groups[fitted], shuffles=shuffles, seed=seed
    )
    told = f"label from {name}, within {where}"
    certain = False
    if "reason" in known:
        rows.append({"check": told, "verdict": f"not tested: {known['reason']}", "n": known["n"]})
        said.append(
            f"Whether {name} tells the class cannot be tested in {where}: {known['reason']}."
        )
    else:
        certain = known["p"] <= CHANCE and known["auc"] >= NOTABLE_AUC
        kept = fitted[known["rows"]]
        rows.append(
            {
                "check": told,
                "value": known["auc"],
                **_span(images, kept, known["scores"], seed),
                "chance": known["chance"],
                "p": known["p"],
                "n": known["n"],
                "groups": known["n_units"],
                "verdict": "warn" if certain else "pass",
            }
        )
    telling = (
        _most_telling(features.iloc[fitted], labels[fitted], groups[fitted], images.classes)
        if certain
        else ""
    )
    if certain:
        said.append(
            f"Warning: in {where} {name} tells the class of unseen groups with an AUC of "
            f"{known['auc']:.2f} "
            f"(chance: up to {known['chance']:.2f}); {telling}. A network may learn that instead "
            f"of structure."
        )

    shortcut = None
    if len(tested):
        moved = part_difference(
            features.iloc[np.concatenate([fitted, tested])],
            labels[np.concatenate([fitted, tested])],
            groups[np.concatenate([fitted, tested])],
            np.arange(len(fitted) + len(tested)) >= len(fitted),
            seed=seed,
        )
        differs = moved.get("p", 1) <= CHANCE
        row = {
            "check": f"training against test images of a class, by {name} (largest effect, SD)",
            "n": len(tested),
        }
        if "reason" in moved:
            rows.append(row | {"verdict": f"not tested: {moved['reason']}"})
        else:
            rows.append(
                row
                | {
                    "value": moved["effect"],
                    "p": moved["p"],
                    "groups": moved["n_units"],
                    "verdict": "warn" if differs else "pass",
                }
            )
        if differs:
            said.append(
                f"Warning: test images of {images.classes[moved['label']]} differ from training "
                f"images of the same "
                f"class: {moved['feature']} by {moved['difference']:+.1f} ({moved['effect']:.1f} "
                f"standard "
                "deviations between groups). The score may say more about that difference than "
                "about the classes."
            )
        if len(np.unique(labels[fitted])) > 1:
            shortcut = _fitted_scores(features, fitted, tested, labels, len(images.classes))
            found = _predictions(images, tested, shortcut)
            entry = evaluate(found, resamples=500, seed=seed)["auc"]
            rows.append(
                {
                    "check": f"label of test images from {name}",
                    "verdict": "",
                    "groups": len(set(groups[tested])),
                    **{key: entry[key] for key in ("value", "low", "high", "n")},
                }
            )
            if certain and entry["value"] is not None and entry["value"] < known["auc"] - 0.15:
                said.append(
                    f"On the test part the same shortcut has an AUC of {entry['value']:.2f}: it "
                    f"holds in training "
                    "only, and a model that takes it will do worse on new neurons than in training."
                )
    if predictions is not None and len(predictions):
        said += _model_rows(predictions, images, tested, shortcut, certain, name, rows, seed)
    columns = ["check", "value", "low", "high", "chance", "p", "n", "groups", "verdict"]
    return said, pd.DataFrame(rows).reindex(columns=columns)


def _model_rows(
    predictions: Predictions,
    images: ImageSet,
    tested: np.ndarray,
    shortcut: np.ndarray | None,
    certain: bool,
    name: str,
    rows: list[dict],
    seed: int,
) -> list[str]:
    """Adds the rows about the image model, and returns what must be said of it."""
    from scipy.stats import spearmanr

    if tuple(predictions.classes) != tuple(images.classes):
        raise PredictionsError(
            "predictions",
            f"their classes {list(predictions.classes)} are not those of the images.",
            f"The classes are {list(images.classes)}.",
        )
    said = []
    entry = evaluate(predictions, resamples=500, seed=seed)["auc"]
    rows.append(
        {
            "check": f"label of test images from the image model "
            f"({predictions.table['model'].iloc[0]})",
            "verdict": "",
            **{key: entry[key] for key in ("value", "low", "high", "n")},
            "groups": predictions.table["group"].nunique(),
        }
    )
    if shortcut is None or entry["value"] is None:
        return said
    alone = rows[-2]["value"]
    if certain and alone is not None and alone >= NOTABLE_AUC and entry["value"] - alone < 0.05:
        rows[-1]["verdict"] = "warn"
        said.append(
            f"Warning: the image model (AUC {entry['value']:.2f}) is hardly better than {name} "
            f"({alone:.2f})."
        )
    place = pd.Series(np.arange(len(tested)), index=images.ids[tested])
    at = place.reindex(predictions.table["id"]).to_numpy()
    logarithms = np.log(np.clip(predictions.probabilities, 1e-12, 1))
    known = np.isfinite(at)
    found = []
    for label in range(len(images.classes)):
        inside = known & (predictions.true_index == label)
        if inside.sum() < 10:
            continue
        for kind in range(len(images.classes)):
            model = logarithms[inside, kind]
            plain = shortcut[at[inside].astype(int), kind]
            if np.ptp(model) > 0 and np.ptp(plain) > 0:
                found.append(spearmanr(model, plain).statistic)
    if found:
        follows = float(np.mean(found))
        rows.append(
            {
                "check": f"the model's score follows {name}, within a class (rank correlation)",
                "value": follows,
                "n": int(known.sum()),
                "verdict": "warn" if certain and follows > 0.3 else "",
            }
        )
        if certain and follows > 0.3:
            said.append(
                f"Warning: among test images of one class the model's score follows {name} (rank "
                f"correlation "
                f"{follows:.2f}): it has learnt the shortcut."
            )
    return said


def _fitted_scores(
    features: pd.DataFrame, fitted: np.ndarray, tested: np.ndarray, labels: np.ndarray, classes: int
) -> np.ndarray:
    """(tested, classes) scores of the discriminant fitted on the training part."""
    values = _finite(features)
    mean = values[fitted].mean(axis=0)
    scale = values[fitted].std(axis=0)
    scaled = (values - mean) / np.where(scale > 1e-9, scale, 1.0)
    scores = np.zeros((len(tested), classes))
    for kind in range(classes):
        weights, offset = _discriminant(scaled[fitted], labels[fitted][:, None], kind)
        scores[:, kind] = scaled[tested] @ weights[:, 0] - offset[0]
    return scores


def _predictions(images: ImageSet, rows: np.ndarray, scores: np.ndarray) -> Predictions:
    """Scores as a predictions table, so that AUC and interval are made as everywhere; they are no
    calibrated chances.
    """
    scaled = scores / max(float(abs(scores).max()), 1e-12) * 5
    shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return Predictions.build(
        ids=images.ids[rows],
        labels=images.table["label"].to_numpy()[rows],
        groups=images.groups[rows],
        probabilities=shares / shares.sum(axis=1, keepdims=True),
        classes=images.classes,
        model="shortcut",
    )


def _span(images: ImageSet, rows: np.ndarray, scores: np.ndarray, seed: int) -> dict:
    whole = np.full((len(rows), len(images.classes)), scores.min() - 1)
    whole[:, np.unique(images.labels[rows])] = scores
    entry = evaluate(_predictions(images, rows, whole), resamples=500, seed=seed)["auc"]
    return {"low": entry["low"], "high": entry["high"]}


def _most_telling(
    features: pd.DataFrame, labels: np.ndarray, groups: np.ndarray, classes: tuple[str, ...]
) -> str:
    """The feature in which two classes lie farthest apart, in standard deviations
    between groups."""
    units = features.reset_index(drop=True).groupby([labels, groups]).mean()
    kind = units.index.get_level_values(0).to_numpy()
    present = np.unique(kind)
    means = np.stack([units.to_numpy()[kind == one].mean(axis=0) for one in present])
    inner = np.sqrt(np.mean([units.to_numpy()[kind == one].var(axis=0) for one in present], axis=0))
    apart = (means.max(axis=0) - means.min(axis=0)) / np.where(inner > 1e-9, inner, np.inf)
    best = int(np.argmax(apart))
    high = present[means[:, best].argmax()]
    low = present[means[:, best].argmin()]
    return (
        f"the most telling is {features.columns[best]}, {means[:, best].max():.1f} in "
        f"{classes[high]} and "
        f"{means[:, best].min():.1f} in {classes[low]}"
    )
