"""Shortcuts: how well the label is told by what should not matter, such as brightness, file number,
bit depth, compression or well position, and whether a model takes such a shortcut.

There is one answer to each question: images of unseen groups, each predicted by the other groups
and tested against shuffled labels. What the audit says and what notebooks show are these numbers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import spearmanr

from nbhelpers.audit.discriminant import (
    Told,
    auc_of_scores,
    discriminant_scores,
    evenly,
    finite,
    label_from_features,
)
from nbhelpers.audit.question import Question
from nbhelpers.audit.traces import traces
from nbhelpers.audit.verdicts import Check
from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.core.seeds import generator_for
from nbhelpers.evaluation.comparison import adjusted_for_number
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.plate_floors import background_features

LARGEST_PX = 256  # height and width in which brightness is looked at
PERCENTILES = (5, 25, 50, 75, 95)
BORDER = 0.05  # of the width, on each side
WHITE = 250  # of 255: as bright as what is drawn on an image
NOTABLE_AUC = 0.7  # below it a shortcut explains little, however certain it is
NOTABLE_ACQUISITION = 0.55  # the same of how an image was taken or stored
SETTLED = 0.95  # AUC from which an acquisition that tells the class makes every score meaningless
HARDLY_MORE = 0.05  # AUC by which an image model must exceed a shortcut
FADED = 0.15  # AUC that a shortcut loses on the test part when it holds in training only
FOLLOWS = 0.3  # rank correlation from which a model's score follows a shortcut within a class
ERROR_RATE = 0.005  # of all shortcuts of a set together (Holm)
PART_SHUFFLES = 2000
KNOTS = 7  # of a number
LEVELS = 30  # of a text column

# what a table may say about how an image was taken: words in a column's name, and what the shortcut
# is called
COLUMNS = {
    "plate position": ("well", "row", "column", "well_row", "well_column"),
    "plate": ("plate", "batch"),
    "field or site": ("field", "site"),
    "centre": ("centre", "center", "hospital", "lab", "laboratory"),
    "slide": ("slide",),
    "scanner": ("scanner", "microscope", "operator"),
    "acquisition date": ("date", "time", "acquired", "acquisition_date"),
    "file format": ("file_format",),
    "bit depth": ("bit_depth", "bits"),
    "colour": ("colour", "color"),
    "image size": ("width_px", "height_px"),
    "marks drawn onto images": ("marked",),
}
# from the pixels
LOOKS = (
    "brightness",
    "border and corners",
    "background",
    "compression",
    "sharpness and noise",
    "grey levels",
    "colour balance",
    "handedness",
)
ADVICE = {
    "file number": "Find out in which order the images were taken or stored, and why classes came "
    "together; the network does not see the number, but it may see what changed with it.",
    "file format": "Read all images from one format, and save them anew in one way; look for "
    "traces of compression.",
    "bit depth": "Bring all images to one bit depth before anything else (masks: make them "
    "strictly black and white).",
    "colour": "Read all images as grey, or all as colour.",
    "image size": "Crop or scale all classes in the same way.",
    "brightness": "It goes with the class; look whether it is the biology. If not, normalise each "
    "image.",
    "compression": "Read all images from one format, and save them anew in one way.",
    "sharpness and noise": "It goes with the class; look whether it is the biology. If not, bring "
    "all images to the coarsest resolution and the same noise.",
    "grey levels": "It goes with the class; look whether it is the biology. If not, subtract the "
    "background and scale all images alike, once.",
    "colour balance": "It goes with the class; look whether it is the biology. If not, normalise "
    "the stain or the white balance.",
    "handedness": "It goes with the class; look whether it is the biology. If not, mirror images "
    "at random in training, and correct light that comes from one side.",
    "border and corners": "Crop the border, or find out what marks it (burnt-in text, scale bars, "
    "padding).",
    "background": "Light and treatment go together on these plates: correct the illumination, or "
    "test on plates where they do not.",
    "plate position": "Position and treatment are confounded on these plates: randomise the "
    "layout, or test on plates where the same treatment lies in other wells.",
}
OTHER_ADVICE = (
    "Take it into account in the split (whole centres, plates or days held out), or take "
    "images of all classes alike."
)
# how images were taken or stored: it never is part of what the class is, so it may fail
ACQUISITION = (
    "file format",
    "bit depth",
    "colour",
    "image size",
    "plate position",
    "plate",
    "centre",
    "slide",
    "scanner",
    "acquisition date",
    "border and corners",
    "compression",
)


# What is tried


def appearance(images: ImageSet) -> pd.DataFrame:
    """What a patch looks like to somebody who sees no structure, one row per image, grey levels of
    255.

    ``mean``, ``standard deviation``, ``border mean`` (the outer 5 %), and the percentiles 5, 25,
    50, 75, 95, per channel where there are several.
    """
    names = ["mean", "standard deviation", "border mean"]
    names += [f"percentile {at}" for at in PERCENTILES]
    columns = []
    for channel in images.channels:
        prefix = "" if len(images.channels) == 1 else f"{channel} "
        columns += [prefix + name for name in names]
    rim = max(1, round(BORDER * images.pixels.shape[-1]))
    rows = []
    for image in images.pixels:
        row = []
        for values in np.asarray(image):
            sides = [values[..., :rim, :], values[..., -rim:, :]]
            sides += [values[..., :, :rim], values[..., :, -rim:]]
            border = np.concatenate([side.ravel() for side in sides])
            row += [values.mean(), values.std(), border.mean(), *np.percentile(values, PERCENTILES)]
        rows.append(row)
    scale = 255 / np.iinfo(images.pixels.dtype).max
    return pd.DataFrame(np.asarray(rows).reshape(len(images), -1) * scale, columns=columns)


def _corners(images: ImageSet) -> pd.DataFrame:
    """What is put on an image along its border: the mean of each corner, the outermost pixels and
    their step to the next, and the longest bright bar in the lower and in the upper quarter.
    """
    side = max(2, images.pixels.shape[-1] // 16)
    quarter = images.pixels.shape[-2] // 4
    first = slice(0, side)
    last = slice(-side, None)
    places = {
        "upper left corner": (first, first),
        "upper right corner": (first, last),
        "lower left corner": (last, first),
        "lower right corner": (last, last),
    }
    scale = 255 / np.iinfo(images.pixels.dtype).max
    rows = []
    for image in images.pixels:
        plane = np.asarray(image, np.float32).mean(axis=tuple(range(image.ndim - 2))) * scale
        row = [plane[down, across].mean() for down, across in places.values()]
        outer = np.concatenate([plane[[0, -1]].ravel(), plane[:, [0, -1]].ravel()])
        inner = np.concatenate([plane[[1, -2], 1:-1].ravel(), plane[1:-1, [1, -2]].ravel()])
        row += [outer.mean() - inner.mean(), outer.std()]
        row += [_longest(plane[-quarter:]), _longest(plane[:quarter])]
        rows.append(row)
    names = [*places, "step at the border", "spread along the border", "lower bar", "upper bar"]
    return pd.DataFrame(rows, columns=names)


def _longest(plane: np.ndarray) -> float:
    """The share of the width of the longest white run in a row that is no part of a thick thing."""
    thick = max(2, round(BORDER * 4 * len(plane)))
    white = np.pad(plane >= WHITE, ((thick, thick), (1, 1)))
    bar = white[thick:-thick] & ~white[: -2 * thick] & ~white[2 * thick :]
    edges = np.diff(bar.ravel().astype(int))
    runs = np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)
    return float(runs.max(initial=0) / plane.shape[1])


def families(
    images: ImageSet, looks: pd.DataFrame | None, columns: Sequence[str] = ()
) -> dict[str, pd.DataFrame]:
    """Name of each shortcut to its raw columns, one row per image: what there is to be tried in
    this set.

    File numbers come from the ids; brightness, border and corners, and of plates the background
    from the pixels (``looks`` is their :func:`appearance`, None where they are not known); the rest
    from columns of the table that are named as in ``COLUMNS`` or in ``columns``.
    """
    found = {}
    names = pd.Series(images.ids).str.rsplit("/", n=1).str[-1]
    numbers = names.str.extract(r"(\d+)[^0-9]*$")[0].astype(float)
    if numbers.notna().mean() > 0.9 and numbers.nunique() > 2:
        found["file number"] = numbers.fillna(-1).to_frame("file number")
    if looks is not None:
        border = [name for name in looks if "border" in name]
        found["brightness"] = looks.drop(columns=border)
        found["border and corners"] = looks[border].join(_corners(images))
        if {"plate", "well"} <= set(images.table):
            found["background"] = background_features(images)
    plain = {
        re.sub(r"^metadata_", "", str(name).strip().lower()).replace(" ", "_"): name
        for name in images.table
    }
    for title, known in COLUMNS.items():
        given = [plain[one] for one in known if one in plain]
        given = [name for name in given if not _is_group(images, name)]
        if given:
            found[title] = images.table[given]
    for name in columns:
        found.setdefault(str(name), images.table[[name]])
    return {
        title: table.reset_index(drop=True)
        for title, table in found.items()
        if (table.nunique() > 1).any()
    }


def _is_group(images: ImageSet, name: str) -> bool:
    """Whether a column is the group under another name: of unseen groups it can tell nothing."""
    values = images.table[name].astype(str).to_numpy()
    pairs = pd.DataFrame({"a": values, "b": images.groups}).drop_duplicates()
    return len(pairs) == pairs["a"].nunique() == pairs["b"].nunique()


def as_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers or text as numbers a straight line can use: hats over the quantiles, one
    column per word.
    """
    from sklearn.preprocessing import SplineTransformer

    parts = []
    for name in table:
        values = table[name]
        text = values.astype(str)
        if values.dtype == object and text.str.fullmatch(r"[A-Za-z]{1,2}\d{1,2}").all():  # wells
            parts.append(_words(text, name))
            parts.append(_words(text.str.extract(r"^([A-Za-z]+)")[0], f"{name} row"))
            continue
        if values.dtype == bool:
            numbers = values.astype(float)
        else:
            numbers = pd.to_numeric(values, errors="coerce")
        if (numbers.isna() & values.notna()).any():  # words among them
            dates = pd.to_datetime(values, errors="coerce", format="mixed")
            if dates.isna().any() or not text.str.contains(r"\d{4}").all():
                parts.append(_words(text, name))
                continue
            numbers = dates.astype("int64").astype(float)
        numbers = numbers.astype(float).replace([np.inf, -np.inf], np.nan)
        numbers = numbers.fillna(numbers.median())
        if numbers.nunique() <= KNOTS:
            parts.append(_words(numbers.astype(str), name))
            continue
        knots = np.unique(np.quantile(numbers, np.linspace(0, 1, KNOTS)))[:, None]
        hats = SplineTransformer(degree=1, knots=knots).fit_transform(numbers.to_numpy()[:, None])
        parts.append(pd.DataFrame(hats, columns=[f"{name} {at}" for at in range(hats.shape[1])]))
    return pd.concat(parts, axis=1)


def _words(values: pd.Series, name: str) -> pd.DataFrame:
    common = values.value_counts().index[:LEVELS]
    return pd.DataFrame({f"{name} = {word}": (values == word).to_numpy(float) for word in common})


def _estimated_auc(images: ImageSet, rows: np.ndarray, scores: np.ndarray) -> Estimate:
    """AUC of scores, (rows, classes), with its interval, made as that of any model."""
    # squeezed into what looks like probabilities: only their order counts
    shares = softmax(scores / max(float(abs(scores).max()), 1e-12) * 5, axis=1)
    return evaluate(Predictions.of(images, shares, rows))["auc"]


# The checks


@dataclass(frozen=True)
class _Tried:
    """One shortcut of one set: its raw columns and the numbers made of them, and how well it tells
    the label. ``certain``: chance is ruled out, counted over all shortcuts together.
    """

    title: str
    table: pd.DataFrame
    features: pd.DataFrame
    told: Told
    certain: bool = False


@dataclass(frozen=True)
class _Setting:
    """What a shortcut is judged against: the images that are looked at, the image model's test rows
    and its AUC, and which images are fitted on and tested, where the split has a single fold.
    """

    images: ImageSet
    predictions: Predictions | None
    model: Estimate | None
    fitted: np.ndarray
    tested: np.ndarray
    seed: int


def shortcut_checks(question: Question) -> list[Check]:
    """One check per shortcut that this set allows, cross-validated by group, tested against
    shuffled labels; and whether training and test images of a class look alike. None where the
    audit allows no shuffles of the labels.

    A shortcut is flagged when its AUC is 0.7 or more (0.55 for how images were taken or stored, of
    which one class may be the only one to suffer) and, counted over all shortcuts together (Holm),
    shuffled labels do as well in fewer than 1 of 200 sets; it fails when it settles the class (AUC
    0.95 or more), except for brightness, background and file number, which may go with what the
    class is. Where a high AUC may be chance, as in so few groups, the answer is "not assessable";
    it is "warn" where how images were taken settles the class all the same.

    Of a shortcut that is flagged it is said whether it holds on the test part when it was fitted on
    the training part (splits with one fold), how far the image model exceeds it, and whether that
    model's score follows it within a class. ``predictions`` are the model's test rows; raises
    PredictionsError when they are of other classes.
    """
    if not question.shuffles:
        return []
    images = question.images
    known = question.known
    seed = question.seed
    labelled = np.flatnonzero(images.labels >= 0)
    if len(np.unique(images.labels[labelled])) < 2:
        return [
            Check(
                "shortcuts",
                "not assessable",
                "The images have one class: there is nothing to tell.",
                "Add images of another class.",
            )
        ]
    rows = evenly(images.groups[labelled], seed)
    setting = _setting(question, _in_memory(images, labelled[rows]))
    whole = images
    images = setting.images
    lone = pd.Series(images.groups).groupby(images.labels).nunique().min() < 2
    looks = appearance(images) if known.pixels_known else None
    tables = families(images, looks, known.columns)
    if known.pixels_known:  # of the images as they are: made smaller they would have lost them
        for title, table in traces(whole.pixels, labelled[rows]).items():
            if (table.nunique() > 1).any():
                tables[title] = table
    tried = []
    for title, table in tables.items():
        features = table if title in LOOKS else as_numbers(table)
        if lone:  # no group of it is left to learn from when that one is predicted
            told = Told(len(images), reason="a class comes from one group only")
        else:
            told = label_from_features(
                features,
                images.labels,
                images.groups,
                shuffles=question.shuffles,
                seed=seed,
                least_p=ERROR_RATE / len(tables),
            )
        tried.append(_Tried(title, table, features, told))
    certain = adjusted_for_number([one.told.p for one in tried]) <= ERROR_RATE
    checks = [
        _check(replace(one, certain=sure), setting)
        for one, sure in zip(tried, certain, strict=True)
    ]
    if len(setting.tested) and looks is not None:
        checks.append(_parts_check(looks, setting))
    return checks


def _setting(question: Question, images: ImageSet) -> _Setting:
    split = question.split
    predictions = question.predictions
    model = None
    if predictions is not None and len(predictions):
        if tuple(predictions.classes) != tuple(images.classes):
            raise PredictionsError(
                "predictions",
                f"their classes {list(predictions.classes)} are not those of the images.",
                f"The classes are {list(images.classes)}.",
            )
        model = evaluate(predictions)["auc"]
    fitted = np.zeros(len(images), bool)
    tested = fitted
    if split is not None and len(split.folds()) == 1:
        fold = split.folds()[0]
        tested = np.isin(images.ids, split.ids(*fold, "test"))
        fitted = np.isin(images.ids, split.ids(*fold, "train", "validation")) & ~tested
    rows = [np.flatnonzero(part) for part in (fitted, tested)]
    return _Setting(images, predictions, model, *rows, question.seed)


def _in_memory(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """The images at these rows; large ones averaged down to LARGEST_PX, one at a time, so that they
    fit in memory.
    """
    if max(images.pixels.shape[-2:]) <= LARGEST_PX:
        return images.take(rows)
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    pixels = []
    for row in rows:
        values = torch.from_numpy(np.asarray(images.pixels[row], np.float32))
        small = adaptive_avg_pool2d(values, LARGEST_PX).round()
        pixels.append(small.numpy().astype(images.pixels.dtype))
    table = images.table.iloc[rows].reset_index(drop=True)
    return replace(images, table=table, pixels=np.stack(pixels))


def _check(one: _Tried, setting: _Setting) -> Check:
    name = f"shortcut: {one.title}"
    told = one.told
    if told.reason:
        says = f"Whether the {one.title} tells the class cannot be tested: {told.reason}."
        return Check(name, "not assessable", says, "", {"n": told.n})
    numbers = {
        key: getattr(told, key) for key in ("auc", "chance", "p", "shuffles", "n", "n_units")
    }
    acquisition = one.title in ACQUISITION
    settled = acquisition and told.auc >= SETTLED
    few = settled and told.chance >= SETTLED  # a handful of plates: shuffles often look alike
    notable = told.auc >= (NOTABLE_ACQUISITION if acquisition else NOTABLE_AUC)
    if not (notable and (one.certain or few)):
        figures = f"AUC {told.auc:.2f}, chance up to {told.chance:.2f}"
        if not one.certain and (told.auc >= NOTABLE_AUC or told.chance >= SETTLED):
            return Check(
                name,
                "not assessable",
                f"Whether the {one.title} tells the class cannot be told from chance here "
                f"({figures}, {told.n_units} units to shuffle).",
                "Add images of more groups.",
                numbers,
            )
        says = f"The {one.title} tells little about the class ({figures})."
        return Check(name, "pass", says, "", numbers)

    images = setting.images
    scores = np.full((told.n, len(images.classes)), told.scores.min() - 1)
    scores[:, np.unique(images.labels[told.rows])] = told.scores
    auc = replace(_estimated_auc(images, told.rows, scores), value=told.auc)
    forest = _forest(one.table, images, setting.seed)
    numbers |= {"low": auc.low, "high": auc.high, "forest": forest}
    says = (
        f"The class of unseen groups is told by the {one.title} alone with an AUC of "
        f"{auc.text(2)} (chance up to {told.chance:.2f}, n = {told.n}); a random forest on it is "
        f"right in {forest['accuracy'].value:.0%} (always the commonest class: "
        f"{forest['majority']:.0%})."
    )
    if one.title in LOOKS:
        says += _most_telling(one.table, images)
    holds, of_test = _on_test_part(one, setting, numbers)
    if of_test is None:
        says += _beside_model(one, setting, told.rows, scores, numbers)
    else:
        says += holds + _beside_model(one, setting, setting.tested, of_test, numbers)
    if few:
        says += (
            f" With {told.n_units} units to shuffle, chance cannot be ruled out; "
            "nor can the shortcut."
        )
    # per level of the shortcut, how many of each class: what a reader believes at once
    rows = one.table.iloc[told.rows].assign(
        image=images.ids[told.rows], label=images.table["label"].to_numpy()[told.rows]
    )
    verdict = "fail" if settled and one.certain else "warn"
    return Check(name, verdict, says, ADVICE.get(one.title, OTHER_ADVICE), numbers, rows)


def _on_test_part(one: _Tried, setting: _Setting, numbers: dict) -> tuple[str, np.ndarray | None]:
    """Whether a shortcut of the training part holds on the test part, in words, and its scores of
    the test images, fitted on the training part. Adds the numbers.
    """
    images = setting.images
    fitted = setting.fitted
    labels = images.labels
    kinds = np.unique(labels[fitted])
    if not len(setting.tested) or len(kinds) < 2:
        return "", None
    values = finite(one.features)
    scores = [
        discriminant_scores(values, labels[:, None], fitted, setting.tested, kind)[:, 0]
        for kind in range(len(images.classes))
    ]
    scores = np.stack(scores, axis=1)
    tested = _estimated_auc(images, setting.tested, scores)
    columns = np.searchsorted(np.unique(labels), kinds)
    inner = auc_of_scores(
        one.told.scores[fitted][:, columns], labels[fitted][:, None] == kinds
    ).mean()
    numbers["auc within the training part"] = float(inner)
    numbers["auc on the test part"] = tested
    if tested.value is None or tested.value >= inner - FADED:
        return "", scores
    return (
        f" Its AUC is {inner:.2f} among training images, and fitted on them {tested.value:.2f} on "
        "the test part: it holds in training only, and a model that takes it will do worse on new "
        "images."
    ), scores


def _beside_model(
    one: _Tried, setting: _Setting, rows: np.ndarray, scores: np.ndarray, numbers: dict
) -> str:
    """How far the image model exceeds the shortcut, and whether it follows it (``scores`` of these
    ``rows``). Adds the numbers.
    """
    if setting.model is None or setting.model.value is None:
        return ""
    numbers["image model auc"] = setting.model.value
    more = setting.model.value - one.told.auc
    says = f" The image model's AUC is {setting.model.value:.2f}, "
    if more >= HARDLY_MORE:
        says += f"{more:.2f} above it."
    else:
        says += "which is hardly more: what it has learnt cannot be told from this."
    follows = _follows(setting, rows, scores)
    if follows is None:
        return says
    numbers["image model follows it"] = follows
    if follows > FOLLOWS:
        says += (
            f" Among test images of one class the model's score follows the {one.title} (rank "
            f"correlation {follows:.2f}): it has learnt the shortcut."
        )
    return says


def _follows(setting: _Setting, rows: np.ndarray, scores: np.ndarray) -> float | None:
    """Mean rank correlation of the model's log-probabilities with the shortcut's scores, among
    images of one class; None where nothing can be compared.
    """
    predictions = setting.predictions
    place = pd.Series(np.arange(len(rows)), index=setting.images.ids[rows])
    at = place.reindex(predictions.table["id"]).to_numpy()
    logarithms = np.log(np.clip(predictions.probabilities, 1e-12, 1))
    found = []
    for label in range(len(predictions.classes)):
        inside = np.isfinite(at) & (predictions.true_index == label)
        if inside.sum() < 10:
            continue
        own = scores[at[inside].astype(int)]
        for kind in range(len(predictions.classes)):
            model = logarithms[inside, kind]
            if np.ptp(model) > 0 and np.ptp(own[:, kind]) > 0:
                found.append(spearmanr(model, own[:, kind]).statistic)
    return float(np.mean(found)) if found else None


def _most_telling(table: pd.DataFrame, images: ImageSet) -> str:
    """The column in which two classes lie farthest apart, in standard deviations
    between groups."""
    units = table.groupby([images.labels, images.groups]).mean()
    kind = units.index.get_level_values(0).to_numpy()
    present = np.unique(kind)
    of_kind = [units.to_numpy()[kind == one] for one in present]
    means = np.stack([values.mean(axis=0) for values in of_kind])
    inner = np.sqrt(np.mean([values.var(axis=0) for values in of_kind], axis=0))
    apart = (means.max(axis=0) - means.min(axis=0)) / np.where(inner > 1e-9, inner, np.inf)
    best = int(np.argmax(apart))
    high = images.classes[present[means[:, best].argmax()]]
    low = images.classes[present[means[:, best].argmin()]]
    return (
        f" Most telling is the {table.columns[best]}: {means[:, best].max():.1f} in {high}, "
        f"{means[:, best].min():.1f} in {low}."
    )


def _forest(table: pd.DataFrame, images: ImageSet, seed: int) -> dict:
    """Scores of a random forest on the raw columns, each group predicted by the others: a number
    people can picture.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    columns = {}
    for name in table:
        columns[name] = table[name]
        if not pd.api.types.is_numeric_dtype(table[name]):
            columns[name] = pd.factorize(table[name].astype(str), sort=True)[0]
    values = pd.DataFrame(columns).fillna(-1).astype(float)
    labels = images.labels
    groups = images.groups
    folds = GroupKFold(min(10, len(set(groups))), shuffle=True, random_state=seed % 2**32)
    forest = RandomForestClassifier(100, random_state=seed % 2**32, min_samples_leaf=2)
    found = cross_val_predict(forest, values, labels, groups=groups, cv=folds)
    shares = np.eye(len(images.classes))[found]
    scores = evaluate(Predictions.of(images, shares))
    return {
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
        "majority": float(np.bincount(labels).max() / len(labels)),
    }


# Training against test images


def part_difference(
    features: pd.DataFrame,
    labels: np.ndarray,
    groups: np.ndarray,
    tested: np.ndarray,
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
    values = pd.DataFrame(finite(features), columns=features.columns)
    keys = [np.asarray(labels), np.asarray(groups).astype(str)]
    units = values.groupby(keys).mean()
    kind = units.index.get_level_values(0).to_numpy()
    tests = pd.Series(np.asarray(tested, float)).groupby(keys).mean().to_numpy() > 0.5
    usable = [
        one
        for one in np.unique(kind)
        if tests[kind == one].sum() >= 2 and (~tests[kind == one]).sum() >= 2
    ]
    if not usable:
        reason = "no class has two groups in training and two in test"
        return {"n_units": len(units), "reason": reason}
    rng = generator_for(seed, "shuffle parts")
    largest = np.zeros(PART_SHUFFLES)
    effects = []
    differences = []
    for one in usable:
        table = units.to_numpy()[kind == one]
        test = tests[kind == one]
        scale = table.std(axis=0, ddof=1)
        scaled = table / np.where(scale > 1e-9, scale, np.inf)
        drawn = rng.permuted(np.tile(test, (PART_SHUFFLES, 1)), axis=1)
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
        "p": float((1 + (largest >= effect - 1e-12).sum()) / (1 + PART_SHUFFLES)),
    }


def _parts_check(looks: pd.DataFrame, setting: _Setting) -> Check:
    name = "look of training and test images"
    images = setting.images
    rows = np.concatenate([setting.fitted, setting.tested])
    found = part_difference(
        looks.iloc[rows],
        images.labels[rows],
        images.groups[rows],
        np.arange(len(rows)) >= len(setting.fitted),
        setting.seed,
    )
    if "reason" in found:
        says = f"Whether test images look like training images cannot be tested: {found['reason']}."
        return Check(name, "not assessable", says, "", found)
    found["label"] = images.classes[found["label"]]
    if found["p"] > ERROR_RATE:
        says = (
            "By brightness and contrast, the test images of a class look like its training images."
        )
        return Check(name, "pass", says, "", found)
    return Check(
        name,
        "warn",
        f"Test images of {found['label']} differ from training images of the same class: "
        f"{found['feature']} by {found['difference']:+.1f} ({found['effect']:.1f} standard "
        "deviations between groups). The score may say more about that difference than about the "
        "classes.",
        "Take training and test images alike, or normalise each image.",
        found,
    )
