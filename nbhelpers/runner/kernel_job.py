"""The process that holds the kernel: papermill over one notebook, asked by a file, answering with a
file.

It stands apart from ``execution`` so that a run that must end can be ended from outside with
everything under it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from nbhelpers.core.files import write_json
from nbhelpers.reports.parent import end_with

DEAD_KERNEL = 138


def main(request_file: str) -> int:
    """Run the notebook of a request file. Exit status 0: all cells ran; 1: a cell failed; 138:
    kernel killed.
    """
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    end_with(request["execution_pid"])
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            request["source"],
            request["executed"],
            parameters=request["values"],
            kernel_name="python3",
            cwd=request["cwd"],
            progress_bar=False,
            start_timeout=180,
        )
    except DeadKernelError:
        return DEAD_KERNEL
    except PapermillExecutionError as error:
        outcome = {"name": error.ename, "message": error.evalue}
        write_json(Path(request_file).parent / "outcome.json", outcome)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
