"""The page of benchmarks/travel.py holds what was measured, whatever came out."""

import importlib.util
import sys
from pathlib import Path

import pytest

from nbhelpers.core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "benchmarks" / "travel.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_travel", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def row(task: str, version: str, **more) -> dict:
    return {"task": task, "version": version, "n": 12, **more}


def test_the_rows_of_a_task_are_replaced_and_others_stay(bench):
    before = bench.merged([], [row("polarity", "old"), row("spines", "turned", accuracy=0.5)])
    assert [one["version"] for one in before] == ["turned", "old"]  # in the order of the tasks
    after = bench.merged(before, [row("polarity", "new", flagged=0.25)])
    assert [one["version"] for one in after] == ["turned", "new"]
    assert after[1]["flagged"] == 0.25 and after[1]["accuracy"] is None


@pytest.mark.parametrize("more", [{"accuracy": 1.5}, {"accuracy": float("nan")}, {"f1": 0.5}])
def test_a_row_that_cannot_be_is_refused(bench, more):
    with pytest.raises(InputError, match="turned"):
        bench.merged([], [row("spines", "turned", **more)])


def test_the_page_shows_every_figure_and_no_column_of_which_nothing_is_known(bench):
    rows = [row("spines", "turned", accuracy=0.12345, before=None), row("polarity", "inverted")]
    text = bench.page(bench.merged([], rows))
    assert "| turned | 12 | 0.123 |" in text and "| inverted | 12 |" in text
    assert "accuracy before" not in text.split("## Spines")[1]


def test_the_page_is_the_one_of_the_kept_figures(bench):
    import json

    rows = json.loads(bench.JSON.read_text(encoding="utf-8"))
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(rows)
