"""The command behind ``run_all.sh``: run notebooks, list them, keep their reports up to date."""

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
from typing import TYPE_CHECKING

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.reports.notebooks import Notebook, all_notebooks
from nbhelpers.reports.parameters import nearest
from nbhelpers.reports.paths import CODE_ROOT, Paths, read_json

if TYPE_CHECKING:
    from nbhelpers.runner.plan import RunRequest

USAGE_ERROR = 2
FAILED = 1
INTERRUPTED = 130
THREADS_PER_NOTEBOOK = 2


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        words = [word for word in message.split() if word.startswith("--")]
        known = [option for action in self._actions for option in action.option_strings]
        hint = f" {nearest(words[0], known)}" if "unrecognized" in message and words else ""
        if message.startswith("argument -p:"):
            hint = " Write for example: -p epochs 60."
        raise ParameterError(
            "the command", message + ".", f"{hint} --help shows all options.".strip()
        )


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="run_all.sh",
        allow_abbrev=False,
        description="Run the notebooks and write one report per "
        "notebook under results/, with results/index.html over all of them. What is up to date is "
        "not "
        "run again.",
    )
    made.add_argument(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="e.g. 04_spine_tinycnn, spine_tinycnn or 04; without it, all notebooks of the profile",
    )
    made.add_argument(
        "--profile", help="a file of profiles/: which notebooks, which parameters (default: demo)"
    )
    made.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="overrides",
        help="set a parameter of the named notebooks; may be given several times",
    )
    made.add_argument(
        "--force", action="store_true", help="run again from the start even if up to date"
    )
    made.add_argument(
        "--cores", type=int, metavar="N", help="cores to use in all (default: all of this machine)"
    )
    made.add_argument(
        "--timeout", type=float, metavar="MINUTES", help="stop a notebook that takes longer"
    )
    made.add_argument(
        "--list", action="store_true", help="show the notebooks, their parameters and last results"
    )
    made.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="run the one named notebook "
        "with each of these values, e.g. learning_rate=1e-3,3e-4 or seed=0:5 (0 to 4); several "
        "make a "
        "grid; a summary page holds mean, spread and n",
    )
    made.add_argument(
        "--verify",
        action="store_true",
        help="repeat finished runs in a scratch place and compare: byte "
        "for byte on the same machine, within 0.02 on another",
    )
    made.add_argument(
        "--from-manifest", metavar="FILE", help="rebuild the run that a manifest.json describes"
    )
    made.add_argument(
        "--workflow-profile",
        "--engine",
        default="local",
        dest="engine",
        metavar="NAME",
        help="where jobs "
        "run: local (the default), slurm, or a folder with a Snakemake config.yaml of your own",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 a notebook failed, 2 refused,
    130 interrupted."""
    places = Paths.find()
    try:
        arguments = parser().parse_args(argv)
        notebooks = all_notebooks(places)
        if arguments.list:
            print_list(places, notebooks)
            return 0
        return run(places, notebooks, arguments)
    except InputError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # e.g. `--list | head`
        return 0
    except OSError as error:  # the page of a sweep, the comparison of a verification
        from nbhelpers.runner.execution import writing_reason

        print(f"run_all.sh: {writing_reason(error, places)}", file=sys.stderr)
        return FAILED


def run(places: Paths, notebooks: dict[str, Notebook], arguments: argparse.Namespace) -> int:
    """Check everything, then let the workflow engine run what must run."""
    from nbhelpers.runner.plan import make_requests

    check_options(arguments)
    if arguments.verify:
        return verify(places, notebooks, arguments)
    if arguments.from_manifest:
        return run_from_manifest(places, notebooks, arguments)
    if arguments.sweep:
        return run_sweep(places, notebooks, arguments)
    orders = make_requests(
        places, notebooks, arguments.profile or "demo", arguments.notebooks, arguments.overrides
    )
    entries = make_entries(places, orders)
    with hold_lock(places):
        return run_entries(places, entries, arguments)


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant. Raises ParameterError."""
    cores = arguments.cores if arguments.cores is not None else usable_cores()
    if cores < 1:
        raise ParameterError("--cores", f"{cores} is less than 1.")
    if arguments.timeout is not None and not arguments.timeout > 0:
        raise ParameterError(
            "--timeout", f"{arguments.timeout} is not a positive number of minutes."
        )
    engines = [path.name for path in (CODE_ROOT / "workflow/profiles").iterdir() if path.is_dir()]
    if arguments.engine not in engines and not (Path(arguments.engine) / "config.yaml").is_file():
        raise ParameterError(
            f"--workflow-profile {arguments.engine}",
            "there is no such folder in workflow/profiles/.",
            nearest(arguments.engine, engines),
        )
    arguments.cores = cores
    alone = {
        "--verify": ("overrides", "profile", "sweep", "from_manifest", "force"),
        "--from-manifest": ("notebooks", "profile", "sweep"),
    }
    words = {"overrides": "-p", "notebooks": "the name of a notebook"}
    for option, others in alone.items():
        if getattr(arguments, option[2:].replace("-", "_")):
            for other in others:
                if getattr(arguments, other):
                    raise ParameterError(
                        option,
                        f"cannot go together with "
                        f"{words.get(other, '--' + other.replace('_', '-'))}.",
                        "Leave one of them out.",
                    )


def run_sweep(places: Paths, notebooks: dict[str, Notebook], arguments: argparse.Namespace) -> int:
    """Run one notebook over a grid of values, and write the page over all of its runs."""
    from nbhelpers.runner.sweep import make_sweep, write_summary

    sweep = make_sweep(
        places,
        notebooks,
        arguments.profile or "demo",
        arguments.notebooks,
        arguments.overrides,
        arguments.sweep,
    )
    entries = make_entries(sweep.places, sweep.orders)
    with hold_lock(places):
        status = run_entries(sweep.places, entries, arguments)
        page = write_summary(sweep, {name: entry["fingerprint"] for name, entry in entries.items()})
    print(f"Summary: {shown_path(page)}")
    return status


def run_from_manifest(
    places: Paths, notebooks: dict[str, Notebook], arguments: argparse.Namespace
) -> int:
    """Run what a manifest describes, say what has changed since, and both scores."""
    from nbhelpers.runner.repeat import changed_since, order_of_manifest, read_manifest

    found = read_manifest(Path(arguments.from_manifest))
    order = order_of_manifest(
        places, notebooks, found, arguments.from_manifest, arguments.overrides
    )
    entries = make_entries(places, [order])
    keep_threads(entries[order.name], found, arguments.cores)
    for words in changed_since(found, entries[order.name]["parts"], places.root):
        print(f"Not as it was: {words}")
    with hold_lock(places):
        status = run_entries(places, entries, arguments)
    if status == 0 and found.get("headline"):
        print(f"Then: {headline_of(found)}\nNow:  {last_headline(places, order.name)}")
    return status


def verify(places: Paths, notebooks: dict[str, Notebook], arguments: argparse.Namespace) -> int:
    """Repeat finished runs beside the results in place, and print how they compare. A repetition
    that differs is kept for looking at; those that agree are removed."""
    from nbhelpers.runner.repeat import (
        Verdict,
        changed_since,
        compare,
        exact_order,
        finished_runs,
        table_of,
    )

    kept = finished_runs(places, notebooks, arguments.notebooks)
    scratch = Paths(places.root, places.results / ".verify")
    differing = scratch.results / "differing"
    verdicts = []
    orders = []
    for name, found in kept.items():
        try:
            orders.append(exact_order(places, notebooks, found))
        except InputError as error:
            verdicts.append(Verdict(name, "lost", found["headline"]["value"], None, str(error)))
    with hold_lock(places):
        entries = make_entries(scratch, orders)
        for name, entry in entries.items():
            keep_threads(entry, kept[name], arguments.cores)
        status = run_entries(scratch, entries, arguments) if entries else 0
        if status == INTERRUPTED:
            return status  # what is done is found again
        for name, entry in entries.items():
            if (
                read_json(scratch.result(name) / "manifest.json").get("fingerprint")
                != entry["fingerprint"]
            ):
                reason = read_json(scratch.failed(name) / "manifest.json").get(
                    "reason", "it did not end."
                )
                verdicts.append(
                    Verdict(name, "lost", kept[name]["headline"]["value"], None, reason)
                )
                continue
            verdict = compare(name, places.result(name), scratch.result(name))
            if not verdict.good:
                shutil.rmtree(differing / name, ignore_errors=True)
                differing.mkdir(exist_ok=True)
                os.rename(scratch.result(name), differing / name)
            verdicts.append(verdict)
        for path in scratch.results.glob("*") if scratch.results.exists() else ():
            if path != differing:
                shutil.rmtree(path, ignore_errors=True)
    print("\n" + table_of(verdicts))
    for name, entry in entries.items():
        for words in changed_since(kept[name], entry["parts"], places.root):
            print(f"{name}, not as it was: {words}")
    if differing.exists() and not all(verdict.good for verdict in verdicts):
        print(f"Repetitions that differ: {shown_path(differing)}")
    return 0 if all(verdict.good for verdict in verdicts) else FAILED


def make_entries(places: Paths, orders: Sequence[RunRequest]) -> dict[str, dict]:
    """Per notebook what its job needs to know: values, fingerprint and its parts, stamp, input
    files.
    """
    from nbhelpers.runner.fingerprint import code_parts, fingerprint_of, fingerprint_parts

    code = {
        order.notebook.name: code_parts(order.notebook)
        for order in {order.notebook.name: order for order in orders}.values()
    }
    entries = {}
    for order in orders:
        parts = fingerprint_parts(places, order, code=code[order.notebook.name])
        fingerprint = fingerprint_of(parts)
        sources = [str(CODE_ROOT / name) for name in parts if name.startswith("nbhelpers/")]
        entries[order.name] = {
            "notebook": order.notebook.name,
            "profile": order.profile,
            "values": order.values,
            "parts": parts,
            "fingerprint": fingerprint,
            "stamp": str(places.stamp(order.name, fingerprint)),
            "inputs": [str(order.notebook.path), *sources],
        }
    for order in orders:
        for first in order.after:
            if first in entries:
                entries[order.name]["inputs"].append(entries[first]["stamp"])
                entries[order.name]["waits"] = True
    return entries


def share_threads(entries: dict[str, dict], cores: int) -> None:
    """How many threads each notebook gets: one each where there are more notebooks than cores,
    which is faster in sum than one after the other with two. It depends on what was asked for,
    never on what is still to do, so that a run that was killed goes on with the threads it began
    with. One that waits for the others has the cores for itself."""
    for entry in entries.values():
        share = cores if entry.get("waits") else cores // len(entries)
        entry.setdefault("threads", min(THREADS_PER_NOTEBOOK, cores, max(1, share)))


def keep_threads(entry: dict, found: dict, cores: int) -> None:
    """Repeat a run with the threads of its manifest: another number can change the last digit."""
    if threads := (found.get("device") or {}).get("threads"):
        entry["threads"] = min(threads, cores)


def write_plan(
    places: Paths,
    entries: dict[str, dict],
    threads: int,
    timeout: float | None = None,
    engine: str = "local",
) -> Path:
    """Write what the workflow engine and its jobs read. ``threads`` is for entries that do not say
    their own; ``timeout`` is in minutes."""
    from nbhelpers.core.files import write_json

    plan_file = places.workflow / "plan.json"
    write_json(
        plan_file,
        {
            "id": uuid.uuid4().hex,
            "root": places.root,
            "results": places.elsewhere,
            "stamps": places.stamps,
            "events": places.workflow / "events.jsonl",
            "stop_file": places.workflow / "stop",
            "runs": {name: {"threads": threads, **entry} for name, entry in entries.items()},
            "timeout_s": timeout * 60 if timeout else None,
            **(asker() if engine == "local" else {}),
        },
    )
    return plan_file


def run_entries(places: Paths, entries: dict[str, dict], arguments: argparse.Namespace) -> int:
    """Let the workflow engine run what is out of date. The lock is held. Returns the
    exit status."""
    from nbhelpers.reports.index import write_index
    from nbhelpers.runner.atomic_replace import recover

    width = max(map(len, entries))
    cores = arguments.cores
    try:
        recover(places)
        # The stamps tell all; what a killed workflow engine left half-written would only confuse
        # the next one.
        shutil.rmtree(places.workflow / ".snakemake", ignore_errors=True)
        for name, entry in entries.items():
            check_stamp(places, name, entry, arguments.force)
        for folder in (places.workflow, places.logs, places.stamps, places.staging):
            folder.mkdir(parents=True, exist_ok=True)
        waiting = {name for name, entry in entries.items() if not Path(entry["stamp"]).exists()}
        for name, entry in entries.items():
            if name not in waiting:
                print_line(name, width, "up to date", None, last_headline(places, name))
            entry["why"] = why(places, name, entry, arguments.force) if name in waiting else ""
        events = places.workflow / "events.jsonl"
        stop_file = places.workflow / "stop"
        events.write_text("")
        stop_file.unlink(missing_ok=True)
        if arguments.engine == "local":
            share_threads(entries, cores)
        plan_file = write_plan(
            places, entries, THREADS_PER_NOTEBOOK, arguments.timeout, arguments.engine
        )
        # With every stamp there the workflow engine would find nothing to do; its start is the slow
        # part.
        status = (
            follow(places, plan_file, events, stop_file, waiting, width, cores, arguments.engine)
            if waiting
            else 0
        )
        if places.elsewhere is None:
            write_index(places)
    except OSError as error:
        from nbhelpers.runner.execution import writing_reason

        print(f"run_all.sh: {writing_reason(error, places)}", file=sys.stderr)
        return FAILED
    if not waiting:
        print("Nothing is out of date.")
    if places.elsewhere is None:
        print(f"Reports: {shown_path(places.index)}")
    return status


def follow(
    places: Paths,
    plan_file: Path,
    events: Path,
    stop_file: Path,
    waiting: set[str],
    width: int,
    cores: int,
    engine: str,
) -> int:
    """Start the workflow engine and print what its jobs tell, until it ends."""
    log_file = places.logs / "snakemake.log"
    cache = places.workflow / "cache"
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(CODE_ROOT / "workflow/Snakefile"),
        "--directory",
        str(places.workflow),
        "--config",
        f"plan={plan_file}",
        "--cores",
        str(cores),
        "--workflow-profile",
        str(
            known
            if (known := CODE_ROOT / "workflow/profiles" / engine).is_dir()
            else Path(engine).absolute()
        ),
        "--runtime-source-cache-path",
        str(cache),
        "--nocolor",
    ]
    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        stop_file.write_text("")

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    outcome: dict[str, str] = {}
    place = 0
    try:
        with open(log_file, "wb") as log:
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    filter(None, [str(CODE_ROOT), os.environ.get("PYTHONPATH", "")])
                ),
                "XDG_CACHE_HOME": str(cache),
            }
            engine_process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            ended = False
            while not ended:
                ended = engine_process.poll() is not None
                text = events.read_bytes()[place:]
                whole = text[: text.rfind(b"\n") + 1]
                place += len(whole)
                for line in whole.splitlines():
                    report_event(places, json.loads(line), width, outcome)
                if not ended:
                    time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    lost = [name for name in sorted(waiting) if outcome.get(name) not in ("done", "failed")]
    failed = ", ".join(name for name, state in outcome.items() if state == "failed")
    for name in lost:
        if failed and name not in outcome and not stopped:
            print_line(
                name, width, "not run", None, f"It comes after others, of which {failed} failed"
            )
            continue
        print_line(
            name,
            width,
            "FAILED" if not stopped else "not run",
            None,
            f"Stopped before it ended; log: {shown_path(log_file)}",
        )
    if stopped:
        return INTERRUPTED
    if lost or "failed" in outcome.values():
        return FAILED
    if engine_process.returncode:
        print(
            f"run_all.sh: the workflow engine ended with status {engine_process.returncode}; "
            f"log: {shown_path(log_file)}",
            file=sys.stderr,
        )
        return FAILED
    return 0


def report_event(places: Paths, event: dict, width: int, outcome: dict[str, str]) -> None:
    name = event["notebook"]
    state = event["state"]
    outcome[name] = state
    if state == "running":
        print_line(name, width, "running", None, event.get("why", ""))
    elif state == "done":
        print_line(name, width, "done", event["seconds"], event["headline"])
    else:
        print_line(name, width, "FAILED", event["seconds"], event["reason"])
        report = places.failed(name) / "report.html"
        if report.exists():
            print(f"{'':{width}}  report: {shown_path(report)}")
        print(f"{'':{width}}  log: {shown_path(places.logs / (name + '.log'))}")


def print_line(name: str, width: int, state: str, seconds: float | None, text: str) -> None:
    print(f"{name:{width}}  {state:10}  {duration(seconds):>8}  {text}".rstrip(), flush=True)


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60:02}"


def check_stamp(places: Paths, name: str, entry: dict, force: bool) -> None:
    """Make the stamp say what lies in results/: remove it where that is gone, damaged or something
    else, and write it anew where a kill came between the result and its stamp. ``force`` also
    forgets half-done work."""
    from nbhelpers.reports.manifest import is_complete
    from nbhelpers.runner.execution import write_stamp

    stamp = Path(entry["stamp"])
    manifest = read_json(places.result(name) / "manifest.json")
    current = (
        manifest.get("state") == "ok"
        and manifest.get("fingerprint") == entry["fingerprint"]
        and is_complete(places.result(name), manifest)
        and not places.failed(name).exists()
    )
    if force or not current:
        stamp.unlink(missing_ok=True)
    elif not stamp.exists():
        write_stamp(places, name, entry)
        shutil.rmtree(places.work / name, ignore_errors=True)
    if force:
        shutil.rmtree(places.work_of(name, entry["fingerprint"]), ignore_errors=True)


def why(places: Paths, name: str, entry: dict, force: bool) -> str:
    """In words, why a notebook runs again; '' for the first time."""
    from nbhelpers.runner.fingerprint import difference

    manifest = read_json(places.result(name) / "manifest.json")
    if not manifest:
        return (
            "going on after a stop"
            if any(places.work_of(name, entry["fingerprint"]).glob("*"))
            else ""
        )
    if force:
        return "(--force)"
    words = difference(manifest.get("ingredients", {}), entry["parts"])
    return (
        f"({words})"
        if words
        else "(last run failed)"
        if places.failed(name).exists()
        else "(results changed)"
    )


def asker() -> dict[str, object]:
    """This process, so that jobs end when it is killed."""
    import psutil

    return {"asker_pid": os.getpid(), "asker_born": psutil.Process().create_time()}


def hold_lock(places: Paths):
    """The one right to write results in this checkout; a kill releases it by itself."""
    import fcntl

    try:
        places.lock.parent.mkdir(parents=True, exist_ok=True)
        handle = open(places.lock, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(
            shown_path(places.lock.parent),
            f"cannot be written ({error.strerror}).",
            "Make the folder writable, and run again.",
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        who = handle.read().strip()
        raise InputError(
            shown_path(places.lock.parent),
            f"another run is going on in this checkout{who and f' ({who})'}.",
            "Wait until it has ended, or stop it.",
        ) from None
    handle.seek(0)
    handle.truncate()
    try:
        handle.write(f"process {os.getpid()}, since {time.strftime('%H:%M:%S')}")
        handle.flush()
    except OSError:
        pass  # only a help for the next one
    return handle


def last_headline(places: Paths, name: str) -> str:
    return headline_of(read_json(places.result(name) / "manifest.json"))


def headline_of(manifest: dict) -> str:
    """The score of a run in words; '' where it has none."""
    from nbhelpers.reports.run import headline_text

    headline = manifest.get("headline")
    return headline_text(headline) if headline else ""


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shown_path(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def print_list(places: Paths, notebooks: dict[str, Notebook]) -> None:
    """Every notebook: what it asks, needs and takes, its parameters, and how its last run ended."""
    from nbhelpers.reports.index import last_state
    from nbhelpers.runner.plan import profile_names, read_profile

    if not notebooks:
        print("There are no notebooks yet.")
    for name, notebook in notebooks.items():
        about = notebook.about
        print(f"{name}   {about['title']}")
        for fact in ("question", "needs", "time"):
            if about[fact]:
                print(f"    {fact.capitalize() + ':':10}{about[fact]}")
        state = last_state(places, notebook)
        print(f"    {'Last run:':10}{state.label}" + (f"   {state.text}" if state.text else ""))
        width = max((len(parameter) for parameter in notebook.parameters), default=0)
        for parameter in notebook.parameters.values():
            constraint = f"[{parameter.constraint}] " if parameter.constraint else ""
            print(
                f"      -p {parameter.name:{width}} {parameter.default!r:<12} "
                f"{constraint}{parameter.reason}"
            )
        print()
    for profile in profile_names(places):
        print(
            f"--profile {profile}: "
            f"{', '.join(read_profile(places, profile, notebooks)) or 'no notebook'}"
        )


if __name__ == "__main__":
    sys.exit(main())
