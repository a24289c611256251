"""Several models against one on the same images, corrected for the number of comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from nbhelpers.core.errors import PredictionsError
from nbhelpers.core.predictions import Predictions
from nbhelpers.evaluation.paired import COMPARED, compare


def adjusted_for_number(p_values: ArrayLike, method: str = "holm") -> np.ndarray:
    """p-values of any shape adjusted for their number by Holm's method (1979), or another one of
    statsmodels, float64; where there is none (None, NaN) it is NaN, and does not count.
    """
    from statsmodels.stats.multitest import multipletests

    adjusted = np.array(p_values, dtype=float)
    known = np.isfinite(adjusted)
    if known.any():
        adjusted[known] = multipletests(adjusted[known], method=method)[1]
    return adjusted


def compare_with_reference(predictions: Predictions, reference: str) -> pd.DataFrame:
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
        found = compare(predictions.where(model=name), predictions.where(model=reference))
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
        place = table.columns.get_loc(column) + 1
        table.insert(place, f"{column} (Holm)", adjusted_for_number(table[column]))
    return table
