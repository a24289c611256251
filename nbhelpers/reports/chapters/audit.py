"""Can the score be trusted: copies, groups in two parts, and what would give the class away."""

from __future__ import annotations

import pandas as pd

from nbhelpers.audit import Audit, run_audit
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
) -> None:
    """Audit the images, their split and the model's test rows; show what did not pass, and record
    the verdict and the worst finding.

    ``choices`` is the table of a cross-validation: which recipe was chosen, and on what; other
    ``options`` are those of :func:`nbhelpers.audit.run_audit`.
    """
    if choices is not None and len(choices):
        record = {"selected_on": "validation", "choices": choices.to_dict("records")}
        options = {"record": record, **options}
    show_verdicts(run, run_audit(images, split, predictions=tested, seed=run.seed, **options))


def show_verdicts(run: NotebookRun, found: Audit) -> Audit:
    """Write an audit to ``audit/``, show its checks that did not pass, and record it."""
    found.save(run.folder / "audit")
    table = found.table().rename(columns={"how to fix it": "fix"})
    open_checks = table[table["verdict"] != "pass"].reset_index(drop=True)
    passed = len(table) - len(open_checks)
    run.show_table(
        open_checks,
        f"Audit of {found.about['images']}: {found.verdict}. {passed} of {len(table)} checks "
        "passed and are left out here; all are in audit/audit.json, the rows in question in the "
        "CSV files beside it.",
    )
    worst = found.worst.sentence if found.worst else ""
    run.add_record("audit", {"verdict": found.verdict, "worst": worst})
    return found
