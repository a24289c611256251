"""Shortcuts: how well the label is told by what should not matter, such as file number, bit depth
or well position.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from nbhelpers.audit.verdicts import Check
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.metrics import evaluate
from nbhelpers.evaluation.shortcuts import NOTABLE_AUC, _span, appearance, label_from_features

LARGEST_PX = 256  # height and width in which brightness is looked at
MOST_IMAGES = 4000  # looked at; evenly from all groups
NOTABLE_ACQUISITION = (
    0.55  # AUC of how an image was taken or stored that is worth a word; of its looks: NOTABLE_AUC
)
ERROR_RATE = 0.005  # of all shortcuts of a set together (Holm)
SETTLED = 0.95  # AUC from which an acquisition that tells the class makes every score meaningless
# of a number; of a text column
KNOTS = 7
LEVELS = 30
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
}
ADVICE = {
    "file number": "Find out in which order the images were taken or stored, and why classes came "
    "together; the network "
    "does not see the number, but it may see what changed with it.",
    "file format": "Read all images from one format, and save them anew in one way; look for "
    "traces of compression.",
    "bit depth": "Bring all images to one bit depth before anything else (masks: make them "
    "strictly black and white).",
    "colour": "Read all images as grey, or all as colour.",
    "image size": "Crop or scale all classes in the same way.",
    "brightness": "Look whether brightness is part of what the class is; if not, normalise each "
    "image.",
    "border and corners": "Crop the border, or find out what marks it (burnt-in text, scale bars, "
    "padding).",
    "plate position": "Randomise the layout, or test on plates where the same treatment lies in "
    "other wells.",
}
MEND = (
    "Take it into account in the split (whole centres, plates or days held out), or take "
    "images of all classes alike."
)
FAILS = (
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
)


def families(
    images: ImageSet, columns: Sequence[str] = (), pixels_known: bool = True
) -> dict[str, pd.DataFrame]:
    """Name of each shortcut to its raw columns, one row per image: what there is to be tried in
    this set.

    File numbers come from the ids; brightness, border and corners from the pixels; the rest from
    columns of the table that are named as in ``COLUMNS`` or in ``columns``.
    """
    found = {}
    numbers = (
        pd.Series(images.ids)
        .str.rsplit("/", n=1)
        .str[-1]
        .str.extract(r"(\d+)[^0-9]*$")[0]
        .astype(float)
    )
    if numbers.notna().mean() > 0.9 and numbers.nunique() > 2:
        found["file number"] = numbers.fillna(-1).to_frame("file number")
    if pixels_known:
        looks = appearance(images)
        border = [name for name in looks if "border" in name]
        found["brightness"] = looks.drop(columns=border)
        found["border and corners"] = looks[border].join(_corners(images))
    plain = {
        re.sub(r"^metadata_", "", str(name).strip().lower()).replace(" ", "_"): name
        for name in images.table
    }
    for title, known in COLUMNS.items():
        names = [plain[one] for one in known if one in plain]
        names = [name for name in names if not _is_group(images, name)]
        if names:
            found[title] = images.table[names]
    for name in columns:
        found.setdefault(str(name), images.table[[name]])
    return {
        title: table.reset_index(drop=True)
        for title, table in found.items()
        if (table.nunique() > 1).any()
    }


def _is_group(images: ImageSet, name: str) -> bool:
    """Whether a column is the group under another name: of unseen groups it can tell nothing."""
    pairs = pd.DataFrame(
        {"a": images.table[name].astype(str).to_numpy(), "b": images.groups}
    ).drop_duplicates()
    return len(pairs) == pairs["a"].nunique() == pairs["b"].nunique()


def _corners(images: ImageSet) -> pd.DataFrame:
    side = max(2, images.pixels.shape[-1] // 16)
    at = {
        f"{up} {left} corner": (rows, columns)
        for up, rows in (("upper", slice(0, side)), ("lower", slice(-side, None)))
        for left, columns in (("left", slice(0, side)), ("right", slice(-side, None)))
    }
    return pd.DataFrame(
        [
            {
                name: float(np.asarray(image[..., rows, columns]).mean())
                for name, (rows, columns) in at.items()
            }
            for image in images.pixels
        ]
    )


def as_numbers(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of numbers or text as numbers a straight line can use: hats over the quantiles, one
    column per word.
    """
    from sklearn.preprocessing import SplineTransformer

    parts = []
    for name in table:
        values = table[name]
        if (
            values.dtype == object
            and values.astype(str).str.fullmatch(r"[A-Za-z]{1,2}\d{1,2}").all()
        ):
            text = values.astype(str)
            parts.append(_words(text, name))
            parts.append(_words(text.str.extract(r"^([A-Za-z]+)")[0], f"{name} row"))
            continue
        numbers = (
            pd.to_numeric(values, errors="coerce") if values.dtype != bool else values.astype(float)
        )
        if (numbers.isna() & values.notna()).any():  # words among them
            dates = pd.to_datetime(values, errors="coerce", format="mixed")
            if dates.isna().any() or not values.astype(str).str.contains(r"\d{4}").all():
                parts.append(_words(values.astype(str), name))
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


def shortcut_checks(
    images: ImageSet,
    *,
    columns: Sequence[str] = (),
    predictions: Predictions | None = None,
    pixels_known: bool = True,
    shuffles: int = 1000,
    seed: int = 0,
) -> list[Check]:
    """One check per shortcut that this set allows, cross-validated by group, tested against
    shuffled labels.

    A shortcut is flagged when its AUC is 0.7 or more (0.55 for how images were taken or stored, of
    which one class may be the only one to suffer) and, counted over all shortcuts together (Holm),
    shuffled labels do as well in fewer than 1 of 200 sets; it fails when it settles the class (AUC
    0.95 or more), except for brightness and file number, which may go with what the class is. Where
    a high AUC may be chance, as in so few groups, the answer is "not assessable"; it is "warn" where
    how images were taken settles the class all the same. ``predictions`` of an image model (test
    part) are compared with it.
    """
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
    rows = _some(images.groups[labelled], seed)
    images = _in_memory(images, labelled[rows])
    model = (
        evaluate(predictions, resamples=500, seed=seed)["auc"]
        if predictions is not None and len(predictions)
        else None
    )
    lone = (
        min(
            len(np.unique(images.groups[images.labels == kind]))
            for kind in np.unique(images.labels)
        )
        < 2
    )
    tested = {}
    checks = []
    tried = families(images, columns, pixels_known)
    for title, table in tried.items():
        features = table if title == "brightness" else as_numbers(table)
        tested[title] = (
            table,
            label_from_features(
                features,
                images.labels,
                images.groups,
                shuffles=shuffles,
                seed=seed,
                least_p=ERROR_RATE / len(tried),
            ),
        )
        if lone:  # no group of it is left to learn from when that one is predicted
            tested[title] = (
                table,
                {"n": tested[title][1]["n"], "reason": "a class comes from one group only"},
            )
    order = sorted(
        (title for title in tested if "p" in tested[title][1]),
        key=lambda title: tested[title][1]["p"],
    )
    passed = 0
    for rank, title in enumerate(
        order
    ):  # Holm: from the first that chance may explain, none is flagged
        if tested[title][1]["p"] > ERROR_RATE / (len(order) - rank):
            break
        passed = rank + 1
    for title, (table, found) in tested.items():
        checks.append(_check(title, table, found, title in order[:passed], images, model, seed))
    return checks


def _in_memory(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """The images at these rows; large ones averaged down to LARGEST_PX, one at a time, so that they
    fit in memory.
    """
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    if max(images.pixels.shape[-2:]) <= LARGEST_PX:
        return images.take(rows)
    pixels = np.stack(
        [
            adaptive_avg_pool2d(
                torch.from_numpy(np.asarray(images.pixels[row], np.float32)), LARGEST_PX
            )
            .round()
            .numpy()
            .astype(images.pixels.dtype)
            for row in rows
        ]
    )
    return replace(images, table=images.table.iloc[rows].reset_index(drop=True), pixels=pixels)


def _some(groups: np.ndarray, seed: int) -> np.ndarray:
    if len(groups) <= MOST_IMAGES:
        return np.arange(len(groups))
    from nbhelpers.evaluation.shortcuts import _evenly

    return _evenly(groups, seed)


def _check(
    title: str,
    table: pd.DataFrame,
    found: Mapping,
    certain: bool,
    images: ImageSet,
    model: Mapping | None,
    seed: int,
) -> Check:
    name = f"shortcut: {title}"
    if "reason" in found:
        return Check(
            name,
            "not assessable",
            f"Whether the {title} tells the class cannot be tested: {found['reason']}.",
            "",
            {"n": found["n"]},
        )
    numbers = {key: found[key] for key in ("auc", "chance", "p", "shuffles", "n", "n_units")}
    settled = title in FAILS and found["auc"] >= SETTLED
    few = (
        settled and found["chance"] >= SETTLED
    )  # a handful of plates: shuffles of them often look alike
    if not (certain or few) or found["auc"] < (
        NOTABLE_ACQUISITION if title in FAILS else NOTABLE_AUC
    ):
        if not certain and (found["auc"] >= NOTABLE_AUC or found["chance"] >= SETTLED):
            return Check(
                name,
                "not assessable",
                f"Whether the {title} tells the class cannot be told from chance here (AUC "
                f"{found['auc']:.2f}, chance up to {found['chance']:.2f}, {found['n_units']} units "
                f"to shuffle).",
                "Add images of more groups.",
                numbers,
            )
        return Check(
            name,
            "pass",
            f"The {title} tells little about the class (AUC {found['auc']:.2f}, chance up to "
            f"{found['chance']:.2f}).",
            "",
            numbers,
        )
    numbers |= _span(images, found["rows"], found["scores"], seed) | {
        "forest": _forest(table, images, seed)
    }
    accuracy = numbers["forest"]["accuracy"]
    says = (
        f"The class of unseen groups is told by the {title} alone with an AUC of "
        f"{found['auc']:.2f} "
        f"[{_number(numbers['low'])}, {_number(numbers['high'])}] (chance up to "
        f"{found['chance']:.2f}, n = {found['n']}); "
        f"a random forest on it is right in {accuracy['value']:.0%} (always the commonest class: "
        f"{numbers['forest']['majority']:.0%})."
    )
    if model is not None and model["value"] is not None:
        numbers["image model auc"] = model["value"]
        more = model["value"] - found["auc"]
        says += f" The image model's AUC is {model['value']:.2f}, " + (
            f"{more:.2f} above it."
            if more >= 0.05
            else "which is hardly more: what it has learnt cannot be told from this."
        )
    if few:
        says += (
            f" With {found['n_units']} units to shuffle, chance cannot be ruled out; "
            "nor can the shortcut."
        )
    # per level of the shortcut, how many of each class: what a reader believes at once
    rows = table.iloc[found["rows"]].assign(
        image=images.ids[found["rows"]], label=images.table["label"].to_numpy()[found["rows"]]
    )
    return Check(
        name,
        "fail" if settled and certain else "warn",
        says,
        ADVICE.get(title, MEND),
        numbers,
        rows,
    )


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"


def _forest(table: pd.DataFrame, images: ImageSet, seed: int) -> dict:
    """Scores of a random forest on the raw columns, each group predicted by the others: a number
    people can picture.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GroupKFold, cross_val_predict

    values = (
        pd.DataFrame(
            {
                name: table[name]
                if pd.api.types.is_numeric_dtype(table[name])
                else pd.factorize(table[name].astype(str), sort=True)[0]
                for name in table
            }
        )
        .fillna(-1)
        .astype(float)
    )
    labels = images.labels
    groups = images.groups
    folds = GroupKFold(min(10, len(set(groups))), shuffle=True, random_state=seed % 2**32)
    forest = RandomForestClassifier(100, random_state=seed % 2**32, min_samples_leaf=2)
    found = cross_val_predict(forest, values, labels, groups=groups, cv=folds)
    shares = np.eye(len(images.classes))[found]
    scores = evaluate(
        Predictions.build(
            ids=images.ids,
            labels=images.table["label"],
            groups=groups,
            probabilities=shares,
            classes=images.classes,
            model="forest",
        ),
        resamples=500,
        seed=seed,
    )
    return {
        "accuracy": scores["accuracy"],
        "macro_f1": scores["macro_f1"],
        "majority": float(np.bincount(labels).max() / len(labels)),
    }
