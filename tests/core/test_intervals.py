"""Intervals: they hold what they say, never jump or collapse, and say why where there is none."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.core.estimate import Estimate
from nbhelpers.core.intervals import (
    Sampling,
    difference_interval,
    grouped_share,
    log_loss_interval,
    share_interval,
    strata_of,
)
from nbhelpers.core.means import count_interval, mean_interval


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


def share(hits, size):
    """``hits`` right of ``size`` images in each group."""
    hits = np.asarray(hits, float)
    return grouped_share(hits, np.full(len(hits), float(size)), int(len(hits) * size))


def test_independent_images_have_the_textbook_interval():
    from statsmodels.stats.proportion import proportion_confint

    wanted = proportion_confint(87, 92, method="agresti_coull")
    assert share_interval(87 / 92, 92) == pytest.approx(wanted)
    alone = grouped_share(np.repeat([1.0, 0.0], [87, 5]), np.ones(92), 92)
    counted = count_interval(87, 92)
    assert (alone.low, alone.high) == pytest.approx(wanted) == (counted.low, counted.high)
    assert alone.n_effective is None and alone.note is None


def test_groups_that_differ_count_as_fewer_images():
    alike = share([8] * 10, 10)
    differing = share([10] * 6 + [5] * 4, 10)
    assert alike.value == differing.value
    assert differing.high - differing.low > 1.4 * (alike.high - alike.low)
    assert differing.n_effective < 0.6 * alike.n_effective <= 100


def test_the_interval_of_the_demo_does_not_jump_at_1():
    """24 neurons of 8 synapses: 192 right gave [.862, 1], 191 gave [.984, 1]."""
    all_right = share([8] * 24, 8)
    one_wrong = share([8] * 23 + [7], 8)
    assert all_right.low - one_wrong.low == pytest.approx(0, abs=0.01)
    assert 0.9 < one_wrong.low < all_right.low < 1 == all_right.high


@settings(max_examples=200, deadline=None)
@given(data=st.data(), groups=st.integers(3, 24), size=st.integers(1, 20))
def test_one_more_right_answer_never_lowers_the_lower_end_by_much(data, groups, size):
    hits = data.draw(st.lists(st.integers(0, size), min_size=groups, max_size=groups))
    at = data.draw(st.integers(0, groups - 1))
    hits[at] = min(hits[at], size - 1)
    before = share(hits, size)
    hits[at] += 1
    after = share(hits, size)
    assert after.low > before.low - 0.01


@settings(max_examples=100, deadline=None)
@given(hits=st.lists(st.integers(0, 7), min_size=3, max_size=60), repeats=st.sampled_from([1, 3]))
def test_an_interval_holds_its_value_and_has_a_width(hits, repeats):
    found = grouped_share(
        np.array(hits) / repeats, np.full(len(hits), 7 / repeats), 7 * len(hits), repeats=repeats
    )
    assert 0 <= found.low <= found.value <= found.high <= 1 and found.high - found.low > 0.005


@pytest.mark.parametrize(
    ("groups", "word"), [(1, "all images are of one group"), (2, "there are 2 groups")]
)
def test_below_three_groups_nothing_is_assessed(groups, word):
    found = share([7] * groups, 10)
    assert found.value == 0.7 and found.low is None
    assert found.reason.startswith("not assessable") and word in found.reason


def test_what_hangs_on_an_assumption_is_said():
    assert "mostly an assumption: 4 groups" in share([7] * 4, 10).note
    assert "few groups decide" in share([50, 0] * 6, 50).note
    assert share([7] * 8, 10).note is None


def test_classes_are_strata_where_every_group_has_one():
    assert strata_of(np.array([[3, 0], [0, 2], [4, 0]])).tolist() == [0, 1, 0]
    assert strata_of(np.array([[3, 1], [0, 2], [4, 0]])).tolist() == [0, 0, 0]
    one = Sampling(np.array([0.5, 0.25, 0.25]), np.array([0, 1, 1]), 40, 1.0)
    assert one.freedom == 0 and "a class comes from one group" in one.lacking(np.ones(3))


def test_unequal_groups_count_as_fewer():
    even = Sampling(np.full(10, 0.1), np.zeros(10, int), 100, 1.0)
    uneven = Sampling(np.array([0.82] + [0.02] * 9), np.zeros(10, int), 100, 1.0)
    assert even.freedom == pytest.approx(9) and uneven.freedom < 0.5
    assert "one group holds most" in uneven.lacking(np.ones(10)) and not even.lacking(np.ones(10))
    larger = Sampling(np.array([0.3] + [0.07] * 10), np.zeros(11, int), 100, 1.0)
    assert larger.freedom == 2 and 7 <= larger.equal_groups < 8


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=3, max_size=20))
def test_whatever_the_sizes_there_is_a_sensible_interval_or_a_reason(sizes):
    sizes = np.array(sizes)
    found = grouped_share(np.floor(0.8 * sizes), sizes.astype(float), int(sizes.sum()))
    assert found.reason or 0.02 < found.high - found.low <= 1
    values = np.arange(sizes.sum()) % 2
    mean = mean_interval(values, np.repeat(np.arange(len(sizes)), sizes))
    assert mean.reason or mean.high - mean.low < 15


def test_log_loss_has_room_for_sure_mistakes_not_met_yet():
    sampling = Sampling(np.full(20, 0.05), np.zeros(20, int), 20, 1.0)
    found = log_loss_interval(0.0, np.zeros(20), sampling, 20, claimed_variance=0.0)
    assert (found.value, found.low) == (0, 0) and found.high > 0.2


def test_equal_models_have_a_difference_with_a_width():
    sampling = Sampling(np.full(20, 0.05), np.zeros(20, int), 20, 1.0)
    found = difference_interval(0.0, np.zeros(20), sampling, 20, image_variance=0.004, differing=0)
    assert found.low < 0 < found.high and found.p == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.integers(3, 30), shift=st.floats(-0.3, 0.3))
def test_p_falls_below_5_percent_where_0_leaves_the_interval(seed, groups, shift):
    left = shift + np.random.default_rng(seed).normal(0, 0.02, groups)
    sampling = Sampling(np.full(groups, 1 / groups), np.zeros(groups, int), 100, 1.2)
    found = difference_interval(shift, left, sampling, 100, image_variance=0.002, differing=20)
    assert (found.p <= 0.05) == (found.low >= 0 or found.high <= 0)


def test_means():
    values = np.random.default_rng(0).normal(5, 1, 30)
    from scipy import stats

    alone = mean_interval(values)
    wanted = stats.t.interval(0.95, 29, values.mean(), values.std(ddof=1) / np.sqrt(30))
    assert (alone.low, alone.high) == pytest.approx(wanted)
    alike = mean_interval(np.repeat(values[:10], 3), np.repeat(np.arange(10), 3))
    assert alike.high - alike.low > 1.5 * (alone.high - alone.low)
    assert "same" in mean_interval(np.ones(9)).reason and mean_interval([]).reason
    assert "one group" in mean_interval([1.0, 2.0], ["a", "a"]).reason
    assert mean_interval([1, 2, np.nan, 3]).n == 3


def test_nothing_to_count_is_undefined():
    assert count_interval(0, 0).value is None
    assert grouped_share(np.zeros(3), np.zeros(3), 0).value is None
