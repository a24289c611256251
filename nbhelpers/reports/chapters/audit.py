"""Can the score be trusted: copies, groups in two parts, and what would give the class away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbhelpers.audit import audit_section

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

    ``choices`` is the table of a cross-validation: which recipe was chosen, and on what; other
    ``options`` are those of :func:`nbhelpers.audit.run_audit`. Writes ``audit/``.
    """
    found, open_checks = audit_section(
        images, split, tested, choices=choices, seed=run.seed, **options
    )
    found.save(run.folder / "audit")
    passed = len(found.checks) - len(open_checks)
    run.show_table(
        open_checks,
        f"Audit of {images.name}: {found.verdict}. {passed} of {len(found.checks)} checks passed "
        "and are left out here; all are in audit/audit.json, the rows in question in the CSV files "
        "beside it.",
    )
    worst = found.worst.sentence if found.worst else ""
    run.add_record("audit", {"verdict": found.verdict, "worst": worst})
    return found
