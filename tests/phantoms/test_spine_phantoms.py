"""Spine phantoms: the injected truth can be measured, and nothing but the seed and the position
decides.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, label

from nbhelpers.core.errors import ParameterError
from nbhelpers.phantoms.spine import CLASSES, make_spine_phantoms


@pytest.fixture(scope="module")
def phantoms():
    return make_spine_phantoms(600, 5)


def test_shape_type_and_ids(phantoms):
    masks, table = phantoms
    assert masks.shape == (600, 250, 250) and masks.dtype == np.uint8
    assert set(np.unique(masks)) == {0, 255}
    assert table["id"].iloc[0] == "phantom-00000" and table["id"].is_unique


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**40), n=st.integers(1, 12), more=st.integers(1, 12))
def test_an_image_depends_on_seed_and_position_alone(seed, n, more):
    masks, table = make_spine_phantoms(n, seed)
    longer, longer_table = make_spine_phantoms(n + more, seed)
    assert np.array_equal(masks, longer[:n])
    assert table.equals(longer_table.iloc[:n])


def test_another_seed_gives_other_images():
    assert not np.array_equal(make_spine_phantoms(3, 1)[0], make_spine_phantoms(3, 2)[0])


@pytest.mark.parametrize("n", [60, 600])
def test_class_proportions(n, phantoms):
    shares = phantoms[1]["label"].iloc[:n].value_counts(normalize=True)
    for name, share in zip(CLASSES, (0.632, 0.248, 0.121), strict=True):
        assert abs(shares[name] - share) < 1.5 / np.sqrt(n) / 2


def test_dendrites_hold_four_to_ten_spines(phantoms):
    sizes = phantoms[1].groupby("group").size().iloc[:-1]  # the last one may be cut short
    assert sizes.between(4, 10).all() and sizes.nunique() > 3


@pytest.mark.parametrize("size_px", [64, 250])
def test_every_mask_is_one_piece_inside_the_side_borders(size_px):
    masks, _ = make_spine_phantoms(300, 11, size_px=size_px, difficulty=1)
    for mask in masks:
        assert label(mask, structure=np.ones((3, 3)))[1] == 1
    assert not masks[:, :, [0, -1]].any() and not masks[:, 0].any()
    assert (masks > 0).sum(axis=(1, 2)).min() > 0.005 * size_px**2


def test_head_width_can_be_measured(phantoms):
    masks, table = phantoms
    slender = table[table["label"] != "Stubby"]
    inscribed = np.array(
        [2 * distance_transform_edt(masks[row]).max() for row in slender.index[:120]]
    )
    injected = slender[["head_width_px", "head_height_px"]].min(axis=1).iloc[:120]
    assert np.percentile(abs(inscribed - injected), 90) < 4
    assert np.corrcoef(inscribed, injected)[0, 1] > 0.95


def test_neck_width_and_length_can_be_measured(phantoms):
    masks, table = phantoms
    straight = table[
        (table["label"] != "Stubby")
        & (table["bend_degree"].abs() < 8)
        & (table["tilt_degree"].abs() < 6)
        & ~table["cut_off"]
    ]
    assert len(straight) > 60
    neck_error = []
    length_error = []
    for row in straight.index:
        widths = (masks[row] > 0).sum(axis=1)
        rows = np.flatnonzero(widths)
        head = rows[0] + widths[rows[0] : rows[0] + max(2, len(rows) // 2)].argmax()
        neck_error.append(widths[head : rows[-1] - 2].min() - table.at[row, "neck_width_px"])
        length_error.append(len(rows) - table.at[row, "length_px"])
    assert np.percentile(np.abs(neck_error), 80) < 4
    assert np.percentile(np.abs(length_error), 90) < 6


def test_classes_differ_as_their_names_say(phantoms):
    _, table = phantoms
    median = table.groupby("label")[["length_px", "head_width_px", "neck_width_px"]].median()
    neck_to_head = median["neck_width_px"] / median["head_width_px"]
    assert median.loc["Thin", "length_px"] > 1.3 * median.loc["Mushroom", "length_px"]
    assert median.loc["Thin", "head_width_px"] < median.loc["Mushroom", "head_width_px"]
    assert neck_to_head["Stubby"] > 0.85 > 0.6 > neck_to_head["Mushroom"]


def test_difficulty_sets_the_share_of_shapes_between_classes():
    shares = [
        (make_spine_phantoms(200, 3, difficulty=level)[1]["mix"] > 0).mean()
        for level in (0, 0.5, 1)
    ]
    assert shares[0] == 0 and 0.1 < shares[1] < 0.25 < shares[2] < 0.45


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": 0},
        {"size_px": 8},
        {"difficulty": 1.5},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ParameterError, match=f"parameter {next(iter(wrong))}"):
        make_spine_phantoms(**{"n": 4, "seed": 0, **wrong})


def test_matched_spines_have_the_area_of_any_class_and_are_one_rough_piece():
    masks, table = make_spine_phantoms(120, 6, matched=True)
    assert set(np.unique(masks)) == {0, 255} and not masks[:, [0, -1]].any()
    assert all(label(mask)[1] == 1 for mask in masks)
    area = np.log((masks > 0).sum(axis=(1, 2)))
    assert np.std([np.median(area[table["label"] == name]) for name in CLASSES]) < 0.12
    assert area.std() > 0.2
    assert np.array_equal(make_spine_phantoms(5, 6, matched=True)[0], masks[:5])
