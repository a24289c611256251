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
from nbhelpers.reports.parameters import check_values
from nbhelpers.reports.paths import Paths
from nbhelpers.runner.plan import RunRequest, check_paths, overridden

MACHINE = (
    "cpu",
    "gpu",
    "threads",
    "bfloat16",
)  # what of a device can change the last digits of a result
TOLERANCE = 0.02  # of a headline score repeated on another machine
COMPARED = ("metrics.json", "predictions.csv")


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
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            path, f"cannot be read ({error.strerror}).", "Give the manifest.json of a run."
        ) from error
    except ValueError as error:
        raise InputError(
            path, f"is no JSON ({error}).", "Give the manifest.json of a run."
        ) from error
    if not (
        isinstance(found, dict)
        and isinstance(found.get("notebook"), str)
        and isinstance(found.get("parameters"), dict)
    ):
        raise InputError(
            path,
            "is no manifest: it names no notebook or no parameters.",
            "Give the manifest.json of a run.",
        )
    return found


def order_of_manifest(
    places: Paths,
    notebooks: Mapping[str, Notebook],
    found: dict,
    where: str,
    overrides: Sequence[tuple[str, str]] = (),
) -> RunRequest:
    """The run that a manifest describes. ``overrides`` say where the user's own files lie on this
    machine, as manifests hold only their names.

    Raises ParameterError for a notebook, parameter or value that this checkout does not know, and
    for a file that is not there.
    """
    notebook = find_notebook(found["notebook"], dict(notebooks))
    given = overridden(places, notebook, found["parameters"], overrides)
    values = check_values(notebook.parameters, given, where)
    for name, parameter in notebook.parameters.items():
        for item in parameter.paths(values[name]):
            if item.startswith("…/"):
                raise ParameterError(
                    f"{where}, parameter {name}",
                    f"a manifest holds only the name of {item}.",
                    f"Say where it lies here: -p {name} PATH",
                )
        check_paths(places, parameter.paths(values[name]), f"{where}, parameter {name}")
    return RunRequest(notebook, found.get("profile") or "", values)


def changed_since(found: dict, parts: Mapping[str, str], root: Path) -> list[str]:
    """In words, what is not as it was when the manifest was written."""
    from nbhelpers.runner.fingerprint import difference

    words = []
    made_from = {name: value for name, value in found.get("ingredients", {}).items()}
    if change := difference(made_from, dict(parts)):
        commit = (found.get("git") or {}).get("commit")
        now = (provenance.git_state(root) or {}).get("commit")
        words.append(
            change
            + (f"; the run was made at commit {commit[:12]}" if commit and commit != now else "")
        )
    old = found.get("versions", {})
    new = provenance.versions()
    if versions := [
        f"{name} {old[name]} then, {new.get(name, 'none')} now"
        for name in old
        if old[name] != new.get(name)
    ]:
        words.append("versions: " + ", ".join(versions))
    return words


def finished_runs(
    places: Paths, notebooks: Mapping[str, Notebook], asked: Iterable[str]
) -> dict[str, dict]:
    """The manifests of the finished runs among the asked notebooks (all, if none is asked), by
    name.

    Raises InputError where an asked notebook has no finished run, or none has.
    """
    asked = [find_notebook(name, dict(notebooks)).name for name in asked]
    found = {}
    for name in asked or notebooks:
        try:
            kept = read_manifest(places.result(name) / "manifest.json")
        except InputError:
            kept = {}
        if kept.get("state") == "ok" and provenance.is_complete(places.result(name), kept):
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


def exact_order(places: Paths, notebooks: Mapping[str, Notebook], found: dict) -> RunRequest:
    """The run in place: its values from its stamp, which has the full paths, else from its
    manifest.
    """
    name = found["notebook"]
    values = found["parameters"]
    try:
        values = json.loads(places.stamp(name, found["fingerprint"]).read_text(encoding="utf-8"))[
            "values"
        ]
    except (OSError, ValueError, KeyError):
        pass
    return order_of_manifest(places, notebooks, {**found, "parameters": values}, name)


def same_machine(before: Mapping, after: Mapping) -> bool:
    """Whether two manifests come from machines whose results must agree to the last bit."""

    def machine(found: Mapping) -> list:
        return [
            found.get("platform"),
            found.get("versions"),
            *map((found.get("device") or {}).get, MACHINE),
        ]

    return machine(before) == machine(after)


def compare(name: str, before: Path, after: Path) -> Verdict:
    """Compare the results in two folders: on the same machine byte for byte, else the headline
    within 0.02.
    """
    old, new = (
        json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        for folder in (before, after)
    )
    scores = old["headline"]["value"], new["headline"]["value"]
    unlike = [
        file
        for file in COMPARED
        if (before / file).exists() != (after / file).exists()
        or (
            (before / file).exists() and (before / file).read_bytes() != (after / file).read_bytes()
        )
    ]
    if not unlike:
        return Verdict(
            name,
            "same",
            *scores,
            "every byte of " + " and ".join(file for file in COMPARED if (before / file).exists()),
        )
    where, size = largest_difference(
        *(
            json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["metrics"]
            for folder in (before, after)
        )
    )
    text = f"{' and '.join(unlike)}; " + (
        f"largest difference {size:.3g} in {where}" if where else "same metrics"
    )
    if same_machine(old, new):
        return Verdict(name, "differs", *scores, text)
    off = max(
        abs(old["headline"][key] - new["headline"][key])
        for key in ("value", "low", "high", "floor")
    )
    return Verdict(
        name, "close" if off <= TOLERANCE else "differs", *scores, f"another machine; {text}"
    )


def largest_difference(before: object, after: object) -> tuple[str, float]:
    """Dotted name and size of the largest difference of two nested metrics; infinite where one
    lacks the number or holds another text."""
    old = dict(leaves(before))
    new = dict(leaves(after))
    worst = ("", 0.0)
    for name in sorted({*old, *new}):
        a = old.get(name)
        b = new.get(name)
        if a == b and (name in old) == (name in new):
            continue
        both = all(isinstance(item, int | float) and not isinstance(item, bool) for item in (a, b))
        size = abs(a - b) if both else math.inf
        if size > worst[1]:
            worst = (name, size)
    return worst


def leaves(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """The values in nested dictionaries and lists, by their dotted names."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if items is None:
        yield prefix, value
        return
    for name, item in items:
        yield from leaves(item, f"{prefix}.{name}" if prefix else str(name))


def table_of(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as lines of text under a heading."""
    words = {"same": "same", "close": "close", "differs": "DIFFERS", "lost": "NOT REPEATED"}
    rows = [("notebook", "verdict", "before", "now", "compared")]
    rows += [
        (
            item.notebook,
            words[item.kind],
            *("" if score is None else f"{score:.4f}" for score in (item.before, item.after)),
            item.text,
        )
        for item in verdicts
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]
        ).rstrip()
        for row in rows
    )
