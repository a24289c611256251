"""Can the score be trusted: copies, groups in two parts, and what would give the class away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbhelpers.audit import run_audit

if TYPE_CHECKING:
    import pandas as pd

    from nbhelpers.audit import Audit
    from nbhelpers.core.imageset import ImageSet
    from nbhelpers.core.predictions import Predictions
    from nbhelpers.core.splits import Split
    from nbhelpers.reports.run import NotebookRun


def show_audit(
    run: NotebookRun,
    images: ImageSet,
    split: Split,
    tested: Predictions,
    choices: pd.DataFrame | None = None,
    **options,
) -> Audit:
    """Audit the images, their split and the model's test rows; show what did not pass, and record
    the verdict and the worst finding.

    ``choices`` is the table of a cross-validation: which recipe was chosen, and on what.
    """
    found = run_audit(images, split, predictions=tested, choices=choices, seed=run.seed, **options)
    return show_verdicts(run, found)


def show_verdicts(run: NotebookRun, found: Audit) -> Audit:
    """Write an audit to ``audit/``, show what did not pass, and record it."""
    found.save(run.folder / "audit")
    table = found.table().rename(columns={"how to fix it": "fix"})
    passed = table["verdict"] == "pass"
    run.show_table(
        table[~passed].reset_index(drop=True),
        f"Audit of {found.about['images']}: {found.verdict}. {int(passed.sum())} of {len(table)} "
        "checks passed and are left out here; all are in audit/audit.json, the rows in question in "
        "the CSV files beside it.",
    )
    run.add_record("audit", {"verdict": found.verdict, "worst": found.worst})
    return found
