"""From run requests to results: which of them are out of date, and the workflow engine (Snakemake)
that runs these.

A result is up to date when the stamp of its present fingerprint is there. So whether there is
anything to do is known before the engine starts, which takes seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import CODE_ROOT, sha256_of, write_json
from nbhelpers.reports.paths import read_json
from nbhelpers.runner.fingerprint import code_parts, difference, fingerprint_parts
from nbhelpers.runner.places import RunnerPaths, headline_of, is_complete, python_path
from nbhelpers.runner.plan import RunRequest

FAILED = 1
INTERRUPTED = 130
MOST_THREADS = 2  # of one notebook
ENGINES = CODE_ROOT / "workflow/profiles"
ENGINE_LOG = "snakemake.log"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def make_entries(paths: RunnerPaths, requests: Sequence[RunRequest]) -> dict[str, dict]:
    """Per run what its job needs to know: values, fingerprint and its parts, stamp, and as
    ``inputs`` the stamps of the runs that must be done first."""
    notebooks = {request.notebook.name: request.notebook for request in requests}
    code = {name: code_parts(notebook) for name, notebook in notebooks.items()}
    entries = {}
    for request in requests:
        parts = fingerprint_parts(paths, request, code[request.notebook.name])
        fingerprint = sha256_of(parts)
        entries[request.name] = {
            "notebook": request.notebook.name,
            "profile": request.profile,
            "values": request.values,
            "parts": parts,
            "fingerprint": fingerprint,
            "stamp": str(paths.stamp(request.name, fingerprint)),
        }
    for request in requests:
        inputs = [entries[name]["stamp"] for name in request.after if name in entries]
        entries[request.name]["inputs"] = inputs
    return entries


def share_threads(entries: dict[str, dict], cores: int) -> None:
    """How many threads each notebook gets: one each where there are more notebooks than cores,
    which is faster in sum than one after the other with two. It depends on what was asked for,
    never on what is still to do, so that a run that was killed goes on with the threads it began
    with. One that waits for the others has the cores for itself."""
    for entry in entries.values():
        share = cores if entry.get("inputs") else cores // len(entries)
        entry.setdefault("threads", min(MOST_THREADS, cores, max(1, share)))


def keep_threads(entry: dict, found: dict, cores: int) -> None:
    """Repeat a run with the threads of its manifest: another number can change the last digit."""
    threads = found.get("device", {}).get("threads")
    if threads:
        entry["threads"] = min(threads, cores)


def write_plan(paths: RunnerPaths, entries: dict[str, dict], arguments: argparse.Namespace) -> Path:
    """Write what the workflow engine and its jobs read. Returns the file's path."""
    local = arguments.engine == "local"
    if local:
        share_threads(entries, arguments.cores)
    plan = {
        "id": uuid.uuid4().hex,
        "root": paths.root,
        "results": paths.elsewhere,
        "stamps": paths.stamps,
        "events": paths.events,
        "stop_file": paths.stop_file,
        "runs": {name: {"threads": MOST_THREADS, **entry} for name, entry in entries.items()},
        "timeout_s": arguments.timeout and arguments.timeout * 60,
        "command_pid": os.getpid() if local else None,
    }
    plan_file = paths.workflow / "plan.json"
    write_json(plan_file, plan)
    return plan_file


def run_entries(paths: RunnerPaths, entries: dict[str, dict], arguments: argparse.Namespace) -> int:
    """Let the workflow engine run what is out of date. The lock is held. Returns the exit
    status."""
    from nbhelpers.runner.atomic_replace import recover
    from nbhelpers.runner.index import write_index

    recover(paths)
    waiting = []
    for name, entry in entries.items():
        check_stamp(paths, name, entry, arguments.force)
        if Path(entry["stamp"]).exists():
            print_line(name, max(map(len, entries)), "up to date", last_headline(paths, name))
        else:
            waiting.append(name)
            entry["why"] = why(paths, name, entry, arguments.force)
    status = run_waiting(paths, entries, waiting, arguments) if waiting else 0
    if not waiting:
        print("Nothing is out of date.")
    if paths.elsewhere is None:
        write_index(paths)
        print(f"Reports: {shown_path(paths.index)}")
    return status


def run_waiting(
    paths: RunnerPaths, entries: dict[str, dict], waiting: list[str], arguments: argparse.Namespace
) -> int:
    """Start the workflow engine, follow it to its end, and say what did not end well."""
    # The stamps tell all; what a killed engine left half-written would only confuse the next one.
    shutil.rmtree(paths.workflow / ".snakemake", ignore_errors=True)
    for folder in (paths.workflow, paths.logs, paths.stamps, paths.staging):
        folder.mkdir(parents=True, exist_ok=True)
    paths.events.write_text("")
    paths.stop_file.unlink(missing_ok=True)
    plan_file = write_plan(paths, entries, arguments)
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        paths.stop_file.write_text("")

    before = {number: signal.signal(number, stop) for number in STOPPING}
    width = max(map(len, entries))
    try:
        engine = start_engine(paths, plan_file, arguments)
        states = follow(paths, engine, width)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    log = f"log: {shown_path(paths.logs / ENGINE_LOG)}"
    failed = [name for name, state in states.items() if state == "failed"]
    lost = [name for name in waiting if states.get(name, "running") == "running"]
    for name in lost:
        if failed and name not in states and not stopped:
            text = f"It comes after others, of which {', '.join(failed)} failed"
            print_line(name, width, "not run", text)
        else:
            state = "not run" if stopped else "FAILED"
            print_line(name, width, state, f"Stopped before it ended; {log}")
    if stopped:
        return INTERRUPTED
    if lost or failed:
        return FAILED
    if engine.returncode:
        status = f"the workflow engine ended with status {engine.returncode}"
        print(f"run_all.sh: {status}; {log}", file=sys.stderr)
        return FAILED
    return 0


def start_engine(
    paths: RunnerPaths, plan_file: Path, arguments: argparse.Namespace
) -> subprocess.Popen[bytes]:
    cache = str(paths.workflow / "cache")
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(CODE_ROOT / "workflow/Snakefile"),
        "--directory",
        str(paths.workflow),
        "--config",
        f"plan={plan_file}",
        "--cores",
        str(arguments.cores),
        "--workflow-profile",
        str(engine_profile(arguments.engine)),
        "--runtime-source-cache-path",
        cache,
        "--nocolor",
    ]
    environment = {**os.environ, "PYTHONPATH": python_path(), "XDG_CACHE_HOME": cache}
    with open(paths.logs / ENGINE_LOG, "wb") as log:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )


def engine_profile(name: str) -> Path:
    """The folder that says where jobs run: one of ours, else one of the user's."""
    return ENGINES / name if (ENGINES / name).is_dir() else Path(name).absolute()


def follow(paths: RunnerPaths, engine: subprocess.Popen[bytes], width: int) -> dict[str, str]:
    """Print what the jobs tell, until the engine ends. Returns the last state of each by name."""
    states: dict[str, str] = {}
    read = 0
    ended = False
    while not ended:
        ended = engine.poll() is not None  # before reading, so that no last line is missed
        text = paths.events.read_bytes()[read:]
        *lines, half = text.split(b"\n")
        read += len(text) - len(half)
        for line in lines:
            event = json.loads(line)
            states[event["notebook"]] = event["state"]
            report_event(paths, event, width)
        if not ended:
            time.sleep(0.1)
    return states


def report_event(paths: RunnerPaths, event: dict, width: int) -> None:
    name = event["notebook"]
    state = event["state"]
    seconds = None if state == "running" else event["seconds"]
    print_line(name, width, "FAILED" if state == "failed" else state, event["text"], seconds)
    if state == "failed":
        report = paths.failed(name) / "report.html"
        if report.exists():
            print(f"{'':{width}}  report: {shown_path(report)}")
        print(f"{'':{width}}  log: {shown_path(paths.logs / (name + '.log'))}")


def print_line(name: str, width: int, state: str, text: str, seconds: float | None = None) -> None:
    print(f"{name:{width}}  {state:10}  {duration(seconds):>8}  {text}".rstrip(), flush=True)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02}"


def show_plan(paths: RunnerPaths, entries: dict[str, dict], force: bool) -> int:
    """Say what would run and why, and run nothing."""
    width = max(map(len, entries), default=0)
    for name, entry in entries.items():
        if is_current(paths, name, entry) and not force:
            print_line(name, width, "up to date", last_headline(paths, name))
        else:
            print_line(name, width, "would run", why(paths, name, entry, force))
    return 0


def is_current(paths: RunnerPaths, name: str, entry: dict) -> bool:
    """Whether the result in place is whole and was made from what is there now."""
    manifest = read_json(paths.result(name) / "manifest.json")
    return (
        manifest.get("state") == "ok"
        and manifest.get("fingerprint") == entry["fingerprint"]
        and is_complete(paths.result(name), manifest)
        and not paths.failed(name).exists()
    )


def check_stamp(paths: RunnerPaths, name: str, entry: dict, force: bool) -> None:
    """Make the stamp say what lies in results/: remove it where that is gone, damaged or something
    else, and write it anew where a kill came between the result and its stamp. ``force`` also
    forgets half-done work."""
    stamp = Path(entry["stamp"])
    if force or not is_current(paths, name, entry):
        stamp.unlink(missing_ok=True)
    elif not stamp.exists():
        from nbhelpers.runner.execution import write_stamp

        write_stamp(paths, name, entry)
        shutil.rmtree(paths.work / name, ignore_errors=True)
    if force:
        shutil.rmtree(paths.work_of(name, entry["fingerprint"]), ignore_errors=True)


def why(paths: RunnerPaths, name: str, entry: dict, force: bool) -> str:
    """In words, why a notebook runs again; '' for the first time."""
    manifest = read_json(paths.result(name) / "manifest.json")
    if not manifest:
        half_done = any(paths.work_of(name, entry["fingerprint"]).glob("*"))
        return "going on after a stop" if half_done else ""
    if force:
        return "(--force)"
    words = difference(manifest.get("ingredients", {}), entry["parts"])
    if words:
        return f"({words})"
    return "(last run failed)" if paths.failed(name).exists() else "(results changed)"


def hold_lock(paths: RunnerPaths) -> TextIO:
    """The one right to write results in this checkout; a kill releases it by itself."""
    import fcntl

    folder = shown_path(paths.lock.parent)
    try:
        paths.lock.parent.mkdir(parents=True, exist_ok=True)
        handle = open(paths.lock, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            folder,
            f"cannot be written ({error.strerror}).",
            "Make the folder writable, and run again.",
        ) from error
    handle.seek(0)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = handle.read().strip()
        raise InputError(
            folder,
            f"another run is going on in this checkout{who and f' ({who})'}.",
            "Wait until it has ended, or stop it.",
        ) from None
    try:
        handle.truncate()
        handle.write(f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}")
        handle.flush()
    except OSError:
        pass  # only a help for the next one
    return handle


def last_headline(paths: RunnerPaths, name: str) -> str:
    return headline_of(read_json(paths.result(name) / "manifest.json"))


def shown_path(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
