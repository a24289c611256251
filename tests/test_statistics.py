"""Intervals and p-values hold what they say, on the simulations of benchmarks/statistics.py."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nbhelpers.core.predictions import Predictions

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "benchmarks" / "simulated_statistics.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_statistics", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "settings",
    [
        {"groups": 8, "size": 12, "alike": 0.7, "pure": True},  # the bootstrap covered .85
        {"groups": 200, "size": 1, "accuracy": 0.977},  # its AUC .85
        {"groups": 9, "size": 16, "alike": 0.5, "law": "heavy"},
    ],
)
def test_intervals_cover(bench, settings):
    found = bench.coverage(bench.grouped(**settings), 150)
    for name, entry in found["scores"].items():
        assert entry["with_interval"] == 1
        assert entry["coverage"] > (0.8 if name == "log_loss" else 0.9), name


def test_equal_models_are_rarely_called_different_and_better_ones_are_found(bench):
    found = bench.rejections(bench.grouped(8, 30, alike=0.4), 0.5, 150)
    assert max(found["rejected"].values()) <= 0.1 < found["power"]["accuracy"]


def test_a_case_below_its_goal_is_marked(bench):
    row = bench.coverage(bench.grouped(20, 1), 4)
    assert bench.failing(row, 2000) == []
    row["scores"]["auc"]["coverage"] = 0.9
    assert bench.failing(row, 2000) == ["auc"]
    paired = bench.rejections(bench.grouped(20, 1), 0.0, 2)
    found = {"simulations": 2000, "coverage": {"title": [row]}, "paired": [paired]}
    assert "0.900*" in bench.page(found)
    assert bench.summary(found)["coverage"]["title"]["below_goal"] == 1


def test_other_benchmarks_still_find_pythons_own_module_of_the_name():
    code = "import sys; sys.path.insert(0, 'benchmarks'); import statistics; statistics.mean([1])"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_groups_of_a_table_of_predictions_are_drawn_anew(bench, tmp_path):
    labels = ["a", "b"] * 30
    p = np.where(np.random.default_rng(0).random(60) < 0.8, 0.9, 0.1)
    first = np.where(np.array(labels) == "a", p, 1 - p)
    table = Predictions.build(
        ids=[f"i{number}" for number in range(60)],
        labels=labels,
        groups=[f"g{number // 6}" for number in range(60)],
        probabilities=np.stack([first, 1 - first], axis=1),
        classes=("a", "b"),
    )
    table.save(tmp_path / "predictions.csv")
    row = bench.resampled_table("mine", tmp_path / "predictions.csv", 8, 20)
    assert row["name"] == "mine: 8 of its 10 groups, drawn anew"
    assert row["scores"]["accuracy"]["truth"] == np.mean(p == 0.9)
    assert row["scores"]["accuracy"]["coverage"] > 0.8


def test_some_cases_can_be_simulated_anew(bench):
    old = {"simulations": 2, "coverage": {"a": [{"name": "x"}, {"name": "y"}]}, "paired": []}
    new = {"simulations": 2, "coverage": {"a": [{"name": "y", "new": 1}]}, "paired": []}
    assert bench.joined(old, {**new, "coverage": {"b": [{"name": "z"}]}})["coverage"].keys() == {
        "a",
        "b",
    }
    assert bench.joined(old, new)["coverage"]["a"] == [{"name": "x"}, {"name": "y", "new": 1}]
    with pytest.raises(SystemExit, match="2 simulations"):
        bench.joined(old, {**new, "simulations": 3})
