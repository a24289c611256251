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
from nbhelpers.core.files import write_json
from nbhelpers.reports import manifest
from nbhelpers.reports.notebooks import Notebook
from nbhelpers.reports.parameters import read_notebook, shown
from nbhelpers.reports.paths import CODE_ROOT, Paths
from nbhelpers.reports.run import RECORD, RUN_VARIABLE, STATE, headline_text
from nbhelpers.runner.atomic_replace import put_in_place

KILLED = "The kernel was killed, most likely out of memory."
STOPPED = "Stopped by the user."
BY_SCHEDULER = (
    "Stopped by the scheduler: out of time, preempted or cancelled. What is done is kept."
)
ABANDONED = (
    "abandoned"  # the command that asked for this run is gone: nobody is there to read a report
)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run one notebook of a plan under guards.")
    parser.add_argument("--plan", required=True)
    parser.add_argument("--notebook", required=True)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    plan = json.loads(Path(arguments.plan).read_text(encoding="utf-8"))
    return Job(plan, arguments.notebook, arguments.threads).run()


class Job:
    """One notebook run, from its order in the plan to its results in place."""

    def __init__(self, plan: dict, name: str, threads: int):
        self.plan = plan
        self.name = name
        self.threads = threads
        self.entry = plan["runs"][name]
        self.places = Paths(
            Path(plan["root"]), Path(plan["results"]) if plan.get("results") else None
        )
        self.notebook = Notebook(self.places.notebook(self.entry.get("notebook", name)))
        self.run_id = uuid.uuid4().hex
        self.private = self.places.staging / f"{name}-{self.run_id[:8]}"
        self.folder = self.private / "result"
        self.executed = self.folder / f"{self.notebook.name}.ipynb"
        self.log = self.places.logs / f"{name}.log"
        self.work_folder = self.places.work_of(name, self.entry["fingerprint"])
        self.stop_asked = False
        self.clock = time.monotonic()

    @property
    def given_up(self) -> Path:
        """Written when the notebook itself failed: a cluster need not try the same again in this
        command.
        """
        return self.places.work / self.name / "given-up.json"

    def run(self) -> int:
        """Run, render, move into place. Returns 0 on success."""
        if self.given_up.exists() and json.loads(
            self.given_up.read_text(encoding="utf-8")
        ) == self.plan.get("id"):
            return 1
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask_stop)
        self.started = manifest.now()
        self.event("running", why=self.entry.get("why", ""))
        try:
            self.prepare()
            reason, failed_cell = self.run_cells()
            if reason == ABANDONED:
                return 1
            record = self.record()
            if not reason and record is None:
                reason = (
                    "The notebook ended without its final record: run.finish(...) was not called."
                )
            if reason:
                return self.fail(reason, failed_cell)
            return self.succeed(record)
        except OSError as error:
            reason = writing_reason(error, self.places)
            try:
                return self.fail(reason, None)
            except OSError:
                self.event("failed", reason=reason)
                return 1
        finally:
            shutil.rmtree(self.private, ignore_errors=True)

    def prepare(self) -> None:
        for folder in (self.folder, self.work_folder, self.places.logs, self.private / "jupyter"):
            folder.mkdir(parents=True, exist_ok=True)
        self.order = self.private / "order.json"
        write_json(
            self.order,
            {
                "root": self.places.root,
                "notebook": self.notebook.name,
                "run_id": self.run_id,
                "folder": self.folder,
                "work_folder": self.work_folder,
                "fingerprint": self.entry["fingerprint"],
                "profile": self.entry["profile"],
                "started": self.started,
                "execute_pid": os.getpid(),
                "source": self.notebook.path,
                "executed": self.executed,
                "values": self.entry["values"],
                "cwd": self.places.notebooks,
            },
        )

    def environment(self) -> dict[str, str]:
        """The kernel's environment: this checkout, this many threads, no one else's
        start-up files."""
        paths = [str(CODE_ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
        threads = str(self.threads)
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
            RUN_VARIABLE: str(self.order),
            "JUPYTER_PREFER_ENV_PATH": "1",
            "PYTHONHASHSEED": "0",
            "JUPYTER_RUNTIME_DIR": str(self.private / "jupyter"),
            "IPYTHONDIR": str(self.private / "ipython"),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            # idle threads sleep: spinning ones double the time wherever another program wants the
            # same core
            "NUMEXPR_NUM_THREADS": threads,
            "OMP_WAIT_POLICY": "PASSIVE",
            "DO_NOT_TRACK": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }

    def run_cells(self) -> tuple[str, int | None]:
        """Run all cells. Returns the reason of a failure in words ('' if none) and the failing
        cell's place.
        """
        timeout = self.plan.get("timeout_s")
        with open(self.log, "wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "nbhelpers.runner.kernel_job", str(self.order)],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            reason = ""
            try:
                while child.poll() is None and not reason:
                    if self.stop_asked or Path(self.plan["stop_file"]).exists():
                        reason = self.stop_reason()
                    elif timeout and time.monotonic() - self.clock > timeout:
                        reason = (
                            f"Stopped: it took longer than the limit of {timeout / 60:g} "
                            f"minutes (--timeout)."
                        )
                    elif not asker_lives(self.plan):
                        reason = ABANDONED
                    else:
                        time.sleep(0.1)
            finally:
                kill_tree(child)
        if child.returncode and not reason:
            time.sleep(
                0.5
            )  # SLURM ends all processes of a job at once: this one may hear of it after its child
            if self.stop_asked or child.returncode == -signal.SIGTERM:
                reason = self.stop_reason()
        if reason:
            return reason, self.last_cell()
        return self.reason_of(child.returncode)

    def stop_reason(self) -> str:
        by_user = Path(self.plan["stop_file"]).exists()
        return BY_SCHEDULER if "SLURM_JOB_ID" in os.environ and not by_user else STOPPED

    def reason_of(self, status: int) -> tuple[str, int | None]:
        if status == 0:
            return "", None
        if status in (138, 137, -9):
            return KILLED, self.last_cell()
        try:
            outcome = json.loads((self.private / "outcome.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return f"The runner itself ended with status {status}; the log tells more.", None
        cell = self.last_cell(failed=True)
        section = section_of(self.cells(), cell)
        message = self.hide_places(outcome["message"]).strip()
        return f"{outcome['name']}: {message}" + (
            f" (in the section “{section}”)" if section else ""
        ), cell

    def cells(self) -> list[dict]:
        try:
            return read_notebook(self.executed)["cells"]
        except (InputError, OSError):  # papermill was killed while it wrote, or before
            return self.notebook.content["cells"]

    def last_cell(self, failed: bool = False) -> int | None:
        """Place of the cell that was being run at the end, or of the one that raised."""
        at = None
        for index, cell in enumerate(self.cells()):
            mark = cell.get("metadata", {}).get("papermill", {})
            if failed and mark.get("exception"):
                return index
            if cell["cell_type"] == "code" and mark.get("start_time"):
                at = index
        return at

    def record(self) -> dict | None:
        """The final record, if this very run wrote it."""
        try:
            record = json.loads((self.private / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if record.get("run_id") == self.run_id else None

    def manifest(self, state: str, reason: str, record: dict) -> dict:
        values = shown(self.notebook.parameters, self.entry["values"])
        return {
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
            "peak_memory_bytes": record.get("peak_memory_bytes"),
            "git": manifest.git_state(self.places.root),
            "versions": record.get("versions") or manifest.versions(),
            "platform": record.get("platform") or manifest.system(),
            "device": record.get("device") or manifest.device(),
            "data": record.get("data", []),
            "splits": record.get("splits", []),
            "figures": record.get("figures", []),
            "headline": record.get("headline"),
        }

    def succeed(self, record: dict) -> int:
        details = self.manifest("ok", "", record)
        self.write_report(details, None)
        details["files"] = manifest.files_of(self.folder)
        write_json(self.folder / "manifest.json", details)
        put_in_place(self.folder, self.places.result(self.name), self.places)
        write_stamp(self.places, self.name, self.entry)
        shutil.rmtree(self.places.failed(self.name), ignore_errors=True)
        shutil.rmtree(self.work_folder.parent, ignore_errors=True)
        self.event("done", headline=headline_text(record["headline"]))
        update_index(self.places)
        return 0

    def fail(self, reason: str, failed_cell: int | None) -> int:
        try:
            state = json.loads((self.private / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            state = {}
        details = self.manifest("failed", reason, {**state, "headline": None})
        for path in self.folder.iterdir():  # scores of a run that failed are no scores
            if path.name != self.executed.name:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.write_report(details, failed_cell)
        details["files"] = manifest.files_of(self.folder)
        details["figures"] = []
        write_json(self.folder / "manifest.json", details)
        put_in_place(self.folder, self.places.failed(self.name), self.places)
        if reason not in (KILLED, BY_SCHEDULER):
            write_json(self.given_up, self.plan.get("id"))
        self.event("failed", reason=reason)
        update_index(self.places)
        return 1

    def write_report(self, details: dict, failed_cell: int | None) -> None:
        import nbformat

        from nbhelpers.core.files import write_text
        from nbhelpers.reports.html import render_report

        try:
            notebook = nbformat.read(self.executed, as_version=4)
        except Exception:  # papermill was killed while it wrote, or before
            notebook = nbformat.read(self.notebook.path, as_version=4)
        failed_id = (
            notebook.cells[failed_cell].get("id")
            if failed_cell is not None and failed_cell < len(notebook.cells)
            else None
        )
        notebook.metadata.pop("papermill", None)  # it holds paths of this machine
        notebook.cells = [
            cell
            for cell in notebook.cells
            if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
        ]
        for cell in notebook.cells:
            cell.metadata.pop("papermill", None)
            cell.metadata.pop("execution", None)
        text = self.hide_places(nbformat.writes(notebook))
        write_text(self.executed, text + "\n")
        notebook = nbformat.reads(text, as_version=4)
        write_text(
            self.folder / "report.html",
            render_report(notebook, details, self.notebook, failed_cell_id=failed_id),
        )

    def hide_places(self, text: str) -> str:
        """The text without the folders of this machine: reports are meant to be handed on."""
        home = str(Path.home())
        hidden = {
            str(self.folder): f"results/{self.name}",
            str(self.places.root): ".",
            str(CODE_ROOT): ".",
            sys.prefix: "<environment>",
            sys.base_prefix: "<python>",
        }
        if len(home) > 3:
            hidden[home] = "~"
        for key, parameter in self.notebook.parameters.items():
            for item in parameter.paths(self.entry["values"][key]):
                if Path(item).is_absolute():
                    hidden[item] = f"…/{Path(item).name}"
        for place in sorted(hidden, key=len, reverse=True):
            text = re.sub(re.escape(place) + r"(?![\w.-])", lambda _, new=hidden[place]: new, text)
            quoted = place
            new = hidden[place]
            for _ in range(
                2
            ):  # in the JSON of the notebook, and in a literal of the parameters cell within it
                quoted = json.dumps(quoted)[1:-1]
                new = json.dumps(new)[1:-1]
                if quoted != place:
                    text = text.replace(quoted, new)
        return text

    def event(self, state: str, **more: object) -> None:
        """Tell the command that waits; one short line, so that lines of several jobs never mix."""
        line = (
            json.dumps(
                {
                    "notebook": self.name,
                    "state": state,
                    "time": time.time(),
                    "seconds": time.monotonic() - self.clock,
                    **more,
                }
            )
            + "\n"
        )
        try:
            handle = os.open(self.plan["events"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.write(handle, line.encode("utf-8"))
            os.close(handle)
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


def asker_lives(plan: dict) -> bool:
    """Whether the command that wrote the plan still runs; on another machine that cannot be told,
    so yes.
    """
    import psutil

    if not plan.get("asker_pid"):
        return True
    try:
        process = psutil.Process(plan["asker_pid"])
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and abs(process.create_time() - plan["asker_born"]) < 1
        )
    except psutil.NoSuchProcess:
        return False


def kill_tree(child: subprocess.Popen) -> None:
    """End a process with all that it started; kernels live in sessions of their own."""
    import psutil

    try:
        below = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        below = []
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    for process in below:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
    child.wait()


def writing_reason(error: OSError, places: Paths) -> str:
    """A failure to write, in words."""
    try:
        name = (
            Path(error.filename).relative_to(places.root).as_posix()
            if error.filename
            else "results"
        )
    except (ValueError, TypeError):
        name = "results"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{name}: the disk is full. Free some space and run again; finished results are "
            f"untouched."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{name}: may not be written. Make the folder results/ writable and run again."
    return f"{name}: {error.strerror or error}."


def write_stamp(places: Paths, name: str, entry: dict) -> None:
    """Note what the result in place was made from; older notes of the notebook go."""
    stamp = places.stamp(name, entry["fingerprint"])
    for old in places.stamps.glob("*.done"):
        if old != stamp and old.name.rsplit(".", 2)[0] == name:
            old.unlink(missing_ok=True)
    write_json(stamp, {key: entry[key] for key in ("fingerprint", "parts", "values", "profile")})


def update_index(places: Paths) -> None:
    from nbhelpers.reports.index import write_index

    if places.elsewhere is None:  # a sweep has a summary instead, which the command writes
        write_index(places)


if __name__ == "__main__":
    sys.exit(main())
