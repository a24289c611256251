"""Corrected shares: right where the error rates hold, with intervals that hold the truth."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from nbhelpers.answer import shares
from nbhelpers.core.predictions import Predictions

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench():
    path = ROOT / "benchmarks" / "answer.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_answers", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Part(NamedTuple):
    sign: int
    shares: np.ndarray
    images: np.ndarray


class Corrected(NamedTuple):
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray


def corrected(parts, counts):
    return Corrected(*shares.corrected(parts, counts))


def exact(true, images=1000.0):
    true = np.asarray(true, float)
    return Part(1, true, np.full(len(true), images))


def groups_of(rates, groups=10, size=3000):
    """Every group of validation images has exactly these error rates."""
    return np.tile(np.asarray(rates, float) * size, (groups, 1, 1))


@settings(max_examples=60, deadline=None)
@given(
    some.lists(some.floats(0.02, 0.98), min_size=3, max_size=8),
    some.floats(0.6, 1),
    some.floats(0.6, 1),
)
def test_counts_made_with_the_error_rates_are_turned_back(true, first, second):
    rates = np.array([[first, 1 - first], [1 - second, second]])
    true = np.array([true, 1 - np.array(true)]).T
    found = corrected([exact(true @ rates)], groups_of(rates))
    np.testing.assert_allclose(found.value, true.mean(0), atol=1e-6)
    assert (found.low <= found.value).all() and (found.value <= found.high).all()


def test_a_rise_that_is_counted_too_small_is_found_whole():
    rates = np.array([[0.976, 0.024], [0.31, 0.69]])
    noise = np.array([[0.01], [-0.01], [0.0], [0.005], [-0.005]]) * np.array([1, -1])
    before = exact(np.array([0.88, 0.12]) @ rates + noise)
    after = exact(np.array([0.76, 0.24]) @ rates + noise)
    assert (after.shares - before.shares).mean(0)[1] == pytest.approx(0.08, abs=0.001)
    found = corrected([after, before._replace(sign=-1)], groups_of(rates))
    assert found.value[1] == pytest.approx(0.12)
    assert found.low[1] > 0 and found.p[1] < 0.001


def random_case(seed, classes):
    rng = np.random.default_rng(seed)
    drawn = rng.dirichlet(np.ones(classes), (2, 5))
    counts = rng.poisson(3 + 30 * np.eye(classes), (8, classes, classes)).astype(float)
    images = rng.integers(10, 90, (2, 5)).astype(float)
    return [Part(1, *both) for both in zip(drawn, images, strict=True)], counts


@settings(max_examples=40, deadline=None)
@given(some.integers(0, 10**6), some.integers(2, 4))
def test_conditions_turned_round_give_the_difference_turned_round(seed, classes):
    (first, second), counts = random_case(seed, classes)
    one = corrected([second, first._replace(sign=-1)], counts)
    other = corrected([first, second._replace(sign=-1)], counts)
    np.testing.assert_allclose(one.value, -other.value, atol=1e-12)
    np.testing.assert_allclose(one.low, -other.high, atol=1e-12)
    np.testing.assert_allclose(one.p, other.p)
    # p and interval say the same
    np.testing.assert_array_equal(one.p < 0.05, (one.low > 0) | (one.high < 0))
    np.testing.assert_allclose(one.value.sum(), 0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(some.integers(0, 10**6), some.integers(2, 4))
def test_the_order_of_units_groups_and_classes_does_not_matter(seed, classes):
    (part, _), counts = random_case(seed, classes)
    order = np.random.default_rng(seed).permutation(classes)
    turned = Part(1, part.shares[::-1][:, order], part.images[::-1])
    one = corrected([part], counts)
    other = corrected([turned], counts[::-1][:, order][:, :, order])
    for mine, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(mine[order], theirs, rtol=1e-6, atol=1e-9)


def test_experiments_beside_each_other_are_as_each_alone():
    cases = [random_case(seed, 3) for seed in range(4)]
    both = [
        Part(1, *(np.stack([case[0][at][field] for case in cases]) for field in (1, 2)))
        for at in (0, 1)
    ]
    together = corrected(
        [both[1], both[0]._replace(sign=-1)], np.stack([case[1] for case in cases])
    )
    for number, ((first, second), counts) in enumerate(cases):
        alone = corrected([second, first._replace(sign=-1)], counts)
        np.testing.assert_allclose([one[number] for one in together], alone)


def test_unlike_groups_of_validation_images_widen_the_interval():
    part = exact([[0.7, 0.3]] * 60)
    even = groups_of([[0.9, 0.1], [0.2, 0.8]], size=20)
    uneven = even.copy()
    uneven[:5, 1] = [0, 20]
    uneven[5:, 1] = [8, 12]
    widths = [
        (found.high - found.low)[1] for found in (corrected([part], c) for c in (even, uneven))
    ]
    assert widths[1] > 1.1 * widths[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"units": 4, "images": 60, "accuracy": 0.98, "share": 0.05, "effect": 0, "alike": 0.1},
        {"units": 3, "images": 20, "accuracy": 0.7, "share": 0.0, "effect": 0.2, "alike": 0.0},
        {"units": 8, "images": 60, "accuracy": 0.85, "share": 0.1, "effect": 0.1, "alike": 0.05}
        | {"classes": 3, "law": "logit", "uneven": 0.5},
    ],
)
def test_intervals_cover(bench, settings):
    found = bench.simulated(bench.Case(**settings), 300)
    for what in ("share", "difference"):
        cell = found[f"{what}, corrected"]
        assert cell["coverage"] > 0.9
        assert abs(cell["bias"]) < 0.01 + 3 * cell["error"]
        assert found[f"{what}, counted"]["coverage"] <= cell["coverage"]


def test_without_a_difference_few_are_found_and_single_images_mislead(bench):
    found = bench.simulated(bench.Case(6, 200, 0.85, 0.2, 0, 0.1), 300)
    assert found["difference, corrected"]["found"] < 0.1 < found["found on single images"]


def test_a_case_below_its_goal_is_listed(bench):
    rows = [bench.simulated(bench.Case(4, 20, 0.9, 0.1, effect, 0.02), 40) for effect in (0, 0.2)]
    rows[0]["share, corrected"]["coverage"] = 0.8
    text = bench.page({"simulations": 2000, "sets": {"title": rows}})
    assert "| share | 4 | 20 | 0.9 | 0.1 | 0 | 0.02 | 2 | beta | 0.800 |" in text
    assert bench.summary(rows, 2000)["share, below"] == 1


def test_what_is_published_holds_its_goals_where_the_method_was_chosen(bench):
    found = json.loads((ROOT / "docs" / "answer.json").read_text())
    page = (ROOT / "docs" / "answer.md").read_text()
    for part in found["sets"].values():
        assert len(part["cases"]) == part["summary"]["cases"]
        for what in ("share", "difference"):
            cell = part["summary"][f"{what}, corrected"]
            assert f"{cell['mean']:.3f} | {cell['least']:.3f}" in page
    held = found["sets"][bench.CHOSEN_ON]["summary"]
    for what in ("share", "difference"):
        assert held[f"{what}, corrected"]["least"] >= bench.GOAL
        assert held[f"{what}, corrected"]["mean"] <= bench.MOST
        assert held[f"{what}, corrected"]["bias"] <= bench.BIAS
    assert held["alarms, corrected"]["most"] <= bench.ALARMS


def test_pseudo_animals_are_mixed_from_a_table_of_predictions(bench, tmp_path):
    rng = np.random.default_rng(3)
    labels = np.where(np.arange(400) % 4 > 0, "a", "b")
    right = rng.random(400) < 0.85
    first = np.where((labels == "a") == right, 0.9, 0.1)
    table = Predictions.build(
        ids=[f"i{number}" for number in range(400)],
        labels=list(labels),
        groups=[f"g{number // 10}" for number in range(400)],
        probabilities=np.stack([first, 1 - first], axis=1),
        classes=("a", "b"),
    )
    table.save(tmp_path / "predictions.csv")
    rows = bench.mixed("mine", tmp_path / "predictions.csv", 200)
    assert [(row["class"], row["effect"]) for row in rows][-1] == ("b", 0.1)
    for row in rows:
        assert row["share, corrected"] > 0.9 and row["difference, corrected"] > 0.9
        assert row["mean difference, corrected"] == pytest.approx(row["effect"], abs=0.02)
