"""The tables of an answer: predictions of new images, and images with label and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import TableError, check_columns, nearest
from nbhelpers.core.keys import one_spelling
from nbhelpers.core.predictions import PROBABILITY_PREFIX
from nbhelpers.core.tables import IMAGE_COLUMNS, read_table, with_columns

PREDICTED = {"predicted": ("prediction", "predicted class", "predicted label")}
# "group" is neither: in our tables it is what is not split (the neuron), in others the condition
NEW = PREDICTED | {
    "unit": (
        *("animal", "mouse", "rat", "culture", "patient", "subject", "donor"),
        *("unit id", "animal id", "mouse id", "patient id", "subject id", "donor id"),
    ),
    "condition": ("treatment", "genotype", "arm"),
    "subunit": (),
}
LABELLED = PREDICTED | {
    "label": IMAGE_COLUMNS["label"],
    "group": ("unit", "culture", "rat", *IMAGE_COLUMNS["group"]),
}
FIX = "Give a table (.csv, .tsv, .xlsx) with one row per image."


def read_tables(
    new: Path, labelled: Path
) -> tuple[pd.DataFrame, pd.DataFrame, list[str], list[str]]:
    """The new images (predicted, unit, condition, perhaps subunit), the labelled ones (label,
    predicted, group; without one each image is a group), the classes, and what must be said.

    Rows with a ``problem`` are left out. Raises TableError for absent columns and empty cells, for
    predictions of several models or of training images, for a unit in two conditions, a label that
    the classifier does not know, and a class without labelled images.
    """
    notes: list[str] = []
    tables = {
        new: _read(new, NEW, ("predicted", "unit", "condition"), notes),
        labelled: _read(labelled, LABELLED, ("label", "predicted"), notes),
    }
    found = tables[new]
    known = tables[labelled]
    if "group" not in known:
        known["group"] = known.index.astype(str)
        notes.append(f"{labelled.name} has no column group: each image counts by itself.")
    for path, names in ((new, ("unit", "condition", "subunit")), (labelled, ("group",))):
        for name in names:
            if name in tables[path]:
                tables[path][name], joined = one_spelling(tables[path][name], name, path)
                notes += joined
    several = found.groupby("unit")["condition"].unique()
    several = several[several.str.len() > 1]
    if len(several):
        raise TableError(
            new,
            f"the unit {several.index[0]} is in the conditions {', '.join(several.iloc[0])}.",
            "Units are compared: give each its one condition, and different ones different names.",
        )
    columns = [found["predicted"], known["predicted"], known["label"]]
    named = [
        name.removeprefix(PROBABILITY_PREFIX)
        for table in tables.values()
        for name in _probabilities(table)
    ]
    keys, _ = one_spelling([*pd.concat(columns), *named], "class", f"{new} and {labelled}")
    for table, name in ((found, "predicted"), (known, "predicted"), (known, "label")):
        table[name] = keys[: len(table)]
        keys = keys[len(table) :]
    classes = list(dict.fromkeys(keys or sorted({*found["predicted"], *known["predicted"]})))
    for path, name in ((labelled, "label"), (labelled, "predicted"), (new, "predicted")):
        strange = ~tables[path][name].isin(classes)
        if strange.any():
            text = tables[path].loc[strange, name].iloc[0]
            raise TableError(
                f"{path.name}, row {strange.idxmax()}",
                f"the {name} {text!r} is no class of the classifier.",
                nearest(text, classes),
            )
    unseen = [name for name in classes if name not in set(known["label"])]
    if unseen:
        raise TableError(
            labelled,
            f"no image is labelled {unseen[0]!r}: how often that class is missed is not known.",
            "Label images of every class that is predicted.",
        )
    return found, known, classes, notes


def _read(
    path: Path, wanted: Mapping[str, Sequence[str]], needed: Sequence[str], notes: list[str]
) -> pd.DataFrame:
    table = with_columns(read_table(path, "the table", FIX), path, wanted)
    if "problem" in table and (table["problem"] != "").any():
        notes.append(f"{path.name}: {(table['problem'] != '').sum()} rows with a problem left out.")
        table = table[table["problem"] == ""]
    strange = table.get("out_of_distribution", pd.Series()).str.casefold() == "true"
    if strange.any():
        notes.append(
            f"{path.name}: {strange.sum()} of {len(table)} images are out of distribution, "
            "where the error rates may be others."
        )
    if "model" in table and table["model"].nunique() > 1:
        raise TableError(
            path,
            f"it holds predictions of {table['model'].nunique()} models.",
            f"Keep the rows of one: {', '.join(sorted(set(table['model'])))}.",
        )
    if "split" in table and table["split"].str.casefold().str.startswith("train").any():
        raise TableError(
            path,
            "it holds predictions of training images, which are better than those of new ones.",
            "Keep those of validation or test images, or all of a cross-validation.",
        )
    columns = _probabilities(table)
    if columns and "predicted" not in table:
        numbers = table[columns].apply(pd.to_numeric, errors="coerce")
        bad = numbers.isna().any(axis=1)
        if bad.any():
            raise TableError(
                f"{path.name}, row {bad.idxmax()}",
                "a probability is no number.",
                "Give one for each class, with a decimal point, or the column predicted.",
            )
        table["predicted"] = numbers.idxmax(axis=1).str.removeprefix(PROBABILITY_PREFIX)
    check_columns(path, table, needed)
    for name in wanted:
        empty = table[name] == "" if name in table else pd.Series(dtype=bool)
        if empty.any():
            raise TableError(
                f"{path.name}, row {empty.idxmax()}",
                f"it has no {name}.",
                "Fill it in, or leave the row out.",
            )
    return table.copy()


def _probabilities(table: pd.DataFrame) -> list[str]:
    return [name for name in table if name.startswith(PROBABILITY_PREFIX)]
