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
