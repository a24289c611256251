"""Shares of each class per unit and condition, and how the conditions differ."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from nbhelpers.answer.shares import Part, corrected
from nbhelpers.core.errors import TableError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import LEVEL, Sampling
from nbhelpers.evaluation.comparison import adjusted_for_number

OTHER_RATES = "counted as these error rates cannot make it: label new images, and give those"
FEWEST_UNITS = 4  # per condition, for a p-value
LEAST_APART = 0.2  # smallest singular value of the error rates: 1 without errors, 0 by chance


def answer(
    new: pd.DataFrame, labelled: pd.DataFrame, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """What tables as :func:`nbhelpers.answer.tables.read_tables` gives them say. Every unit counts
    the same, and within it every subunit.

    The first table has a row per class for each unit, condition and difference of two conditions
    (column ``of``), with the counted and the corrected share, and of differences p, also adjusted
    for their number; of two classes only the second is compared, as the other is its mirror image.
    ``reason`` says why there is no interval or no test. The second table holds the error rates:
    how often each true class (rows) is called each. Then a sentence for each two conditions, or for
    the only one, and for each whose counts contradict the error rates. Raises TableError where the
    classifier hardly tells the classes apart.
    """
    counts = counts_of(labelled, classes)
    rates = counts.sum(0) / counts.sum((0, 2))[:, None]
    if np.linalg.svd(rates, compute_uv=False)[-1] < LEAST_APART:
        raise TableError(
            "the labelled images",
            "the classifier hardly tells the classes apart there, and counts cannot be corrected.",
            "Join classes that it confuses, or train it better.",
        )
    back = np.linalg.inv(rates)
    cells = ["condition", "unit"]
    deeper = [*cells, "subunit"] if "subunit" in new else cells
    hits = pd.get_dummies(pd.Categorical(new["predicted"], classes), dtype=float)
    shares = hits.groupby([new[name].to_numpy() for name in deeper], sort=False).mean()
    shares = shares.groupby(level=[0, 1], sort=False).mean()
    images = new.groupby(cells, sort=False).size().astype(float)[shares.index]
    whole = {
        name: (1, shares.loc[name].to_numpy(), images[name].to_numpy())
        for name in dict.fromkeys(new["condition"])
    }
    places = {}
    for at in shares.index:
        part = (1, shares.loc[[at]].to_numpy(), images[[at]].to_numpy())
        places["unit", at[0], "", at[1]] = [part]
    for name, part in whole.items():
        places["condition", name, "", ""] = [part]
    for first, second in combinations(whole, 2):
        places["difference", second, first, ""] = [whole[second], (-1, *whole[first][1:])]
    rows = [
        dict(zip(("of", "condition", "against", "unit"), place, strict=True))
        | {"class": classes, **_estimated(parts, counts, back)}
        for place, parts in places.items()
    ]
    each = ["class", "counted", "corrected", "low", "high", "p"]
    table = pd.DataFrame(rows).explode(each, ignore_index=True).infer_objects()
    if len(classes) == 2:
        table = table[(table["of"] != "difference") | (table["class"] == classes[1])]
    table["p (Holm)"] = adjusted_for_number(table["p"])
    sentences = []
    told = table[table["of"] == rows[-1]["of"]]
    for names, part in told.groupby(["condition", "against"], sort=False):
        about = f"{' against '.join(filter(None, names))} ({part['units'].iloc[0]} units)"
        sentences.append(f"{about}: {'; '.join(map(_words, part.to_dict('records')))}.")
    strange = table.loc[table["reason"] == OTHER_RATES, "condition"].unique()
    sentences += [f"{name}: {OTHER_RATES}." for name in strange]
    return table, pd.DataFrame(rates, classes, classes), sentences


def counts_of(labelled: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(groups, true class, predicted class) float, the labelled images of each group."""
    group = pd.factorize(labelled["group"])[0]
    at = [pd.Categorical(labelled[name], classes).codes for name in ("label", "predicted")]
    counts = np.zeros((group.max() + 1, len(classes), len(classes)))
    np.add.at(counts, (group, *at), 1)
    return counts


def _estimated(parts: Sequence[Part], counts: np.ndarray, back: np.ndarray) -> dict[str, object]:
    """The columns of the rows of a unit, a condition, or a difference of two; ``back`` is the
    inverse of the error rates.
    """
    units = [len(images) for _, _, images in parts]
    sampled = [("unit", np.ones(n)) for n in units]
    sampled += [("labelled group", sizes) for sizes in counts.sum(2).T]
    lacking = [(what, Sampling.of_sizes(sizes).lacking(sizes)) for what, sizes in sampled]
    reason = next((why.replace("group", what) for what, why in lacking if why), "")
    counted = sum(sign * shares.mean(0) for sign, shares, _ in parts)
    nothing = np.full(len(counted), np.nan)
    found = [counted @ back, nothing, nothing, nothing]
    if not reason:
        found = corrected(parts, counts)
    value, low, high, p = found
    if len(parts) == 1:
        if ((high < 0) | (low > 1)).any():
            reason = OTHER_RATES
        value = np.maximum(value, 0)
        value = value / value.sum()  # shares, none below 0
        p = nothing
    elif not reason and min(units) < FEWEST_UNITS:
        reason = f"no test below {FEWEST_UNITS} units in each condition"
        p = nothing
    return {
        "units": " and ".join(map(str, units)),
        "images": sum(images.sum() for _, _, images in parts),
        "counted": counted,
        "corrected": value,
        "low": np.clip(np.minimum(low, value), 1 - len(parts), 1),
        "high": np.clip(np.maximum(high, value), 1 - len(parts), 1),
        "p": p,
        "reason": reason,
    }


def _words(row: dict) -> str:
    """What the row of a class says."""
    sign = "+" if row["of"] == "difference" else ""
    found = Estimate(row["corrected"], row["low"], row["high"]).text(sign=sign)
    words = f"{row['class']} {found} (counted {row['counted']:{sign}.3f})"
    p = row["p (Holm)"]
    if pd.notna(p):
        more = "more" if row["corrected"] > 0 else "fewer"
        words = f"{more if p <= 1 - LEVEL else 'not shown to differ:'} {words}, p = {p:.3g}"
    return ", ".join(filter(None, (words, row["reason"])))
