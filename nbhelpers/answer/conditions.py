"""Shares of each class per unit and condition, and how the conditions differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.answer.shares import Part, corrected
from nbhelpers.core.errors import TableError
from nbhelpers.core.estimate import Estimate
from nbhelpers.core.files import write_csv, write_json
from nbhelpers.core.intervals import LEVEL, Sampling
from nbhelpers.evaluation.comparison import holm

COLUMNS = (
    *("of", "condition", "against", "unit", "units", "images", "class", "counted", "corrected"),
    *("low", "high", "p", "p (Holm)", "reason"),
)
METHOD = "error rates turned round, Student's t over units"
FEWEST_UNITS = 4  # per condition, for a p-value
LEAST_APART = 0.2  # smallest singular value of the error rates: 1 without errors, 0 by chance


@dataclass(frozen=True)
class Answer:
    """``table``: a row per unit, condition and difference (column ``of``) and class, with what was
    counted and the corrected share, its interval, and of differences p; ``rates``: how often each
    true class (rows) is called each; ``sentences``: what it says, one for each pair of conditions,
    else for the condition; ``notes``: what must be said beside.
    """

    table: pd.DataFrame
    rates: pd.DataFrame
    sentences: list[str]
    notes: list[str]

    def save(self, folder: Path) -> None:
        """Write answer.csv and answer.json into the folder."""
        write_csv(folder / "answer.csv", self.table)
        rows = self.table.astype(object).where(self.table.notna(), None).to_dict("records")
        rates = self.rates.to_dict("index")
        entries = {"sentences": self.sentences, "notes": self.notes, "method": METHOD}
        write_json(folder / "answer.json", entries | {"error_rates": rates, "rows": rows})


def answer(
    new: pd.DataFrame, labelled: pd.DataFrame, classes: Sequence[str], notes: Sequence[str] = ()
) -> Answer:
    """From tables as :func:`nbhelpers.answer.tables.read_tables` gives them. Every unit counts the
    same, and within it every subunit. Raises TableError where the classifier hardly tells the
    classes apart.
    """
    counts = counts_of(labelled, classes)
    rates = counts.sum(0) / counts.sum((0, 2))[:, None]
    if np.linalg.svd(rates, compute_uv=False)[-1] < LEAST_APART:
        raise TableError(
            "the labelled images",
            "the classifier hardly tells the classes apart there, and counts cannot be corrected.",
            "Join classes that it confuses, or train it better.",
        )
    lacking = next(filter(None, map(_lacking, counts.sum(2).T)), None)
    cells = [new["condition"], new["unit"]]
    deeper = [*cells, new["subunit"]] if "subunit" in new else cells
    hits = pd.get_dummies(pd.Categorical(new["predicted"], classes), dtype=float)
    shares = hits.set_index(new.index).groupby(deeper, sort=False).mean()
    shares = shares.groupby(["condition", "unit"], sort=False).mean()
    images = new.groupby(cells, sort=False).size()[shares.index]
    back = np.linalg.inv(rates)
    frames = []
    parts = {}
    for condition in dict.fromkeys(new["condition"]):
        here = shares.loc[condition]
        many = images[condition].to_numpy(float)
        for unit, counted, n in zip(here.index, here.to_numpy(), many, strict=True):
            place = {"of": "unit", "condition": condition, "unit": unit, "images": n}
            found = {"counted": counted, "corrected": _limited(counted @ back)}
            frames.append(pd.DataFrame(place | {"class": classes} | found))
        parts[condition] = Part(1, here.to_numpy(), many)
    for condition, part in parts.items():
        place = {"of": "condition", "condition": condition}
        frames.append(pd.DataFrame(place | _estimated([part], counts, lacking, classes)))
    for first, second in combinations(parts, 2):
        place = {"of": "difference", "condition": second, "against": first}
        both = [parts[second], parts[first]._replace(sign=-1)]
        found = pd.DataFrame(place | _estimated(both, counts, lacking, classes))
        frames.append(found[-1:] if len(classes) == 2 else found)  # of two, one is the other's
    table = pd.concat(frames, ignore_index=True).reindex(columns=COLUMNS)
    tested = table["p"].notna()
    table.loc[tested, "p (Holm)"] = holm(table.loc[tested, "p"])
    last = table[table["of"] == ("difference" if len(parts) > 1 else "condition")]
    sentences = [
        f"{' against '.join(filter(pd.notna, pair))} ({rows['units'].iloc[0]} units): "
        + "; ".join(map(_words, rows.to_dict("records")))
        + "."
        for pair, rows in last.groupby(["condition", "against"], sort=False, dropna=False)
    ]
    named = pd.DataFrame(rates, classes, classes)
    return Answer(table, named, sentences, list(notes))


def counts_of(labelled: pd.DataFrame, classes: Sequence[str]) -> np.ndarray:
    """(groups, true class, predicted class) float, the labelled images of each group."""
    group = pd.factorize(labelled["group"])[0]
    at = [pd.Categorical(labelled[name], classes).codes for name in ("label", "predicted")]
    counts = np.zeros((group.max() + 1, len(classes), len(classes)))
    np.add.at(counts, (group, *at), 1)
    return counts


def _estimated(
    parts: Sequence[Part], counts: np.ndarray, lacking: str | None, classes: Sequence[str]
) -> dict[str, object]:
    """The columns of a row per class; ``lacking``: why the error rates allow no interval."""
    units = [len(part.shares) for part in parts]
    few = next(filter(None, (_lacking(np.ones(n)) for n in units)), None)
    counted = sum(part.sign * part.shares.mean(0) for part in parts)
    found = {
        "units": " and ".join(map(str, units)),
        "images": sum(part.images.sum() for part in parts),
        "class": classes,
        "counted": counted,
    }
    if few or lacking:
        reason = few.replace("group", "unit") if few else f"{lacking} (labelled images)"
        value = counted @ np.linalg.inv(counts.sum(0) / counts.sum((0, 2))[:, None])
        return found | {"corrected": value if len(parts) > 1 else _limited(value), "reason": reason}
    value, low, high, p = corrected(parts, counts)
    if len(parts) == 1:
        value = _limited(value)
        low = np.clip(np.minimum(low, value), 0, 1)
        high = np.clip(np.maximum(high, value), 0, 1)
        return found | {"corrected": value, "low": low, "high": high}
    found |= {"corrected": value, "low": np.maximum(low, -1), "high": np.minimum(high, 1)}
    if min(units) < FEWEST_UNITS:
        return found | {"reason": f"no test below {FEWEST_UNITS} units in each condition"}
    return found | {"p": p}


def _lacking(sizes: np.ndarray) -> str | None:
    """Why groups of these sizes allow no interval."""
    return Sampling.of_sizes(sizes).lacking(np.zeros(len(sizes)))


def _limited(values: np.ndarray) -> np.ndarray:
    """Shares of the classes, none below 0, that sum to 1."""
    values = np.maximum(values, 0)
    return values / values.sum()


def _words(row: dict) -> str:
    """What the row of a class says."""
    sign = "+" if row["of"] == "difference" else ""
    found = Estimate(row["corrected"], row["low"], row["high"]).text(sign=sign)
    counted = f"(counted {row['counted']:{sign}.3f})"
    words = f"{row['class']} {found} {counted}"
    if pd.notna(row["reason"]):
        return f"{words}, {row['reason']}"
    if not sign:
        return words
    shown = row["p (Holm)"] <= 1 - LEVEL
    says = ("more" if row["corrected"] > 0 else "fewer") if shown else "not shown to differ:"
    return f"{says} {words}, p = {row['p (Holm)']:.3g}"
