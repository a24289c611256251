"""Shares of each class per condition, corrected for the errors of the classifier, from tables of
any classifier: ``python -m nbhelpers answer predictions.csv --validation labelled.csv``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nbhelpers.answer.conditions import answer
from nbhelpers.answer.tables import read_tables
from nbhelpers.core.errors import InputError
from nbhelpers.core.files import write_csv, write_json


def main(arguments: list[str] | None = None) -> int:
    """Prints what the tables say and writes answer.csv and answer.json. Returns 0, 2 for input that
    cannot be used.
    """
    parser = argparse.ArgumentParser(prog="python -m nbhelpers answer", description=__doc__)
    add = parser.add_argument
    add(
        "predictions",
        type=Path,
        help="a table with predicted (or a column 'probability CLASS' for each class), unit "
        "(animal, culture, patient), condition, and subunit (dendrite, slide) if nested",
    )
    add(
        "--validation",
        type=Path,
        required=True,
        metavar="LABELLED",
        help="a table with label, predicted and group of images that the classifier was not trained"
        " on, such as predictions.csv of a cross-validation",
    )
    add("--out", type=Path, help="folder for answer.csv and answer.json (by default beside)")
    options = parser.parse_args(arguments)
    try:
        *tables, notes = read_tables(options.predictions, options.validation)
        table, rates, sentences = answer(*tables)
        folder = options.out or options.predictions.with_name(options.predictions.stem + "_answer")
        write_csv(folder / "answer.csv", table)
        found = {"sentences": sentences, "notes": notes, "rows": table.to_dict("records")}
        write_json(folder / "answer.json", found | {"error_rates": rates.to_dict("index")})
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(*notes, *sentences, f"All shares: {folder}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
