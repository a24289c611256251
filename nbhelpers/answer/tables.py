"""The tables of an answer: predictions of new images, and images with label and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import TableError, check_columns
from nbhelpers.core.keys import one_spelling
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.core.tables import IMAGE_COLUMNS, read_table, with_columns

PREDICTED = {"predicted": ("prediction", "predicted class", "predicted label")}
UNITS = "animal,mouse,rat,culture,patient,subject,donor,animal id,mouse id,patient id,subject id"
# "group" is neither: in our tables it is what is not split (the neuron), in others the condition
NEW = PREDICTED | {
    "unit": UNITS.split(","),
    "condition": ("treatment", "genotype", "arm"),
    "subunit": (),
}
LABELLED = PREDICTED | {
    "label": IMAGE_COLUMNS["label"],
    "group": ("unit", "culture", "rat", *IMAGE_COLUMNS["group"]),
}


def read_tables(
    new: Path, labelled: Path
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], list[str]]:
    """The new images (predicted, unit, condition, perhaps subunit), the labelled ones (label,
    predicted, group; without one each image is a group), the classes, and what must be said.

    Raises TableError for absent columns and empty cells, for
    predictions of several models or of training images, for a unit in two conditions, a label that
    the classifier does not know, and a class without labelled images.
    """
    notes: list[str] = []
    found = _read(new, NEW, ("predicted", "unit", "condition"), notes)
    known = _read(labelled, LABELLED, ("label", "predicted"), notes)
    if "group" not in known:
        known["group"] = known.index.astype(str)
        notes.append(f"{labelled.name} has no column group: each image counts by itself.")
    _refuse(
        new,
        found.groupby("unit")["condition"].transform("nunique") > 1,
        "its unit stands in two conditions.",
        "Units are compared: give each one condition, and different units different names.",
    )
    named = [*_probabilities(found), *_probabilities(known)]
    classes = [name.removeprefix(PROBABILITY_PREFIX) for name in named]
    columns = [
        (new, found, "predicted"),
        (labelled, known, "predicted"),
        (labelled, known, "label"),
    ]
    texts = [*classes, *pd.concat([table[name] for _, table, name in columns])]
    keys, _ = one_spelling(texts, "class", f"{new} and {labelled}")
    spelled = dict(zip(texts, keys, strict=True))
    for _, table, name in columns:
        table[name] = table[name].map(spelled)
    classes = [spelled[name] for name in dict.fromkeys(classes)]
    classes = classes or sorted({*found["predicted"], *known["predicted"]})
    for path, table, name in columns:
        strange = ~table[name].isin(classes)
        _refuse(
            path, strange, f"its {name} is no class of the classifier.", f"There is: {classes}."
        )
    if unseen := sorted(set(classes) - set(known["label"])):
        raise TableError(
            labelled,
            f"no image is labelled {unseen[0]!r}: how often that class is missed is not known.",
            "Label images of every class that is predicted.",
        )
    if len(classes) < 2:
        raise TableError(labelled, "there is one class only.", "Give the other predictions, too.")
    return found, known, classes, notes


def _refuse(path: Path, bad: pd.Series, what: str, fix: str) -> None:
    """Raises TableError for the first row that is bad, (n,) bool."""
    if bad.any():
        raise TableError(f"{path.name}, row {bad.idxmax()}", what, fix)


def _read(
    path: Path, wanted: Mapping[str, Sequence[str]], needed: Sequence[str], notes: list[str]
) -> pd.DataFrame:
    table = read_table(path, "the table", "Give a table with one row per image.")
    table = with_columns(table, path, wanted)
    nothing = pd.Series("", table.index)
    strange = (table.get("out_of_distribution", nothing) == "True").sum()
    if strange:
        notes.append(f"{path.name}: {strange} of {len(table)} images are out of distribution.")
    for name, what in (("model", "of another model"), ("split", "of a training image")):
        column = table.get(name, nothing)
        bad = column != column.iloc[0] if name == "model" else column.str.startswith("train")
        _refuse(path, bad, f"its prediction is {what}.", "Keep those of one model on other images.")
    probabilities = _probabilities(table)
    if probabilities and "predicted" not in table:
        numbers = table[probabilities].apply(pd.to_numeric, errors="coerce")
        fix = "Give one for each class, with a decimal point, or the column predicted."
        _refuse(path, numbers.isna().any(axis=1), "a probability is no number.", fix)
        table["predicted"] = numbers.idxmax(axis=1).str.removeprefix(PROBABILITY_PREFIX)
    check_columns(path, table, needed)
    for name in [name for name in wanted if name in table]:
        _refuse(path, table[name] == "", f"it has no {name}.", "Fill it in, or leave the row out.")
        if name not in ("label", "predicted"):
            table[name], joined = one_spelling(table[name], name, path)
            notes += joined
    return table


def _probabilities(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name.startswith(PROBABILITY_PREFIX)]
