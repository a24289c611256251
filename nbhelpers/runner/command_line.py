"""The command behind ``run_all.sh``: run notebooks, list them, keep their reports up to date."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from nbhelpers.core.errors import InputError, ParameterError, nearest
from nbhelpers.reports.manifest import usable_cores
from nbhelpers.reports.notebooks import FACTS, Notebook, all_notebooks, new_name
from nbhelpers.reports.paths import read_json
from nbhelpers.runner import workflow
from nbhelpers.runner.places import RunnerPaths, headline_of
from nbhelpers.runner.plan import make_requests, profile_names, read_profile
from nbhelpers.runner.workflow import FAILED, INTERRUPTED, make_entries, shown_path

USAGE_ERROR = 2
ALONE = {  # options that leave no sense to others beside them
    "verify": ("overrides", "profile", "sweep", "from_manifest", "force"),
    "from_manifest": ("notebooks", "profile", "sweep"),
}
WORDS = {"overrides": "-p", "notebooks": "the name of a notebook"}


class Parser(argparse.ArgumentParser):
    """Refuses as everything here does: with the nearest right option, and without a page of
    usage."""

    def error(self, message: str):
        fix = "--help shows all options."
        unknown = [word for word in message.split() if word.startswith("--")]
        if message.startswith("argument -p:"):
            fix = f"Write for example: -p epochs 60. {fix}"
        elif "unrecognized" in message and unknown:
            fix = nearest(unknown[0], self._option_string_actions)
        raise ParameterError("the command", f"{message}.", fix)


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="run_all.sh",
        allow_abbrev=False,
        description="Run the notebooks and write one report per notebook under results/, with "
        "results/index.html over all of them. What is up to date is not run again.",
    )
    add = made.add_argument
    add(
        "notebooks",
        nargs="*",
        metavar="NOTEBOOK",
        help="its name, number, or a word of it that no other has: 03_spine_tinycnn, 03, spine; "
        "without it, all notebooks of the profile",
    )
    add("--profile", help="a file of profiles/: which notebooks, which parameters (default: demo)")
    add(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        dest="overrides",
        help="set a parameter of the named notebooks; may be given several times",
    )
    add("--force", action="store_true", help="run again from the start even if up to date")
    add("--cores", type=int, metavar="N", help="cores to use in all (default: all there are)")
    add("--timeout", type=float, metavar="MINUTES", help="stop a notebook that takes longer")
    add("--list", action="store_true", help="show the notebooks, parameters and last results")
    add("--dry-run", action="store_true", help="check everything, say what would run, run nothing")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="NAME=VALUES",
        help="run the one named notebook with each of these values, e.g. learning_rate=1e-3,3e-4 "
        "or seed=0:5 (0 to 4); several make a grid; a summary page holds mean, spread and n",
    )
    add(
        "--verify",
        action="store_true",
        help="repeat finished runs in a scratch place and compare: byte for byte on the same "
        "machine, within 0.02 on another",
    )
    add("--from-manifest", metavar="FILE", help="rebuild the run that a manifest.json describes")
    add(
        "--workflow-profile",
        "--engine",
        default="local",
        dest="engine",
        metavar="NAME",
        help="where jobs run: local (the default), slurm, or a folder with a Snakemake "
        "config.yaml of your own",
    )
    return made


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 a notebook failed, 2 refused,
    130 interrupted."""
    paths = RunnerPaths.find()
    try:
        return run(paths, parser().parse_args(argv))
    except InputError as error:
        print(f"run_all.sh: {error}", file=sys.stderr)
        return USAGE_ERROR
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # e.g. `--list | head`
        return 0
    except OSError as error:
        from nbhelpers.runner.execution import writing_reason

        print(f"run_all.sh: {writing_reason(error, paths)}", file=sys.stderr)
        return FAILED


def run(paths: RunnerPaths, arguments: argparse.Namespace) -> int:
    """Check everything, then do what was asked for."""
    notebooks = all_notebooks(paths)
    if arguments.list:
        return print_list(paths, notebooks)
    check_options(arguments)
    for name in arguments.notebooks:
        say_new_name(name, notebooks)
    if arguments.verify:
        return verify(paths, notebooks, arguments)
    if arguments.from_manifest:
        return run_from_manifest(paths, notebooks, arguments)
    if arguments.sweep:
        return run_sweep(paths, notebooks, arguments)
    requests = make_requests(
        paths, notebooks, arguments.profile, arguments.notebooks, arguments.overrides
    )
    entries = make_entries(paths, requests)
    if arguments.dry_run:
        return workflow.show_plan(paths, entries, arguments.force)
    with workflow.hold_lock(paths):
        return workflow.run_entries(paths, entries, arguments)


def check_options(arguments: argparse.Namespace) -> None:
    """Refuse what cannot be meant, and fill in the defaults. Raises ParameterError."""
    if arguments.cores is None:
        arguments.cores = usable_cores()
    if arguments.cores < 1:
        raise ParameterError("--cores", f"{arguments.cores} is less than 1.")
    minutes = arguments.timeout
    if minutes is not None and not minutes > 0:  # not a number is not more than 0 either
        raise ParameterError("--timeout", f"{minutes} is not a positive number of minutes.")
    engine = arguments.engine
    if not (workflow.engine_profile(engine) / "config.yaml").is_file():
        raise ParameterError(
            f"--workflow-profile {engine}",
            "there is no such folder in workflow/profiles/.",
            nearest(engine, os.listdir(workflow.ENGINES)),
        )
    for option, others in ALONE.items():
        for other in others:
            if getattr(arguments, option) and getattr(arguments, other):
                words = [WORDS.get(name, "--" + name.replace("_", "-")) for name in (option, other)]
                raise ParameterError(
                    words[0], f"cannot go together with {words[1]}.", "Leave one of them out."
                )
    arguments.profile = arguments.profile or "demo"


def say_new_name(name: str, notebooks: Mapping[str, Notebook]) -> None:
    now = new_name(name, notebooks)
    if now:
        print(f"{name} is now called {now}.")


def run_sweep(
    paths: RunnerPaths, notebooks: Mapping[str, Notebook], arguments: argparse.Namespace
) -> int:
    """Run one notebook over a grid of values, and write the page over all of its runs."""
    from nbhelpers.runner.sweep import make_sweep, write_summary

    sweep = make_sweep(
        paths,
        notebooks,
        arguments.profile,
        arguments.notebooks,
        arguments.overrides,
        arguments.sweep,
    )
    entries = make_entries(sweep.paths, sweep.requests)
    if arguments.dry_run:
        return workflow.show_plan(sweep.paths, entries, arguments.force)
    with workflow.hold_lock(paths):
        status = workflow.run_entries(sweep.paths, entries, arguments)
        page = write_summary(sweep, {name: entry["fingerprint"] for name, entry in entries.items()})
    print(f"Summary: {shown_path(page)}")
    return status


def run_from_manifest(
    paths: RunnerPaths, notebooks: Mapping[str, Notebook], arguments: argparse.Namespace
) -> int:
    """Run what a manifest describes, say what has changed since, and both scores."""
    from nbhelpers.runner.repeat import changed_since, read_manifest, request_of_manifest

    file = arguments.from_manifest
    found = read_manifest(Path(file))
    say_new_name(found["notebook"], notebooks)
    request = request_of_manifest(paths, notebooks, found, file, arguments.overrides)
    entries = make_entries(paths, [request])
    workflow.keep_threads(entries[request.name], found, arguments.cores)
    for words in changed_since(found, entries[request.name]["parts"], paths.root):
        print(f"Not as it was: {words}")
    if arguments.dry_run:
        return workflow.show_plan(paths, entries, arguments.force)
    with workflow.hold_lock(paths):
        status = workflow.run_entries(paths, entries, arguments)
    if status == 0 and found.get("headline"):
        print(f"Then: {headline_of(found)}\nNow:  {workflow.last_headline(paths, request.name)}")
    return status


def verify(
    paths: RunnerPaths, notebooks: Mapping[str, Notebook], arguments: argparse.Namespace
) -> int:
    """Repeat finished runs beside the results in place, and print how they compare. A repetition
    that differs is kept for looking at; those that agree are removed."""
    from nbhelpers.runner import repeat

    kept = repeat.finished_runs(paths, notebooks, arguments.notebooks)
    scratch = RunnerPaths(paths.root, paths.results / ".verify")
    differing = scratch.results / "differing"
    verdicts = []
    requests = []

    def lose(name: str, reason: str) -> None:
        verdicts.append(repeat.Verdict(name, "lost", kept[name]["headline"]["value"], None, reason))

    for name, found in kept.items():
        try:
            requests.append(repeat.exact_request(paths, notebooks, found))
        except InputError as error:
            lose(name, str(error))
    entries = make_entries(scratch, requests)
    if arguments.dry_run:
        return workflow.show_plan(scratch, entries, arguments.force)
    with workflow.hold_lock(paths):
        for name, entry in entries.items():
            workflow.keep_threads(entry, kept[name], arguments.cores)
        if entries and workflow.run_entries(scratch, entries, arguments) == INTERRUPTED:
            return INTERRUPTED  # what is done is found again
        for name, entry in entries.items():
            if not workflow.is_current(scratch, name, entry):
                failure = read_json(scratch.failed(name) / "manifest.json")
                lose(name, failure.get("reason", "it did not end."))
                continue
            verdict = repeat.compare(name, paths.result(name), scratch.result(name))
            verdicts.append(verdict)
            if not verdict.good:
                shutil.rmtree(differing / name, ignore_errors=True)
                differing.mkdir(exist_ok=True)
                os.rename(scratch.result(name), differing / name)
        for path in scratch.results.glob("*"):
            if path != differing:
                shutil.rmtree(path, ignore_errors=True)
    print("\n" + repeat.table_of(verdicts))
    for name, entry in entries.items():
        for words in repeat.changed_since(kept[name], entry["parts"], paths.root):
            print(f"{name}, not as it was: {words}")
    if all(verdict.good for verdict in verdicts):
        return 0
    if differing.exists():
        print(f"Repetitions that differ: {shown_path(differing)}")
    return FAILED


def print_list(paths: RunnerPaths, notebooks: Mapping[str, Notebook]) -> int:
    """Every notebook: what it asks, needs and takes, its parameters, and how its last run ended."""
    from nbhelpers.runner.index import last_state

    if not notebooks:
        print("There are no notebooks yet.")
    for name, notebook in notebooks.items():
        print(f"{name}   {notebook.about['title']}")
        state = last_state(paths, notebook)
        facts = {fact.capitalize(): notebook.about[fact] for fact in FACTS}
        facts["Last run"] = f"{state.label}   {state.text}".rstrip()
        for fact, text in facts.items():
            if text:
                print(f"    {fact + ':':10}{text}")
        width = max(map(len, notebook.parameters), default=0)
        for parameter in notebook.parameters.values():
            constraint = f"[{parameter.constraint}] " if parameter.constraint else ""
            default = f"{parameter.default!r:<12}"
            print(f"      -p {parameter.name:{width}} {default} {constraint}{parameter.reason}")
        print()
    for name in profile_names(paths):
        names = ", ".join(read_profile(paths, name, notebooks).notebooks)
        print(f"--profile {name}: {names or 'no notebook'}")
    return 0
