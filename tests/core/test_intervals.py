"""Intervals: which method when, and what is said where there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    bootstrap_interval,
    group_weights,
    proportion_interval,
    wilson,
)


@pytest.mark.parametrize(
    ("three", "text"),
    [
        ((0.91, 0.87, 0.94), "0.910 [0.870, 0.940]"),
        ((0.91, None, None), "0.910"),
        ((1, np.nan, np.nan), "1.000"),
        ((None, None, None), "n/a"),
        ((np.nan, 0.1, 0.2), "n/a"),
        ((-0.0001, -0.35, 0.5), "0.000 [-0.350, 0.500]"),
    ],
)
def test_a_score_reads_with_its_interval(three, text):
    assert Estimate(*three).text() == text
    assert Estimate(0.123, 0.1, 0.2).text(1) == "0.1 [0.1, 0.2]"
    assert Estimate(0.12, -0.1, 0.2).text(2, "+") == "+0.12 [-0.10, +0.20]"


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 30),
    resamples=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 50),
)
def test_weights_draw_as_many_groups_as_there_are_whatever_the_pieces(
    groups, resamples, seed, rows
):
    pieces = np.concatenate(list(group_weights(groups, resamples, seed, rows)))
    assert pieces.shape == (resamples, groups)
    assert (pieces.sum(axis=1) == groups).all()
    assert np.array_equal(pieces, np.concatenate(list(group_weights(groups, resamples, seed))))


def test_weights_are_fair():
    mean = np.concatenate(list(group_weights(5, 4000, 1))).mean(axis=0)
    assert mean == pytest.approx(np.ones(5), abs=0.07)


def proportion(hits, sizes, samples=None):
    hits = np.asarray(hits, float)
    sizes = np.asarray(sizes, float)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(hits), np.full(len(hits), 1 / len(hits)), 500)
    samples = (weights @ hits) / (weights @ sizes) if samples is None else samples
    return proportion_interval(
        hits.sum() / sizes.sum(), samples, n=int(sizes.sum()), group_hits=hits, group_sizes=sizes
    )


def test_many_groups_use_the_bootstrap():
    found = proportion([1, 0] * 20 + [1] * 40, [1] * 80)
    assert found.method == "bootstrap over groups" and found.low < 0.75 < found.high


@pytest.mark.parametrize("value", [0, 1])
def test_at_zero_and_one_wilson_takes_over(value):
    found = proportion([value] * 40, [1] * 40)
    low, high = proportion_confint(40 * value, 40, method="wilson")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.method == "Wilson over 40 images"


def test_few_groups_that_differ_count_as_fewer_images():
    alike = proportion([8, 8, 8, 8], [10] * 4)
    differing = proportion([10, 10, 10, 2], [10] * 4)
    assert alike.value == differing.value and "design effect 1.0" in alike.method
    assert (alike.low, alike.high) == pytest.approx(proportion_confint(32, 40, method="wilson"))
    assert differing.high - differing.low > 1.5 * (alike.high - alike.low)


@pytest.mark.parametrize("groups", [3, 7, 8, 10])
def test_groups_all_right_count_as_groups(groups):
    """A hundred cubes of ten neurons are no hundred independent tries, and nothing tells how many
    they are.
    """
    found = proportion([10] * groups, [10] * groups)
    assert found.method == f"Wilson over {groups} groups"
    assert found.low == pytest.approx(proportion_confint(groups, groups, method="wilson")[0])


def test_one_group_has_no_interval_but_a_reason():
    found = proportion([7], [10])
    assert found.value == 0.7 and found.low is None and "one group" in found.reason


def test_scores_that_do_not_vary_have_no_interval_but_a_reason():
    found = bootstrap_interval(1.0, np.ones(100), n=20, n_groups=20)
    assert found.low is None and "same value" in found.reason


def test_undefined_resamples_are_left_out_and_counted():
    samples = np.concatenate([np.linspace(0, 1, 90), np.full(10, np.nan)])
    found = bootstrap_interval(0.5, samples, n=20, n_groups=20)
    assert found.low == pytest.approx(0.025) and "90 of 100" in found.method
    mostly = np.concatenate([np.linspace(0, 1, 40), np.full(60, np.nan)])
    assert "40 of 100" in bootstrap_interval(0.5, mostly, n=20, n_groups=20).reason


def test_few_groups_are_warned_of():
    samples = np.linspace(0, 1, 100)
    assert "5 groups" in bootstrap_interval(0.5, samples, n=50, n_groups=5).note
    assert bootstrap_interval(0.5, samples, n=50, n_groups=8).note is None


def test_reflection_turns_an_upward_bias_round():
    found = bootstrap_interval(
        0.05, np.linspace(0.05, 0.11, 100), n=20, n_groups=20, reflect=True, lowest=0
    )
    assert found.low == 0 and "reflected" in found.method
    assert found.high == 0.05  # mirrored it would end below its own value, which nobody could read


def test_a_value_that_is_no_number_is_undefined():
    assert bootstrap_interval(np.nan, np.ones(3), n=4, n_groups=4).value is None


def test_wilson_is_the_textbook_value():
    assert wilson(87, 92) == pytest.approx(
        (0.879, 0.977), abs=0.0007
    )  # the published TinyCNN: 87 of 92


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_interval_holds_its_value_however_many_groups_are_all_right_or_all_wrong(value):
    for groups in range(2, 60):
        sizes = np.full(groups, 10.0)
        found = proportion_interval(
            value, np.full(50, value), n=10 * groups, group_hits=value * sizes, group_sizes=sizes
        )
        assert found.low <= value <= found.high and found.high - found.low > 0.01
