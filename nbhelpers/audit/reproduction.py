"""The reproduction table: every figure that the four systems reported, beside what this collection
gets.

What was reported, with its source, stands in ``claims.csv``; what is got here is read from
``results/`` and ``docs/scores/``, never typed in. A figure whose run is missing says so, and which
command makes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.means import count_interval

CLAIMS = Path(__file__).with_name("claims.csv")
TOLD = ("system", "model", "score", "scale", "mark", "source", "cause")
MISSING = "run missing"
MEASURED = "benchmarks/"  # what is no notebook's figure but a measurement's


def read_claims() -> pd.DataFrame:
    """The reported figures, one row each."""
    table = pd.read_csv(CLAIMS, dtype=str, keep_default_na=False)
    numbers = {name: pd.to_numeric(table[name]) for name in ("reported", "reported_n")}
    return table.assign(**numbers)


def finished_runs(repository: str | Path) -> list[dict]:
    """All runs whose figures can be read: those under ``results/``, the kept ones of
    ``docs/scores/``, and what ``benchmarks/`` measured (``notebook`` is then "benchmarks/NAME").

    Each has ``notebook``, ``file`` (relative), ``parameters``, ``figures`` (what may be looked up),
    ``synthetic`` and ``data``. A file that cannot be read is passed over, as if its run were
    missing.
    """
    repository = Path(repository)
    found = []
    for path in sorted((repository / "results").glob("*/metrics.json")):
        if path.parent.name.endswith((".failed", "-interactive")):
            continue
        metrics = _json(path)
        manifest = _json(path.with_name("manifest.json"))
        if metrics and manifest and manifest.get("state") == "ok":
            figures = {**metrics["metrics"], "headline": metrics["headline"]}
            found.append(_run(path, repository, metrics, figures, manifest.get("data", [])))
    for path in sorted((repository / "docs" / "scores").glob("*.json")):
        kept = _json(path)
        if kept:
            found.append(_run(path, repository, kept, kept, kept.get("data", [])))
    scripts = [path.stem for path in (repository / "benchmarks").glob("*.py")]
    scripts = sorted(scripts, key=len, reverse=True)
    for path in sorted((repository / "benchmarks" / "results").glob("*.json")):
        kept = _json(path)
        script = next((one for one in scripts if path.stem.startswith(one)), None)
        if script and isinstance(kept, dict):
            about = {"notebook": f"{MEASURED}{script}", "parameters": kept}
            run = _run(path, repository, about, kept, [])
            machine = (kept.get("device") or {}).get("cpu", "an unknown machine")
            found.append(run | {"data": f"timed on {machine}"})
    return found


def _json(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _run(path: Path, repository: Path, about: dict, figures: dict, data: list[dict]) -> dict:
    return {
        "notebook": about["notebook"],
        "file": path.relative_to(repository).as_posix(),
        "figures": figures,
        "parameters": about.get("parameters", {}),
        "synthetic": any(one.get("synthetic") for one in data),
        "data": ", ".join(f"{one.get('name')} (n = {one.get('n')})" for one in data),
    }


def look_up(runs: list[dict], notebook: str, at: str, where: str) -> tuple[Estimate, dict] | None:
    """A score and the run that holds it; None where there is no such run.

    ``at`` names places in the run's figures, tried in turn: "TinyCNN/accuracy | scores/accuracy";
    of a list of records one is picked like "changes[change=custom head]". ``where`` says what the
    parameters must be, alternatives in the order of preference: "data=ghani protocol=grouped |
    data=phantom". Real images come before synthetic ones.
    """
    own = [run for run in runs if run["notebook"] == notebook]
    for alternative in where.split("|"):
        wanted = dict(item.split("=", 1) for item in alternative.split())
        fits = [
            run
            for run in own
            if all(str(run["parameters"].get(key)) == value for key, value in wanted.items())
        ]
        for run in sorted(fits, key=lambda run: run["synthetic"]):
            for place in at.split("|"):
                score = _score(run["figures"], place.strip())
                if score:
                    return score, run
    return None


def _score(figures: object, place: str) -> Estimate | None:
    for step in place.split("/"):
        name, _, condition = step.partition("[")
        figures = figures.get(name) if isinstance(figures, Mapping) else None
        if condition and isinstance(figures, list):
            key, value = condition.rstrip("]").split("=", 1)
            figures = next((one for one in figures if one.get(key) == value), None)
    if isinstance(figures, float | int):
        return Estimate(float(figures))
    if not isinstance(figures, Mapping):
        return None
    if figures.get("difference") is not None:
        return Estimate(figures["difference"], figures.get("from"), figures.get("to"))
    return Estimate.from_dict(figures) if figures.get("value") is not None else None


def reproduction_table(repository: str | Path) -> pd.DataFrame:
    """One row per reported figure: reported (with an interval where it is of a known number of
    images that are independent of each other), what the published protocol and the grouped one
    give here, their intervals, the data, and the cause of the difference.

    Columns: system, model, score, scale, reported, reported low/high, published here (value, low,
    high, n, synthetic), grouped here (the same), ``on``, ``status``, ``cause``, ``source``. Shares
    are fractions; figures of the scales "number" and "times" stand as they are.
    """
    runs = finished_runs(repository)
    rows = []
    for claim in read_claims().to_dict("records"):
        row = {key: claim[key] for key in TOLD}
        row |= dict.fromkeys(("reported", "reported low", "reported high"))
        if not pd.isna(claim["reported"]):
            reported = claim["reported"] / 100 if claim["scale"] == "percent" else claim["reported"]
            row["reported"] = reported
            if not pd.isna(claim["reported_n"]):
                n = int(claim["reported_n"])
                row |= count_interval(reported * n, n).columns(
                    "reported", "reported low", "reported high"
                )
        states = []
        data = []
        for protocol in ("published", "grouped"):
            at = claim[f"{protocol}_at"]
            where = claim[f"{protocol}_where"]
            found = look_up(runs, claim["notebook"], at, where) if at else None
            columns = [f"{protocol} {key}" for key in ("value", "low", "high", "n", "synthetic")]
            row |= dict.fromkeys(columns)
            command = _command(claim["notebook"], where)
            if found:
                score, run = found
                row |= score.columns(*columns[:3])
                row[f"{protocol} n"] = score.n or None
                row[f"{protocol} synthetic"] = run["synthetic"]
                data.append(run["data"])
                real = f", synthetic; of real images: {command}" if run["synthetic"] else ""
                states.append(f"{protocol}: {run['file']}{real}")
            elif not at:
                states.append(f"{protocol}: not measured by a notebook")
            else:
                states.append(f"{protocol}: {MISSING}; {command}")
        row["on"] = "; ".join(dict.fromkeys(data))
        row["status"] = "; ".join(states)
        rows.append(row)
    return pd.DataFrame(rows)


def _command(notebook: str, where: str) -> str:
    """What makes the run that the first alternative of ``where`` asks for."""
    command = f"./run_all.sh {notebook}"
    form = " -p {} {}"
    if notebook.startswith(MEASURED):
        command = f".venv/bin/python {notebook}.py"
        form = " --{} {}"
    for item in where.split("|")[0].split():
        command += form.format(*item.split("=", 1))
    return command


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """The reproduction table for readers: figures with their intervals as text; synthetic images
    are named as such.
    """
    rows = [
        {
            "system": row["system"],
            "model": row["model"],
            "score": row["score"],
            "reported": _reported_text(row),
            "published protocol here": _found_text(row, "published"),
            "grouped here": _found_text(row, "grouped"),
            "cause of the difference": row["cause"],
        }
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows)


def _reported_text(row: Mapping) -> str:
    if pd.isna(row["reported"]):
        return "not stated"
    return _text(row, "reported", "reported low", "reported high")


def _text(row: Mapping, *columns: str) -> str:
    """A share with three decimals and its interval; times and counts as they are."""
    if row["scale"] in ("number", "times"):
        return f"{row[columns[0]]:,.6g}" if row[columns[0]] < 1e6 else f"{row[columns[0]]:,.0f}"
    return Estimate(*(row[column] for column in columns)).text()


def _found_text(row: Mapping, protocol: str) -> str:
    columns = [f"{protocol} {key}" for key in ("value", "low", "high")]
    if pd.isna(row[columns[0]]):
        return MISSING if f"{protocol}: {MISSING}" in row["status"] else "not measured"
    text = _text(row, *columns)
    if not pd.isna(row[f"{protocol} n"]):
        text += f", n = {row[f'{protocol} n']:.0f}"
    return text + (", SYNTHETIC" if row[f"{protocol} synthetic"] else "")
