"""Reports: notebooks run under guards, each ending in an offline HTML page beside its figures and
tables.

A notebook needs two names from here::

    from nbhelpers.reports import Headline, start_run
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbhelpers.reports.notebook_run import Headline, NotebookRun, start_run

__all__ = ["Headline", "NotebookRun", "start_run"]


def __getattr__(name: str):
    # Imported when asked for, so that `./run_all.sh --help` does not pay for it.
    if name in __all__:
        from nbhelpers.reports import notebook_run

        return getattr(notebook_run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
