"""A set of new images is called shifted by where it lies, not by its share of classes; and only a
set that is shifted gets a threshold of its own.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbhelpers.inference.reference import fit_reference
from nbhelpers.studies.shift import Shift, UsualPlaces

GROUPS = 10
WIDTH = 30


def draw(rng, groups: int, share: float, size: int = 20, moved: float = 0.0):
    """Features, labels and groups: classes apart along the first axis, groups apart along all."""
    labels = (rng.random(groups * size) < share).astype(int)
    group = np.repeat(np.arange(groups), size)
    features = rng.normal(size=(groups * size, WIDTH))
    features += 0.4 * rng.normal(size=(groups, WIDTH))[group]
    features[:, 0] += 5 * labels
    features[:, 3:] += moved
    return features, labels, group


@pytest.fixture(scope="module")
def known():
    features, labels, group = draw(np.random.default_rng(0), GROUPS, 0.4)
    usual = fit_reference(features, groups=group)
    return usual, UsualPlaces.fit(usual, features, labels, group)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_another_share_of_classes_is_no_shift_and_a_move_is_one(known, share, seed):
    usual, places = known
    sizes = []
    for moved in (0.0, 2.0):
        features = draw(np.random.default_rng(seed), GROUPS, share, moved=moved)[0]
        sizes.append(places.size(usual.place(features).mean(0)))
    assert sizes[0] <= places.limit < sizes[1]


def test_where_each_class_comes_from_one_group_nothing_can_be_left_out():
    features, _, group = draw(np.random.default_rng(0), 3, 0.5)
    usual = fit_reference(features, groups=group)
    assert UsualPlaces.fit(usual, features, group, group) is None


PLACES = UsualPlaces(np.array([[0.0, 0.0], [4.0, 0.0]]), np.ones(2), limit=2.0)
TWO_GROUPS = 1 / (1 + np.exp(-np.random.default_rng(0).normal([-5, 1], 0.5, (40, 2)).ravel()))
ONE_GROUP = 1 / (1 + np.exp(-np.random.default_rng(0).normal(-2, 0.5, 80)))


@pytest.mark.parametrize(
    ("scores", "place", "flagged", "moved", "words"),
    [
        (TWO_GROUPS, [2.0, 0.0], 0, False, "No shift is seen."),
        (TWO_GROUPS, [2.0, 9.0], 0, True, "instead of 0.500"),
        (ONE_GROUP, [2.0, 9.0], 0, False, "do not form two groups, so the threshold stayed"),
        (TWO_GROUPS[:29], [2.0, 9.0], 0, False, "is not known: they are fewer than 30"),
        (TWO_GROUPS, [2.0, 9.0], 41, False, "most are out of distribution, or the scores of the"),
        (np.append(ONE_GROUP, TWO_GROUPS[1::2]), [2.0, 9.0], -40, False, "of the others do not"),
        (np.append(TWO_GROUPS, [1e-6] * 60), [2.0, 9.0], -60, True, "instead of 0.500"),
    ],
)
def test_only_a_shifted_set_of_two_groups_gets_its_own_threshold(
    scores, place, flagged, moved, words
):
    out = np.arange(len(scores)) < flagged  # the first, or, below 0, the last
    out[flagged:] |= flagged < 0
    shift = Shift.of(PLACES, np.array(place) * len(scores), scores, 0.5, out)
    assert (shift.threshold != 0.5) == moved and shift.before == 0.5
    if moved:  # between the groups
        assert 1 / (1 + np.exp(4)) < shift.threshold < 0.5
    assert words in str(shift)


def test_without_a_threshold_or_a_reference_none_is_made():
    none = np.zeros(80, bool)
    assert Shift.of(None, np.zeros(0), TWO_GROUPS, 0.4, none) == Shift(0.4, 0.4)
    several = Shift.of(PLACES, np.array([2.0, 9.0]) * 80, TWO_GROUPS, None, none)
    assert several.threshold is None and several.size > several.limit
