"""Sweeps: one notebook over a grid of parameter values, one report per run, and one page over all
of them.

The runs of a sweep lie in ``results/sweeps/<notebook>-by-<parameters>/``, a folder per run that is
named after its values. So a wider grid finds the runs of the narrower one there, and runs only what
is missing.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.files import sha256_of, write_csv, write_json, write_text
from nbhelpers.reports.notebooks import Notebook, find_notebook
from nbhelpers.reports.parameters import Parameter, shown
from nbhelpers.reports.paths import read_json
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.plan import Overrides, RunRequest, make_requests, parameter_of, parse_text

REPLICATE = "seed"  # runs that differ in this alone are repeats of each other
MOST_RUNS = 1000
MOST_LETTERS = 120  # of a folder's name
HARMFUL = r"[^A-Za-z0-9_.-]"  # in a folder's name, on some system
HEADLINE = ("name", "value", "low", "high", "n", "n_text", "floor_name", "floor")
SPREAD = ("n_runs", "mean", "sd", "mean_low", "mean_high", "lowest", "highest", "n_images", "floor")


def split_values(parameter: Parameter, text: str) -> list[str]:
    """The values of one ``--sweep NAME=VALUES``, each as typed: ``1e-3,3e-4``, or ``0:5`` for 0, 1,
    2, 3, 4.
    """
    span = re.fullmatch(r"\s*(-?\d+):(-?\d+)\s*", text)
    if parameter.type is not int or not span:
        return [value.strip() for value in text.split(",")]
    first = int(span[1])
    beyond = int(span[2])
    where = f"--sweep {parameter.name}={text}"
    if beyond <= first:
        raise ParameterError(where, "the range is empty.", "0:5 means 0, 1, 2, 3 and 4.")
    if beyond - first > MOST_RUNS:
        raise ParameterError(where, f"is more than {MOST_RUNS} values.")
    return [str(value) for value in range(first, beyond)]


def make_grid(notebook: Notebook, sweeps: Iterable[str]) -> list[dict[str, str]]:
    """Every combination of the swept values, as typed; the last parameter changes fastest.

    Raises ParameterError for a parameter the notebook lacks, a value that does not fit, one given
    twice, and a grid of more than 1000 runs.
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        where = f"--sweep {sweep}"
        name, equals, text = sweep.partition("=")
        name = name.strip()
        if not equals:
            raise ParameterError(where, "has no values.", "Write for example: --sweep seed=0:5.")
        parameter = parameter_of(notebook, name, where)
        if name in axes:
            raise ParameterError(
                where, f"{name} is swept twice.", "Give all its values in one --sweep."
            )
        axes[name] = split_values(parameter, text)
        values = [parse_text(parameter, value, where) for value in axes[name]]
        for place, value in enumerate(values):
            if value in values[:place]:
                raise ParameterError(where, f"{value!r} stands there twice.")
    # One more than allowed is enough to see that there are too many.
    points = itertools.islice(itertools.product(*axes.values()), MOST_RUNS + 1)
    grid = [dict(zip(axes, point, strict=True)) for point in points]
    if len(grid) > MOST_RUNS:
        raise ParameterError(
            "--sweep", f"asks for more than {MOST_RUNS} runs.", "Sweep fewer values at a time."
        )
    return grid


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A grid of runs of one notebook: where they go, which they are, and what changes from one to
    the next.
    """

    paths: RunnerPaths
    requests: tuple[RunRequest, ...]
    names: tuple[str, ...]

    @property
    def settings(self) -> list[str]:
        """What is swept beside the seed."""
        return [name for name in self.names if name != REPLICATE]


def make_sweep(
    paths: RunnerPaths,
    notebooks: Mapping[str, Notebook],
    profile: str,
    asked: Sequence[str],
    overrides: Overrides,
    sweeps: Sequence[str],
) -> Sweep:
    """The runs of a sweep, all checked before any of them starts. Raises ParameterError."""
    if len(asked) != 1:
        count = len(asked) or "no"
        raise ParameterError(
            "--sweep", f"{count} notebooks are named.", "Name the one notebook to sweep."
        )
    notebook = find_notebook(asked[0], notebooks)
    grid = make_grid(notebook, sweeps)
    names = tuple(grid[0])
    for name, _ in overrides:
        if name in names:
            raise ParameterError(
                f"-p {name}", "is also swept.", "Give it either with -p or with --sweep."
            )
    requests = []
    for point in grid:
        typed = [*overrides, *point.items()]
        (request,) = make_requests(paths, notebooks, profile, asked, typed)
        label = label_of({name: request.values[name] for name in names})
        requests.append(dataclasses.replace(request, label=label, after=()))
    folder = paths.results / "sweeps" / f"{notebook.name}-by-{'-'.join(names)}"
    return Sweep(RunnerPaths(paths.root, folder), tuple(requests), names)


def label_of(values: Mapping[str, object]) -> str:
    """The folder name of a run, e.g. ``learning_rate=0.001,seed=0``; different values never get the
    same one.
    """
    texts = {name: str(value) for name, value in values.items()}
    harmless = {name: re.sub(HARMFUL, "_", text) for name, text in texts.items()}
    label = ",".join(f"{name}={text}" for name, text in harmless.items())
    if len(label) > MOST_LETTERS or harmless != texts:
        label = f"{label[:MOST_LETTERS]}-{sha256_of(values)[:8]}"
    return label


def run_table(sweep: Sweep, fingerprints: Mapping[str, str]) -> pd.DataFrame:
    """One row a run: the swept values, state, headline score with its interval, n and floor, time,
    and every single number of its metrics. A run that is not there, or was made from something
    else, has no numbers."""

    rows = []
    for request in sweep.requests:
        name = request.name
        values = shown(request.notebook.parameters, request.values)
        row = {key: values[key] for key in sweep.names}
        row |= {"state": "not run", "reason": ""}
        good = read_json(sweep.paths.result(name) / "manifest.json")
        bad = read_json(sweep.paths.failed(name) / "manifest.json")
        if good.get("fingerprint") == fingerprints[name] and good.get("state") == "ok":
            row |= {"state": "done"} | {key: good["headline"].get(key) for key in HEADLINE}
            row |= {"wall_time_s": good["wall_time_s"], "report": f"{name}/report.html"}
            metrics = read_json(sweep.paths.result(name) / "metrics.json").get("metrics", {})
            row |= {f"metrics.{key}": value for key, value in single_numbers(metrics).items()}
        elif bad.get("fingerprint") == fingerprints[name]:
            row |= {"state": "failed", "reason": bad.get("reason", "")}
            row["report"] = f"{name}.failed/report.html"
        rows.append(row)
    table = pd.DataFrame(rows)
    needed = [*HEADLINE, "wall_time_s", "report"]
    return table.assign(**{name: None for name in needed if name not in table})


def single_numbers(metrics: dict) -> dict[str, float]:
    """The numbers in nested dictionaries, by their dotted names; lists are left out."""
    return pd.json_normalize(metrics).select_dtypes("number").to_dict("records")[0]


def spread_table(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Per combination of the columns ``by``, the swept values without the seed: mean headline score
    over ``n_runs`` runs, their standard deviation, the 95 % interval of the mean (Student's t), the
    lowest and the highest. With one run there is no spread (NaN)."""
    from statsmodels.stats.weightstats import DescrStatsW

    done = runs[runs["state"] == "done"]
    rows = []
    for values, part in done.groupby(list(by), sort=False) if by else [((), done)]:
        scores = part["value"].to_numpy(float)
        if not len(scores):
            continue
        counts = sorted({int(part["n"].min()), int(part["n"].max())})
        row = {
            **dict(zip(by, values, strict=True)),
            "n_runs": len(scores),
            "mean": scores.mean(),
            "lowest": scores.min(),
            "highest": scores.max(),
            "n_images": " to ".join(map(str, counts)),
            "floor": part["floor"].astype(float).max(),
        }
        if len(scores) > 1:
            row["sd"] = scores.std(ddof=1)
            row["mean_low"], row["mean_high"] = DescrStatsW(scores).tconfint_mean()
        rows.append(row)
    return pd.DataFrame(rows, columns=[*by, *SPREAD])


def write_summary(sweep: Sweep, fingerprints: Mapping[str, str]) -> Path:
    """Write ``index.html``, ``runs.csv`` and ``summary.json`` of a sweep; ``fingerprints`` by the
    names of its runs tell which results are of now. Returns the page's path."""
    from nbhelpers.reports.html import fill_page, safe, style

    paths = sweep.paths
    first = sweep.requests[0]
    notebook = first.notebook
    runs = run_table(sweep, fingerprints)
    spread = spread_table(runs, sweep.settings)
    done = runs[runs["state"] == "done"]
    values = shown(notebook.parameters, first.values)
    fixed = {name: value for name, value in values.items() if name not in sweep.names}
    data = []
    for request in sweep.requests:
        data += read_json(paths.result(request.name) / "manifest.json").get("data", [])
    write_csv(paths.results / "runs.csv", runs)
    summary = {
        "notebook": notebook.name,
        "profile": first.profile,
        "swept": sweep.names,
        "fixed": fixed,
        "score": done["name"].iloc[0] if len(done) else None,
        "runs": runs["state"].value_counts().to_dict(),
        "spread": _records(spread),
    }
    write_json(paths.results / "summary.json", summary)
    page = fill_page(
        "sweep.html.j2",
        **summary,
        title=notebook.about["title"],
        by=sweep.settings,
        rows=_records(runs),
        synthetic=any(item["synthetic"] for item in data),
        picture=safe(picture_of(done, spread, sweep.settings)) if len(done) else None,
        style=style(),
    )
    write_text(paths.index, page)
    return paths.index


def _records(table: pd.DataFrame) -> list[dict]:
    """The rows of a table, with None for what is missing."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def picture_of(done: pd.DataFrame, spread: pd.DataFrame, by: Sequence[str]) -> str:
    """Every run as a dot, per combination its mean as a line, and the floor, as the data address of
    a PNG.
    """
    import base64
    import io

    import seaborn

    from nbhelpers.figures.style import FAINT, INK, PALETTE, new_figure, shortened, use_style

    def setting(row: pd.Series) -> str:
        return ", ".join(f"{name} {row[name]}" for name in by) or "all runs"

    labels = spread.apply(setting, axis=1)
    runs = done.assign(value=done["value"].astype(float), setting=done.apply(setting, axis=1))
    places = spread.index.to_numpy()
    with use_style():
        figure = new_figure(height=min(1.2 + 0.35 * len(spread), 12))
        axes = figure.subplots()
        look = {"jitter": False, "size": 6, "color": PALETTE[0], "alpha": 0.6, "ax": axes}
        seaborn.stripplot(runs, x="value", y="setting", order=labels, **look)
        axes.vlines(spread["mean"], places - 0.3, places + 0.3, color=INK)
        axes.vlines(spread["floor"], places - 0.4, places + 0.4, color=FAINT, linestyle=":")
        axes.set_yticks(places, [shortened(label, 60) for label in labels])
        axes.set(
            ylabel="", xlabel=f"{done['name'].iloc[0]} (dots: runs; line: mean; dotted: floor)"
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
