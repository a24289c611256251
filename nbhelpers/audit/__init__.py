"""Audit of a set of images and its split: copies, groups in two parts, a test part that was looked
at, shortcuts.

    from nbhelpers.audit import run_audit
    found = run_audit(images, split)         # found.table(), found.verdict, found.save(folder)

For a table of your own files: ``python -m nbhelpers.audit TABLE.csv``.
"""

from nbhelpers.audit.checks import run_audit
from nbhelpers.audit.question import Provenance
from nbhelpers.audit.verdicts import Audit, AuditError, Check

__all__ = ["Audit", "AuditError", "Check", "Provenance", "run_audit"]
