"""What was tried and what was lost: ``docs/faults.md``, written from ``docs/faults.json`` and never
by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from nbhelpers.core.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = ROOT / "docs/faults.json"
PAGE = ROOT / "docs/faults.md"


def record(part: str, found: dict) -> None:
    """Put the numbers of one part in place of its earlier ones, and write the page anew."""
    numbers = json.loads(NUMBERS.read_text(encoding="utf-8")) if NUMBERS.exists() else {}
    numbers[part] = found
    write_json(NUMBERS, numbers)
    write_text(PAGE, page(numbers))


def page(numbers: dict) -> str:
    parts = [("kills", kills), ("others", others), ("damaged files", damaged)]
    return (
        "# What was tried to break it, and what was lost\n\nWritten by the tests in "
        "`tests/faults/` from "
        "`docs/faults.json`: `NBHELPERS_FAULTS=20 ./run_tests.sh tests/faults` tries everything "
        "again in full and "
        "writes both. Without the variable the same tests try a small part.\n"
        + "".join(write(numbers[name]) for name, write in parts if name in numbers)
    )


def kills(found: dict) -> str:
    rows = found["rows"]
    total = {key: sum(row[key] for row in rows) for key in ("kills", "ended")}
    lost = sum(len(row["lost"]) for row in rows)
    return (
        "\n## Killed at random moments\n\nSIGKILL at a moment drawn at random over the whole span "
        "of a run "
        f"(seed {found['seed']}); the next try goes on in the same folder. *Ended*: tries that got "
        f"to their end, each "
        "compared byte for byte with a run that nobody disturbed; *lost*: another result, a result "
        "in place that is "
        "not whole, or a try that did not go on.\n\n| what was going on | kills | ended | lost "
        "|\n|---|---|---|---|\n"
        + "".join(
            f"| {row['name']} | {row['kills']} | {row['ended']} | {len(row['lost'])} |\n"
            for row in rows
        )
        + f"| **all** | {total['kills']} | {total['ended']} | {lost} |\n"
    )


def others(found: dict) -> str:
    return (
        "\n## Everything else\n\nEach line is tried by the tests that it names; *lost* counts the "
        "cases that did not "
        "end as said.\n\n| fault | how it must end | tests | cases | lost "
        "|\n|---|---|---|---|---|\n"
        + "".join(
            f"| {row['fault']} | {row['ends']} | {', '.join(f'`{name}`' for name in row['tests'])} "
            f"| "
            f"{row['cases']} | {row['lost']} |\n"
            for row in found["rows"]
        )
    )


def damaged(found: dict) -> str:
    table = pd.DataFrame(found["rows"])
    text = (
        "\n## Damaged files\n\n"
        f"Every reader is given damaged copies of a good file (seed {found['seed']}, "
        f"{found['each']} per kind of "
        "damage). *Refused*: an error that names the file and says how to fix it; *read*: a "
        "reading in which nothing "
        "is lost as far as the format can tell (formats without a check sum give what is in the "
        "file); *lost*: "
        "another exception, filled or lost pixels or rows without a word, more than 10 s or 1 "
        "GiB.\n\n"
        "| reader | damaged files | refused | read | lost |\n|---|---|---|---|---|\n"
    )
    kinds = ["refused", "read", "lost"]
    for name, part in table.groupby("reader", sort=False):
        counts = [int(part[kind].sum()) for kind in kinds]
        text += f"| {name} | {sum(counts)} | {' | '.join(map(str, counts))} |\n"
    totals = [int(table[kind].sum()) for kind in kinds]
    text += (
        f"| **all** | {sum(totals)} | {' | '.join(map(str, totals))} |\n\n"
        "| damage | damaged files | lost |\n|---|---|---|\n"
    )
    for name, part in table.groupby("damage", sort=False):
        damaged = int(part[kinds].to_numpy().sum())
        text += f"| {name.replace('_', ' ')} | {damaged} | {int(part['lost'].sum())} |\n"
    return text
