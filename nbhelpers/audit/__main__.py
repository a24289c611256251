"""Audit a table of images: ``python -m nbhelpers.audit TABLE.csv`` (columns path, label, split, and
group if known).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from nbhelpers.audit.table import read_table
from nbhelpers.core.errors import InputError, check_choice


def main(arguments: list[str] | None = None) -> int:
    """Prints the verdicts and writes audit.json with its CSV files. Returns 0, 2 for input that
    cannot be used, and with ``--strict`` 1 when the audit fails."""
    parser = argparse.ArgumentParser(prog="python -m nbhelpers.audit", description=__doc__)
    parser.add_argument(
        "table",
        type=Path,
        help="CSV with path, label, split (train, validation, test), and group if known",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for audit.json and the CSV files; by default beside the table",
    )
    parser.add_argument(
        "--columns", nargs="*", default=[], help="further columns to try as shortcuts"
    )
    parser.add_argument(
        "--strict", action="store_true", help="end with an error when the audit fails"
    )
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="audit-") as cache:
            table = read_table(options.table, cache)
            for name in options.columns:
                check_choice(f"{options.table}, column", name, table.images.table)
            found = table.audit(columns=options.columns)
        folder = found.save(options.out or options.table.with_name(options.table.stem + "_audit"))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for row in found.table().itertuples(index=False):
        print(f"{row[1].upper():15}{row[0]}: {row[2]} {row[3]}".rstrip())
    unmade = sum(check.verdict == "not assessable" for check in found.checks)
    print(
        f"\nThe audit of {options.table.name}: {found.verdict.upper()}; {unmade} of "
        f"{len(found.checks)} checks not assessable. Numbers and rows: {folder}"
    )
    return 1 if options.strict and found.verdict == "fail" else 0


if __name__ == "__main__":
    sys.exit(main())
