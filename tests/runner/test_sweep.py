"""Sweeps on a toy notebook: the grid is checked before anything runs, run once, and summed up with
spread and n.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.reports.notebooks import all_notebooks
from nbhelpers.reports.parameters import Parameter
from nbhelpers.runner import command_line as cli
from nbhelpers.runner.places import RunnerPaths
from nbhelpers.runner.sweep import (
    label_of,
    make_grid,
    run_table,
    single_numbers,
    split_values,
    spread_table,
)

PARAMETERS = """\
steps = 3          # 1..1000: steps to take
rate = 0.5         # 0..1: size of a step
kind = "plain"     # plain | fancy: how to walk
seed = 0           # 0..99: start of all chance
"""
FINISH = """\
score = 0.5 + rate / 10 + seed / 100
assert not (rate > 0.8 and seed == 1), "too steep"
run.set_result("Accuracy", Estimate(score, score - 0.05, score + 0.05, 120))
run.add_floor("majority class", Estimate(0.4))
run.finish({"total": total, "nested": {"steps": steps}, "list": [1, 2]})
"""


@pytest.fixture
def checkout(make_checkout, toy):
    made = make_checkout()
    made.add("01_toy", toy.cells("01_toy", parameters=PARAMETERS, finish=FINISH))
    return made


@pytest.fixture
def notebook(checkout):
    return all_notebooks(RunnerPaths(checkout.root))["01_toy"]


def test_a_grid_is_every_combination(notebook):
    grid = make_grid(notebook, ["rate=1e-3,3e-4", "seed=0:3"])
    assert grid == [
        {"rate": rate, "seed": seed} for rate in ("1e-3", "3e-4") for seed in ("0", "1", "2")
    ]
    assert make_grid(notebook, ["kind=plain,fancy"]) == [{"kind": "plain"}, {"kind": "fancy"}]


@given(first=st.integers(-50, 50), count=st.integers(1, 40))
def test_a_range_is_pythons(first, count):
    parameter = Parameter("seed", 0, int, "why")
    assert [int(value) for value in split_values(parameter, f"{first}:{first + count}")] == list(
        range(first, first + count)
    )


@pytest.mark.parametrize(
    ("sweeps", "words"),
    [
        (["seed"], "has no values"),
        (["sed=0:2"], "Did you mean seed"),
        (["seed=5:5"], "range is empty"),
        (["seed=0,0"], "twice"),
        (["rate=1e-1,0.1"], "twice"),
        (["seed=0,1", "seed=2"], "swept twice"),
        (["seed=a"], "not a whole number"),
        (["rate=0.1,2"], "outside its range"),
        (["kind=fency"], "Did you mean fancy"),
        (["rate=0:2"], "not a number"),
        (["seed=0:5000"], "more than 1000"),
        (["rate="], "not a number"),
        (["steps=1:200", "seed=0:10"], "more than 1000 runs"),
        (["seed=0:200"], "outside its range"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(
    checkout, monkeypatch, capsys, sweeps, words
):
    monkeypatch.setenv("NBHELPERS_ROOT", str(checkout.root))
    assert cli.main(["toy", *(word for sweep in sweeps for word in ("--sweep", sweep))]) == 2
    assert words in capsys.readouterr().err
    assert not checkout.results.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sweep", "seed=0:2"], "no notebooks are named"),
        (["toy", "01", "--sweep", "seed=0:2"], "2 notebooks"),
        (["toy", "-p", "seed", "3", "--sweep", "seed=0:2"], "also swept"),
        (["toy", "--sweep", "seed=0:2", "--verify"], "cannot go together"),
    ],
)
def test_what_cannot_go_with_a_sweep_is_refused(checkout, monkeypatch, capsys, arguments, words):
    monkeypatch.setenv("NBHELPERS_ROOT", str(checkout.root))
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


values = st.tuples(
    st.text("ab,=/. é", max_size=4),
    st.text("b=,a", max_size=3),
    st.lists(st.integers(0, 9), max_size=2),
)


@given(one=values, other=values, long=st.booleans())
def test_unlike_runs_get_unlike_folders_with_harmless_names(one, other, long):
    one, other = (
        dict(zip(("first", "second", "x" * (130 if long else 1)), item, strict=True))
        for item in (one, other)
    )
    assert (label_of(one) == label_of(other)) == (one == other)
    assert set(label_of(one)) <= set(
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_=,.+-"
    )
    assert len(label_of(one)) <= 140


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_mean_and_spread_are_those_of_the_runs(scores):
    from scipy import stats

    runs = pd.DataFrame({"state": "done", "rate": 0.1, "value": scores, "n": 9, "floor": 0.2})
    (row,) = spread_table(runs, ["rate"]).to_dict("records")
    assert row["mean"] == pytest.approx(np.mean(scores)) and row["sd"] == pytest.approx(
        np.std(scores, ddof=1)
    )
    assert (
        row["n_runs"] == len(scores)
        and row["lowest"] == min(scores)
        and row["highest"] == max(scores)
    )
    if row["sd"] > 1e-9:
        half = stats.t.ppf(0.975, len(scores) - 1) * row["sd"] / np.sqrt(len(scores))
        assert row["mean_high"] - row["mean"] == pytest.approx(half)


def test_one_run_has_no_spread():
    runs = pd.DataFrame(
        {"state": ["done", "failed"], "value": [0.5, None], "n": [9, None], "floor": [0.2, None]}
    )
    (row,) = spread_table(runs, []).to_dict("records")
    assert (
        row["n_runs"] == 1
        and np.isnan(row["sd"])
        and np.isnan(row["mean_low"])
        and row["n_images"] == "9"
    )


def test_single_numbers_have_dotted_names():
    assert single_numbers({"a": 1, "b": {"c": 0.5, "d": [1], "e": True}, "f": "x"}) == {
        "a": 1,
        "b.c": 0.5,
    }


@pytest.mark.slow
def test_a_sweep_runs_sums_up_goes_on_and_ends_at_once(checkout):
    arguments = ("toy", "--cores", "4", "--sweep", "rate=0.5,0.9", "--sweep")
    first = checkout.run(*arguments, "seed=0:2")
    assert first.returncode == 1, first.stdout + first.stderr  # one of the four fails
    folder = checkout.results / "sweeps" / "01_toy-by-rate-seed"
    page = (folder / "index.html").read_text()
    assert (
        "3 of 4 runs done" in page
        and "too steep" in page
        and "rate%3D0.5%2Cseed%3D0/report.html" in page
    )
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["runs"] == {"done": 3, "failed": 1} and summary["swept"] == ["rate", "seed"]
    five, nine = summary["spread"]
    assert (five["rate"], five["n_runs"], nine["n_runs"]) == (0.5, 2, 1)
    assert five["mean"] == pytest.approx(0.555) and five["sd"] == pytest.approx(0.01 / 2**0.5)
    assert nine["sd"] is None and five["n_images"] == "120"
    runs = pd.read_csv(folder / "runs.csv")
    assert (
        list(runs["state"]) == ["done", "done", "done", "failed"]
        and runs["metrics.nested.steps"][0] == 3
    )
    report = json.loads((folder / "rate=0.9,seed=0" / "manifest.json").read_text())
    assert report["notebook"] == "01_toy" and report["parameters"]["rate"] == 0.9
    assert (folder / "rate=0.9,seed=0" / "01_toy.ipynb").exists() and not (
        checkout.results / "01_toy"
    ).exists()

    again = checkout.run(*arguments, "seed=0:2")  # only what failed
    assert again.stdout.count("up to date") == 3 and again.returncode == 1
    other = checkout.run(*arguments, "seed=0,2")
    assert other.returncode == 0, other.stdout + other.stderr
    assert other.stdout.count("up to date") == 2 and other.stdout.count(" done ") == 2
    last = checkout.run(*arguments, "seed=0,2")
    assert last.returncode == 0 and "Nothing is out of date." in last.stdout
    assert "4 of 4 runs done" in (folder / "index.html").read_text()


def test_a_result_of_other_code_is_not_summed_up(checkout, notebook):
    from nbhelpers.runner.sweep import make_sweep

    paths = RunnerPaths(checkout.root)
    sweep = make_sweep(paths, {"01_toy": notebook}, "demo", ["toy"], [], ["seed=0:2"])
    folder = sweep.paths.result("seed=0")
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"fingerprint": "old", "state": "ok"}))
    table = run_table(sweep, {"seed=0": "new", "seed=1": "new"})
    assert list(table["state"]) == ["not run", "not run"]
