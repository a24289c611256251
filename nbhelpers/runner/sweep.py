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
from typing import TYPE_CHECKING

from nbhelpers.core.errors import ParameterError
from nbhelpers.core.files import sha256_of, write_json, write_text
from nbhelpers.reports.notebooks import Notebook, find_notebook
from nbhelpers.reports.parameters import Parameter, nearest, parse_text, shown
from nbhelpers.reports.paths import Paths, read_json
from nbhelpers.runner.plan import RunRequest, make_requests

if TYPE_CHECKING:
    import pandas as pd

REPLICATE = "seed"  # runs that differ in this alone are repeats of each other
MOST_RUNS = 1000
MOST_LETTERS = 120  # of a folder's name


def split_values(parameter: Parameter, text: str) -> list[str]:
    """The values of one ``--sweep NAME=VALUES``, each as typed: ``1e-3,3e-4``, or ``0:5`` for 0, 1,
    2, 3, 4.

    A value of a list parameter is itself written with commas, so there ``;`` stands between values.
    """
    span = re.fullmatch(r"\s*(-?\d+):(-?\d+)\s*", text)
    if parameter.type is int and not parameter.many and span:
        first = int(span[1])
        beyond = int(span[2])
        if beyond <= first:
            raise ParameterError(
                f"--sweep {parameter.name}={text}",
                "the range is empty.",
                "0:5 means 0, 1, 2, 3 and 4.",
            )
        if beyond - first > MOST_RUNS:
            raise ParameterError(
                f"--sweep {parameter.name}={text}", f"is more than {MOST_RUNS} values."
            )
        return [str(value) for value in range(first, beyond)]
    return [value.strip() for value in text.split(";" if parameter.many else ",")]


def make_grid(notebook: Notebook, sweeps: Iterable[str]) -> list[dict[str, str]]:
    """Every combination of the swept values, as typed; the last parameter changes fastest.

    Raises ParameterError for a parameter the notebook lacks, a value that does not fit, one given
    twice, and a grid of more than 1000 runs.
    """
    axes: dict[str, list[str]] = {}
    for sweep in sweeps:
        name, equals, text = sweep.partition("=")
        name = name.strip()
        if not equals:
            raise ParameterError(
                f"--sweep {sweep}", "has no values.", "Write for example: --sweep seed=0:5."
            )
        if name not in notebook.parameters:
            raise ParameterError(
                f"--sweep {sweep}",
                f"notebook {notebook.name} has no parameter {name}.",
                nearest(name, notebook.parameters),
            )
        if name in axes:
            raise ParameterError(
                f"--sweep {sweep}", f"{name} is swept twice.", "Give all its values in one --sweep."
            )
        parameter = notebook.parameters[name]
        axes[name] = split_values(parameter, text)
        values = [parse_text(parameter, value, f"--sweep {sweep}") for value in axes[name]]
        for place, value in enumerate(values):
            if value in values[:place]:
                raise ParameterError(f"--sweep {sweep}", f"{value!r} stands there twice.")
    grid = [
        dict(zip(axes, values, strict=True))
        for values in itertools.islice(itertools.product(*axes.values()), MOST_RUNS + 1)
    ]
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

    places: Paths
    orders: tuple[RunRequest, ...]
    names: tuple[str, ...]

    @property
    def notebook(self) -> Notebook:
        return self.orders[0].notebook

    @property
    def settings(self) -> list[str]:
        """What is swept beside the seed."""
        return [name for name in self.names if name != REPLICATE]


def make_sweep(
    places: Paths,
    notebooks: Mapping[str, Notebook],
    profile: str,
    asked: Sequence[str],
    overrides: Sequence[tuple[str, str]],
    sweeps: Sequence[str],
) -> Sweep:
    """The runs of a sweep, all checked before any of them starts. Raises ParameterError."""
    if len(asked) != 1:
        raise ParameterError(
            "--sweep",
            f"{len(asked) or 'no'} notebooks are named.",
            "Name the one notebook to sweep.",
        )
    notebook = find_notebook(asked[0], dict(notebooks))
    grid = make_grid(notebook, sweeps)
    for name, _ in overrides:
        if name in grid[0]:
            raise ParameterError(
                f"-p {name}", "is also swept.", "Give it either with -p or with --sweep."
            )
    orders = []
    for point in grid:
        (order,) = make_requests(
            places, dict(notebooks), profile, asked, [*overrides, *point.items()]
        )
        label = label_of({name: order.values[name] for name in point})
        orders.append(dataclasses.replace(order, label=label, after=()))
    folder = f"{notebook.name}-by-{'-'.join(grid[0])}"
    return Sweep(
        Paths(places.root, places.results / "sweeps" / folder), tuple(orders), tuple(grid[0])
    )


def label_of(values: Mapping[str, object]) -> str:
    """The folder name of a run, e.g. ``learning_rate=0.001,seed=0``; unlike values never get the
    same one.
    """
    texts = {
        name: "+".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in values.items()
    }
    label = ",".join(
        f"{name}={re.sub(r'[^A-Za-z0-9_.-]', '_', text)}" for name, text in texts.items()
    )
    if len(label) > MOST_LETTERS or not all(
        re.fullmatch(r"[A-Za-z0-9_.-]*", text) for text in texts.values()
    ):
        label = f"{label[:MOST_LETTERS]}-{sha256_of(values)[:8]}"
    return label


def run_table(sweep: Sweep, fingerprints: Mapping[str, str]) -> pd.DataFrame:
    """One row a run: the swept values, state, headline score with its interval, n and floor, time,
    and every single number of its metrics. A run that is not there, or was made from something
    else, has no numbers."""
    import pandas as pd

    places = sweep.places
    rows = []
    for order in sweep.orders:
        values = shown(
            order.notebook.parameters, {name: order.values[name] for name in sweep.names}
        )
        row = {
            name: ", ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in values.items()
        }
        good, bad = (
            read_json(folder / "manifest.json")
            for folder in (places.result(order.name), places.failed(order.name))
        )
        if good.get("fingerprint") == fingerprints[order.name] and good.get("state") == "ok":
            headline = good["headline"]
            row |= {"state": "done", "reason": "", **{key: headline[key] for key in headline}}
            row |= {"wall_time_s": good["wall_time_s"], "report": f"{order.name}/report.html"}
            metrics = read_json(places.result(order.name) / "metrics.json").get("metrics", {})
            row |= {f"metrics.{name}": value for name, value in single_numbers(metrics)}
        elif bad.get("fingerprint") == fingerprints[order.name]:
            row |= {
                "state": "failed",
                "reason": bad.get("reason", ""),
                "report": f"{order.name}.failed/report.html",
            }
        else:
            row |= {"state": "not run", "reason": ""}
        rows.append(row)
    needed = ("name", "value", "low", "high", "n", "floor_name", "floor", "wall_time_s", "report")
    table = pd.DataFrame(rows)
    return table.assign(**{name: None for name in needed if name not in table})


def single_numbers(metrics: object, prefix: str = "") -> Iterable[tuple[str, float]]:
    """The numbers in nested dictionaries, by their dotted names; lists are left out."""
    if isinstance(metrics, dict):
        for name, value in metrics.items():
            yield from single_numbers(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(metrics, int | float) and not isinstance(metrics, bool):
        yield prefix, metrics


def spread_table(runs: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Per combination of the columns ``by``, the swept values without the seed: mean headline score
    over ``n_runs`` runs, their standard deviation, the 95 % interval of the mean (Student's t), the
    lowest and the highest. With one run there is no spread (NaN)."""
    import numpy as np
    import pandas as pd
    from statsmodels.stats.weightstats import DescrStatsW

    done = runs[runs["state"] == "done"]
    rows = []
    for values, part in done.groupby(list(by), sort=False) if by else [((), done)]:
        scores = part["value"].to_numpy(float)
        if not len(scores):
            continue
        several = len(scores) > 1
        low, high = DescrStatsW(scores).tconfint_mean() if several else (np.nan, np.nan)
        rows.append(
            dict(zip(by, values, strict=True))
            | {
                "n_runs": len(scores),
                "mean": scores.mean(),
                "sd": scores.std(ddof=1) if several else np.nan,
                "mean_low": low,
                "mean_high": high,
                "lowest": scores.min(),
                "highest": scores.max(),
                "n_images": _one_or_span(part["n"]),
                "floor": part["floor"].astype(float).max(),
            }
        )
    columns = [
        *by,
        "n_runs",
        "mean",
        "sd",
        "mean_low",
        "mean_high",
        "lowest",
        "highest",
        "n_images",
        "floor",
    ]
    return pd.DataFrame(rows, columns=columns)


def _one_or_span(counts: pd.Series) -> str:
    low = int(counts.min())
    high = int(counts.max())
    return str(low) if low == high else f"{low} to {high}"


def write_summary(sweep: Sweep, fingerprints: Mapping[str, str]) -> Path:
    """Write ``index.html``, ``runs.csv`` and ``summary.json`` of a sweep; ``fingerprints`` by the
    names of its runs tell which results are of now. Returns the page's path."""
    from nbhelpers.reports.html import fill_page, safe, style

    places = sweep.places
    names = sweep.names
    notebook = sweep.notebook
    first = sweep.orders[0]
    runs = run_table(sweep, fingerprints)
    spread = spread_table(runs, sweep.settings)
    done = runs[runs["state"] == "done"]
    fixed = {
        name: value
        for name, value in shown(notebook.parameters, first.values).items()
        if name not in names
    }
    synthetic = any(
        item["synthetic"]
        for order in sweep.orders
        for item in read_json(places.result(order.name) / "manifest.json").get("data", [])
    )
    write_text(places.results / "runs.csv", runs.to_csv(index=False))
    write_json(
        places.results / "summary.json",
        {
            "notebook": notebook.name,
            "profile": first.profile,
            "swept": names,
            "fixed": fixed,
            "score": done["name"].iloc[0] if len(done) else None,
            "runs": runs["state"].value_counts().to_dict(),
            "spread": spread.to_dict("records"),
        },
    )
    write_text(
        places.index,
        fill_page(
            "sweep.html.j2",
            title=f"Sweep of {notebook.about['title']}",
            style=style(),
            names=names,
            by=sweep.settings,
            fixed=fixed,
            synthetic=synthetic,
            score=done["name"].iloc[0] if len(done) else "score",
            n_done=len(done),
            n_all=len(runs),
            repeats=int(spread["n_runs"].max()) if len(spread) else 0,
            runs=runs.astype(object).where(runs.notna(), None).to_dict("records"),
            spread=spread.astype(object).where(spread.notna(), None).to_dict("records"),
            picture=safe(picture_of(runs, spread, sweep.settings)) if len(done) else None,
        ),
    )
    return places.index


def picture_of(runs: pd.DataFrame, spread: pd.DataFrame, by: Sequence[str]) -> str:
    """Every run as a dot, per combination its mean as a line, and the floor, as the data address of
    a PNG.
    """
    import base64
    import io

    from nbhelpers.figures.style import FAINT, INK, PALETTE, new_figure, shortened, use_style

    by = list(by)
    done = runs[runs["state"] == "done"]
    with use_style():
        figure = new_figure(height=min(1.2 + 0.35 * len(spread), 12))
        axes = figure.subplots()
        for place, row in enumerate(spread.to_dict("records")):
            same = done[(done[by] == [row[name] for name in by]).all(axis=1)] if by else done
            axes.plot(
                same["value"].astype(float), [place] * len(same), "o", color=PALETTE[0], alpha=0.6
            )
            axes.plot([row["mean"]] * 2, [place - 0.3, place + 0.3], color=INK)
            axes.plot([row["floor"]] * 2, [place - 0.4, place + 0.4], color=FAINT, linestyle=":")
        axes.set_yticks(
            range(len(spread)),
            [
                shortened(", ".join(f"{name} {row[name]}" for name in by) or "all runs", 60)
                for row in spread.to_dict("records")
            ],
        )
        axes.set(
            ylim=(len(spread) - 0.4, -0.6),
            xlabel=f"{done['name'].iloc[0]} (dots: runs; line: mean; dotted: floor)",
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
