"""Run one notebook under guards: ``python -m nbhelpers.runner.execution --plan FILE --notebook
NAME``.

The workflow engine starts this as a job. A run succeeds when all cells ran AND the notebook wrote
its final record under this run's own id; anything else ends as a failed report with the reason in
words, and the last good result stays as it was.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import CODE_ROOT, write_json, write_text
from nbhelpers.reports import manifest
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.parameters import read_notebook, shown
from nbhelpers.reports.parent import end_with, kill_tree
from nbhelpers.reports.paths import read_json
from nbhelpers.reports.record import headline_text
from nbhelpers.reports.run import RECORD, RUN_VARIABLE, STATE
from nbhelpers.runner.atomic_replace import put_in_place
from nbhelpers.runner.kernel_job import DEAD_KERNEL
from nbhelpers.runner.places import RunnerPaths, python_path

NO_RECORD = "The notebook ended without its final record: run.finish(...) was not called."
KILLED = "The kernel was killed, most likely out of memory."
STOPPED = "Stopped by the user."
BY_SCHEDULER = (
    "Stopped by the scheduler: out of time, preempted or cancelled. What is done is kept."
)
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it CUDA does not give the same digits twice
    # Idle threads sleep: spinning ones double the time wherever another program wants the same core
    "OMP_WAIT_POLICY": "PASSIVE",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one notebook of a plan under guards.")
    parser.add_argument("--plan", required=True)
    parser.add_argument("--notebook", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    plan = json.loads(Path(arguments.plan).read_text(encoding="utf-8"))
    if plan["command_pid"]:  # on a cluster the command runs on another machine
        end_with(plan["command_pid"])
    return Job(plan, arguments.notebook, arguments.threads).run()


class Job:
    """One notebook run, from its request in the plan to its results in place."""

    def __init__(self, plan: dict, name: str, threads: int):
        self.plan = plan
        self.name = name
        self.threads = threads
        self.entry = plan["runs"][name]
        self.paths = RunnerPaths(Path(plan["root"]), plan["results"] and Path(plan["results"]))
        self.notebook = Notebook(self.paths.notebook(self.entry["notebook"]))
        self.run_id = uuid.uuid4().hex
        self.private = self.paths.staging / f"{name}-{self.run_id[:8]}"
        self.request_file = self.private / "request.json"
        self.folder = self.private / "result"
        self.executed = self.folder / f"{self.notebook.name}.ipynb"
        self.work_folder = self.paths.work_of(name, self.entry["fingerprint"])
        self.stop_asked = False
        self.started = manifest.now()
        self.clock = time.monotonic()

    @property
    def given_up(self) -> Path:
        """Written when the notebook itself failed: a cluster need not try the same again in this
        command.
        """
        return self.paths.work / self.name / "given-up.json"

    def run(self) -> int:
        """Run, render, move into place. Returns 0 on success."""
        if read_json(self.given_up).get("plan") == self.plan["id"]:
            return 1
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_stop)
        self.event("running", self.entry.get("why", ""))
        try:
            self.prepare()
            reason, failed_cell = self.run_cells()
            record = read_json(self.private / RECORD)
            # Only a record that this very run wrote is one.
            if not reason and record.get("run_id") != self.run_id:
                reason = NO_RECORD
            return self.fail(reason, failed_cell) if reason else self.succeed(record)
        except OSError as error:
            reason = writing_reason(error, self.paths)
            try:
                return self.fail(reason, None)
            except OSError:
                self.event("failed", reason)
                return 1
        finally:
            shutil.rmtree(self.private, ignore_errors=True)

    def prepare(self) -> None:
        for folder in (self.folder, self.work_folder, self.paths.logs, self.private / "jupyter"):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(
            self.request_file,
            {
                "root": self.paths.root,
                "notebook": self.notebook.name,
                "run_id": self.run_id,
                "folder": self.folder,
                "work_folder": self.work_folder,
                "fingerprint": self.entry["fingerprint"],
                "profile": self.entry["profile"],
                "started": self.started,
                "execution_pid": os.getpid(),
                "source": self.notebook.path,
                "executed": self.executed,
                "values": self.entry["values"],
                "cwd": self.paths.notebooks,
            },
        )

    def environment(self) -> dict[str, str]:
        """The kernel's environment: this checkout, this many threads, no one else's
        start-up files."""
        return {
            **os.environ,
            **ENVIRONMENT,
            **dict.fromkeys(THREADS, str(self.threads)),
            "PYTHONPATH": python_path(),
            RUN_VARIABLE: str(self.request_file),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "JUPYTER_RUNTIME_DIR": str(self.private / "jupyter"),
            "IPYTHONDIR": str(self.private / "ipython"),
        }

    def run_cells(self) -> tuple[str, int | None]:
        """Run all cells. Returns the reason of a failure in words ('' if none) and the failing
        cell's place.
        """
        with open(self.paths.logs / f"{self.name}.log", "wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "nbhelpers.runner.kernel_job", str(self.request_file)],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            reason = ""
            try:
                while child.poll() is None and not reason:
                    time.sleep(0.1)
                    reason = self.reason_to_stop()
            finally:
                if child.poll() is None:
                    kill_tree(child.pid)
                child.wait()
        if child.returncode and not reason:
            # SLURM ends all processes of a job at once: this one may hear of it after its child.
            time.sleep(0.5)
            if self.stop_asked or child.returncode == -signal.SIGTERM:
                reason = self.stop_reason()
        if reason:
            return reason, self.last_cell()
        return self.reason_of(child.returncode)

    def reason_to_stop(self) -> str:
        """Why a run that goes on must be ended now; '' if it may go on."""
        if self.stop_asked or Path(self.plan["stop_file"]).exists():
            return self.stop_reason()
        timeout = self.plan["timeout_s"]
        if timeout and time.monotonic() - self.clock > timeout:
            minutes = f"{timeout / 60:g} minutes"
            return f"Stopped: it took longer than the limit of {minutes} (--timeout)."
        return ""

    def stop_reason(self) -> str:
        by_user = Path(self.plan["stop_file"]).exists()
        return BY_SCHEDULER if "SLURM_JOB_ID" in os.environ and not by_user else STOPPED

    def reason_of(self, status: int) -> tuple[str, int | None]:
        if status == 0:
            return "", None
        if status in (DEAD_KERNEL, 137, -signal.SIGKILL):
            return KILLED, self.last_cell()
        outcome = read_json(self.private / "outcome.json")
        if not outcome:
            return f"The runner itself ended with status {status}; the log tells more.", None
        cell = self.last_cell(failed=True)
        section = section_of(self.cells(), cell)
        reason = f"{outcome['name']}: {self.hide_paths(outcome['message']).strip()}"
        return reason + (f" (in the section “{section}”)" if section else ""), cell

    def cells(self) -> list[dict]:
        try:
            return read_notebook(self.executed)["cells"]
        except (InputError, OSError):  # papermill was killed while it wrote, or before
            return self.notebook.content["cells"]

    def last_cell(self, failed: bool = False) -> int | None:
        """Place of the cell that was being run at the end, or of the one that raised."""
        last = None
        for place, cell in enumerate(self.cells()):
            mark = cell.get("metadata", {}).get("papermill", {})
            if failed and mark.get("exception"):
                return place
            if cell["cell_type"] == "code" and mark.get("start_time"):
                last = place
        return last

    def describe(self, state: str, reason: str, record: dict) -> dict:
        """The manifest of this run; ``record`` is what the notebook wrote of itself, if it did."""
        values = shown(self.notebook.parameters, self.entry["values"])
        # What a notebook that was killed early had no time to say.
        unsaid = {
            "peak_memory_bytes": None,
            "versions": manifest.versions(),
            "platform": manifest.system(),
            "device": manifest.device(),
            "data": [],
            "splits": [],
            "figures": [],
            "headline": None,
        }
        return {
            **{name: record.get(name, value) for name, value in unsaid.items()},
            "notebook": self.notebook.name,
            "title": self.notebook.about["title"],
            "profile": self.entry["profile"],
            "parameters": values,
            "seed": values.get("seed"),
            "state": state,
            "reason": reason,
            "run_id": self.run_id,
            "fingerprint": self.entry["fingerprint"],
            "ingredients": self.entry["parts"],
            "started": self.started,
            "finished": manifest.now(),
            "wall_time_s": round(time.monotonic() - self.clock, 3),
            "git": manifest.git_state(self.paths.root),
        }

    def succeed(self, record: dict) -> int:
        details = self.describe("ok", "", record)
        self.write_result(details, None)
        put_in_place(self.folder, self.paths.result(self.name), self.paths)
        write_stamp(self.paths, self.name, self.entry)
        shutil.rmtree(self.paths.failed(self.name), ignore_errors=True)
        shutil.rmtree(self.work_folder.parent, ignore_errors=True)
        headline = record["headline"]
        self.event(headline["state"], headline_text(headline))
        update_index(self.paths)
        return 0

    def fail(self, reason: str, failed_cell: int | None) -> int:
        state = {**read_json(self.private / STATE), "headline": None, "figures": []}
        self.write_result(self.describe("failed", reason, state), failed_cell)
        put_in_place(self.folder, self.paths.failed(self.name), self.paths)
        if reason not in (KILLED, BY_SCHEDULER):
            write_json(self.given_up, {"plan": self.plan["id"]})
        self.event("failed", reason)
        update_index(self.paths)
        return 1

    def write_result(self, details: dict, failed_cell: int | None) -> None:
        """Write the executed notebook, its report and its manifest into the run's folder."""
        import nbformat

        from nbhelpers.reports.html import render_report

        try:
            notebook = nbformat.read(self.executed, as_version=4)
        except Exception:  # papermill was killed while it wrote, or before
            notebook = nbformat.read(self.notebook.path, as_version=4)
        if details["state"] != "ok":  # what a run had measured before it failed is no result
            shutil.rmtree(self.folder)
            self.folder.mkdir()
        failed_id = None
        if failed_cell is not None and failed_cell < len(notebook.cells):
            failed_id = notebook.cells[failed_cell].get("id")
        notebook.cells = [
            cell
            for cell in notebook.cells
            if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
        ]
        for part in (notebook, *notebook.cells):
            part.metadata.pop("papermill", None)  # it holds paths of this machine
            part.metadata.pop("execution", None)
        text = self.hide_paths(nbformat.writes(notebook))
        write_text(self.executed, text + "\n")
        notebook = nbformat.reads(text, as_version=4)
        page = render_report(notebook, details, self.notebook, failed_cell_id=failed_id)
        write_text(self.folder / "report.html", page)
        details["files"] = manifest.files_of(self.folder)
        write_json(self.folder / "manifest.json", details)

    def hide_paths(self, text: str) -> str:
        """The text without the folders of this machine: reports are meant to be handed on."""
        hidden = {
            str(self.folder): f"results/{self.name}",
            str(self.paths.root): ".",
            str(CODE_ROOT): ".",
            sys.prefix: "<environment>",
            sys.base_prefix: "<python>",
        }
        home = str(Path.home())
        if len(home) > 3:
            hidden[home] = "~"
        for key, parameter in self.notebook.parameters.items():
            value = self.entry["values"][key]
            if parameter.names_path(value) and Path(value).is_absolute():
                hidden[value] = f"…/{Path(value).name}"
        for path in sorted(hidden, key=len, reverse=True):
            new = hidden[path]
            text = re.sub(re.escape(path) + r"(?![\w.-])", new.replace("\\", r"\\"), text)
            quoted = path
            # As it stands in the JSON of a notebook, and in a literal of its parameters cell there.
            for _ in range(2):
                quoted = json.dumps(quoted)[1:-1]
                new = json.dumps(new)[1:-1]
                if quoted != path:
                    text = text.replace(quoted, new)
        return text

    def event(self, state: str, text: str) -> None:
        """Tell the command that waits; one short line, so that lines of several jobs never mix."""
        seconds = time.monotonic() - self.clock
        event = {"notebook": self.name, "state": state, "text": text, "seconds": seconds}
        line = json.dumps(event) + "\n"
        try:
            with open(self.plan["events"], "a", encoding="utf-8") as events:
                events.write(line)
        except OSError:
            print(line, file=sys.stderr)

    def _ask_stop(self, *_: object) -> None:
        self.stop_asked = True


def section_of(cells: list[dict], at: int | None) -> str:
    """The nearest heading above a cell."""
    for cell in reversed(cells[: at or 0]):
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#{1,4}\s+(.+?)\s*#*$", cell["source"], re.MULTILINE)
            if headings:
                return headings[-1]
    return ""


def writing_reason(error: OSError, paths: RunnerPaths) -> str:
    """A failure to write, in words."""
    name = "results"
    file = error.filename
    if isinstance(file, str) and Path(file).is_relative_to(paths.root):
        name = Path(file).relative_to(paths.root).as_posix()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "Free some space and run again; finished results are untouched."
        return f"{name}: the disk is full. {fix}"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name}: may not be written. Make the folder results/ writable and run again."
    return f"{name}: {error.strerror or error}."


def write_stamp(paths: RunnerPaths, name: str, entry: dict) -> None:
    """Note what the result in place was made from; older notes of the notebook go."""
    stamp = paths.stamp(name, entry["fingerprint"])
    for old in paths.stamps.glob("*.done"):
        if old != stamp and old.name.rsplit(".", 2)[0] == name:
            old.unlink(missing_ok=True)
    write_json(stamp, {key: entry[key] for key in ("fingerprint", "parts", "values", "profile")})


def update_index(paths: RunnerPaths) -> None:
    from nbhelpers.runner.index import write_index

    if paths.elsewhere is None:  # a sweep has a summary instead, which the command writes
        write_index(paths)


if __name__ == "__main__":
    sys.exit(main())
