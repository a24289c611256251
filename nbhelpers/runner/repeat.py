"""Repeating runs from what they left behind: ``--verify`` compares a repetition with the result in
place, and ``--from-manifest`` rebuilds a run from its ``manifest.json`` alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbhelpers.core.errors import InputError, ParameterError
from nbhelpers.reports import manifest as provenance
from nbhelpers.reports.notebooks import Notebook, find_notebook
from nbhelpers.reports.paths import read_json
from nbhelpers.runner.fingerprint import difference
from nbhelpers.runner.places import RunnerPaths, is_complete
from nbhelpers.runner.plan import Overrides, RunRequest, checked_values, overridden

MACHINE = ("cpu", "gpu", "threads", "bfloat16")  # what can change the last digits of a result
TOLERANCE = 0.02  # of a headline score repeated on another machine
NUMBERS = ("value", "low", "high", "floor")  # of a headline
COMPARED = ("metrics.json", "predictions.csv")
WORDS = {"same": "same", "close": "close", "differs": "DIFFERS", "lost": "NOT REPEATED"}


@dataclass(frozen=True)
class Verdict:
    """How a repetition compares with its run. ``kind``: same, close, differs or lost."""

    notebook: str
    kind: str
    before: float | None
    after: float | None
    text: str

    @property
    def good(self) -> bool:
        return self.kind in ("same", "close")


def read_manifest(path: Path) -> dict:
    """A manifest that names its notebook and its parameters. Raises InputError."""
    fix = "Give the manifest.json of a run."
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror}).", fix) from error
    except ValueError as error:
        raise InputError(path, f"is no JSON ({error}).", fix) from error
    parts = [found.get("notebook"), found.get("parameters")] if isinstance(found, dict) else []
    if [type(part) for part in parts] != [str, dict]:
        raise InputError(path, "is no manifest: it names no notebook or no parameters.", fix)
    return found


def request_of_manifest(
    paths: RunnerPaths,
    notebooks: Mapping[str, Notebook],
    found: dict,
    where: str,
    overrides: Overrides = (),
) -> RunRequest:
    """The run that a manifest describes. ``overrides`` say where the user's own files lie on this
    machine, as manifests hold only their names.

    Raises ParameterError for a notebook, parameter or value that this checkout does not know, and
    for a file that is not there.
    """
    notebook = find_notebook(found["notebook"], notebooks)
    given = overridden(paths, notebook, found["parameters"], overrides)
    for name, value in given.items():
        if "…/" in str(value):
            raise ParameterError(
                f"{where}, parameter {name}",
                f"a manifest holds only the name of {value}.",
                f"Say where it lies here: -p {name} PATH",
            )
    values = checked_values(paths, notebook, given, where)
    return RunRequest(notebook, found.get("profile") or "", values)


def changed_since(found: dict, parts: Mapping[str, str], root: Path) -> list[str]:
    """In words, what is not as it was when the manifest was written."""
    words = []
    change = difference(found.get("ingredients", {}), parts)
    if change:
        commit = (found.get("git") or {}).get("commit")
        now = (provenance.git_state(root) or {}).get("commit")
        made_at = f"; the run was made at commit {commit[:12]}" if commit and commit != now else ""
        words.append(change + made_at)
    new = provenance.versions()
    versions = [
        f"{name} {old} then, {new.get(name, 'none')} now"
        for name, old in found.get("versions", {}).items()
        if old != new.get(name)
    ]
    if versions:
        words.append("versions: " + ", ".join(versions))
    return words


def finished_runs(
    paths: RunnerPaths, notebooks: Mapping[str, Notebook], asked: Iterable[str]
) -> dict[str, dict]:
    """The manifests of the finished runs among the asked notebooks (all, if none is asked), by
    name.

    Raises InputError where an asked notebook has no finished run, or none has.
    """
    asked = [find_notebook(name, notebooks).name for name in asked]
    found = {}
    for name in asked or notebooks:
        folder = paths.result(name)
        kept = read_json(folder / "manifest.json")
        if kept.get("state") == "ok" and is_complete(folder, kept):
            found[name] = kept
        elif asked:
            raise InputError(
                f"--verify {name}", "it has no finished run.", f"Run it first: ./run_all.sh {name}"
            )
    if not found:
        raise InputError(
            "--verify", "there is no finished run to repeat.", "Run ./run_all.sh first."
        )
    return found


def exact_request(paths: RunnerPaths, notebooks: Mapping[str, Notebook], found: dict) -> RunRequest:
    """The run in place: its values from its stamp, which has the full paths, else from its
    manifest.
    """
    name = found["notebook"]
    stamp = read_json(paths.stamp(name, found["fingerprint"]))
    values = stamp.get("values", found["parameters"])
    return request_of_manifest(paths, notebooks, {**found, "parameters": values}, name)


def same_machine(before: Mapping, after: Mapping) -> bool:
    """Whether two manifests come from machines whose results must agree to the last bit."""

    def machine(found: Mapping) -> list:
        device = found.get("device", {})
        return [found.get("platform"), found.get("versions"), *map(device.get, MACHINE)]

    return machine(before) == machine(after)


def compare(name: str, before: Path, after: Path) -> Verdict:
    """Compare the results in two folders: on the same machine byte for byte, else the headline
    within 0.02.
    """
    old = read_json(before / "manifest.json")
    new = read_json(after / "manifest.json")
    was = old["headline"]
    now = new["headline"]
    scores = (was["value"], now["value"])
    contents = {file: _bytes(before / file) for file in COMPARED}
    different = [file for file in COMPARED if contents[file] != _bytes(after / file)]
    if not different:
        compared = " and ".join(file for file in COMPARED if contents[file] is not None)
        return Verdict(name, "same", *scores, f"every byte of {compared}")
    metrics = [read_json(folder / "metrics.json")["metrics"] for folder in (before, after)]
    where, size = largest_difference(*metrics)
    largest = f"largest difference {size:.3g} in {where}" if where else "same metrics"
    text = f"{' and '.join(different)}; {largest}"
    if same_machine(old, new):
        return Verdict(name, "differs", *scores, text)
    headlines = [[one.get(key) for key in NUMBERS] for one in (was, now)]
    _, off = largest_difference(*headlines)
    kind = "close" if off <= TOLERANCE else "differs"
    return Verdict(name, kind, *scores, f"another machine; {text}")


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def largest_difference(before: object, after: object) -> tuple[str, float]:
    """Dotted name and size of the largest difference of two nested metrics; infinite where one
    lacks the number or holds another text."""
    old = dict(leaves(before))
    new = dict(leaves(after))
    worst = ("", 0.0)
    for name in sorted({*old, *new}):
        pair = (old.get(name), new.get(name))
        if pair[0] == pair[1] and (name in old) == (name in new):
            continue
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in pair)
        size = abs(pair[0] - pair[1]) if numbers else math.inf
        if size > worst[1]:
            worst = (name, size)
    return worst


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values in nested dictionaries and lists, by their dotted names."""
    if isinstance(value, list):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        yield prefix, value
        return
    for name, item in value.items():
        yield from leaves(item, f"{prefix}.{name}" if prefix else str(name))


def table_of(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as lines of text under a heading."""
    rows = [("notebook", "verdict", "before", "now", "compared")]
    for item in verdicts:
        scores = ["" if score is None else f"{score:.4f}" for score in (item.before, item.after)]
        rows.append((item.notebook, WORDS[item.kind], *scores, item.text))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join(lines)
