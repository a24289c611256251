"""How the networks and checks do on images that are not quite like those they were made with: other
scales, stains, centres, turns, noise. Written to ``docs/travel.json`` and ``docs/travel.md``.

    .venv/bin/python benchmarks/travel.py --data FOLDER [--only spines|synapses|glomeruli|polarity]

FOLDER holds the public sets in folders of their own: ``spines_ghani``, ``vnc_sstem`` and
``glomeruli_bueno`` (with the backbone's weights beside it, see ``travel_glomeruli.py``). Each task
is measured by ``measure(folder)`` of its own ``travel_TASK.py``, which returns one dict per row:
``task``, ``version`` and ``n``, and those of the other COLUMNS that are known.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[1]
JSON = ROOT / "docs" / "travel.json"
PAGE = ROOT / "docs" / "travel.md"
TASKS = ("spines", "synapses", "glomeruli", "polarity")
COLUMNS = {  # as they stand in the page, in this order
    "version": "images",
    "n": "n",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "before": "accuracy before",
    "flagged": "flagged",
    "flagged_right": "flagged among right",
    "flagged_wrong": "flagged among wrong",
    "stated": "stated false alarms",
}
WORDS = """# Networks and checks on images that are not like the training

Written by `benchmarks/travel.py` from `docs/travel.json`, on the public sets; all on images of
groups (neurons, slides, centres) that the network was not fitted on. Shares run from 0 to 1, and n
counts images unless the row names sets. **Accuracy before** is that without what the package does
about the change. **Flagged** is the share that is called out of distribution (of polarity: refused
or doubted, as the row says), **flagged among right** and **among wrong** the same among the right
and among the wrong predictions: flags help where the second is much higher. **Stated false alarms**
is the share of images like the training ones that is said to be flagged all the same. "n/a": not
known.

What was chosen on these images: the rule for a shift of glomeruli, among several, and how much the
outlines are varied on which the pose of spines is learnt (all of them synthetic). Those rows may be
a little too good.
"""


def checked(row: dict) -> dict:
    """The row with all columns, None where it does not say. Raises InputError for a column that is
    unknown, and for a share outside 0 to 1.
    """
    unknown = set(row) - {"task", *COLUMNS}
    if unknown or not {"task", "version", "n"} <= set(row):
        raise InputError(
            f"row {row.get('version')}",
            f"its columns are {sorted(row)}.",
            f"Give task, version, n, and of the others only {sorted(COLUMNS)}.",
        )
    for name in list(COLUMNS)[2:]:
        share = row.get(name)
        if share is not None and not (math.isfinite(share) and 0 <= share <= 1):
            raise InputError(
                f"row {row['version']}", f"{name} is {share}.", "Give 0 to 1, or None."
            )
    return {name: row.get(name) for name in ("task", *COLUMNS)}


def merged(before: Sequence[dict], found: Sequence[dict]) -> list[dict]:
    """The rows of ``found``, and those that were there before of other tasks, in the order of
    TASKS.
    """
    new = {row["task"] for row in found}
    rows = [*(row for row in before if row["task"] not in new), *map(checked, found)]
    return sorted(rows, key=lambda row: TASKS.index(row["task"]))


def page(rows: Sequence[dict]) -> str:
    """The text of docs/travel.md: a table per task, without the columns of which nothing is
    known.
    """
    text = WORDS
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        known = [name for name in COLUMNS if any(row[name] is not None for row in own)]
        text += f"\n## {task.capitalize()}\n\n| {' | '.join(COLUMNS[name] for name in known)} |\n"
        text += "|---" * len(known) + "|\n"
        for row in own:
            text += f"| {' | '.join(cell(row[name]) for name in known)} |\n"
    return text


def cell(value: object) -> str:
    if value is None:
        return "n/a"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", type=Path, default=ROOT / "data", help="folder of the public sets"
    )
    parser.add_argument("--only", choices=TASKS, help="measure this task only")
    arguments = parser.parse_args()
    rows = json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else []
    for task in [arguments.only] if arguments.only else TASKS:
        started = time.monotonic()
        found = importlib.import_module(f"travel_{task}").measure(arguments.data)
        rows = merged(rows, found)
        print(f"{task}: {len(found)} rows in {time.monotonic() - started:.0f} s")
        write_json(JSON, rows)
    write_text(PAGE, page(rows))


if __name__ == "__main__":
    main()
