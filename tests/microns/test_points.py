"""Points keep their unit, and the ways to lose it raise."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbhelpers.microns.points import Points, UnitError, checked

TABLE = (4, 4, 40)
IMAGE = (8, 8, 40)
voxels = st.lists(st.tuples(*[st.integers(0, 400_000)] * 3), min_size=1, max_size=20)
resolutions = st.tuples(*[st.sampled_from([1.0, 3.7, 4.0, 7.645, 8.0, 16.0, 40.0])] * 3)


@given(voxels, resolutions, resolutions)
def test_round_trips_end_in_the_same_voxel(values, one, other):
    points = Points.in_voxels(values, one)
    np.testing.assert_array_equal(points.voxel_index(one), values)
    np.testing.assert_array_equal(points.in_resolution(other).voxel_index(one), values)
    np.testing.assert_allclose(points.voxels(other) * other, points.nm)


@given(voxels)
def test_table_voxels_lie_in_the_image_voxel_that_holds_them(values):
    index = Points.in_voxels(values, TABLE).voxel_index(IMAGE)
    np.testing.assert_array_equal(index, np.array(values) // [2, 2, 1])


def test_index_counts_from_an_origin_and_floors_below_it():
    points = Points.in_nm([[100.0, 79.9, 41.0], [64.0, 80.0, 0.0]])
    assert points.voxel_index(IMAGE, origin_nm=(64, 80, 40)).tolist() == [[4, -1, 0], [0, 0, -1]]
    assert points.voxel_index(IMAGE).dtype == np.int64


def test_the_forty_section_mistake_cannot_be_written():
    """A point of a table at section 20,000 lies at 800,000 nm; taken for nm it would land in
    section 500.
    """
    frame = pd.DataFrame(
        {
            "ctr_pt_position_x": [180_000],
            "ctr_pt_position_y": [150_000],
            "ctr_pt_position_z": [20_000],
        }
    )
    names = list(frame.columns)
    with pytest.raises(UnitError, match=r"ctr_pt_position_x.*not in nm"):
        Points.in_nm(frame)
    with pytest.raises(UnitError, match="does not say the resolution"):
        Points.from_cave(frame, "ctr_pt_position")
    frame.attrs["dataframe_resolution"] = [4.0, 4.0, 40.0]  # as caveclient writes it
    for wrong in (lambda: Points.in_nm(frame), lambda: Points.in_voxels(frame[names], IMAGE)):
        with pytest.raises(UnitError):
            wrong()
    right = Points.from_cave(frame, "ctr_pt_position")
    assert right.nm.tolist() == [[720_000, 600_000, 800_000]]
    assert right.voxel_index(IMAGE).tolist() == [[90_000, 75_000, 20_000]]
    with pytest.raises(UnitError, match="plain array"):
        np.asarray(right)
    for wrong in (
        lambda: right * 40,
        lambda: right / IMAGE,
        lambda: 40 * right,
        lambda: right // 8,
    ):
        with pytest.raises(UnitError, match="not scaled by hand"):
            wrong()
    with pytest.raises(TypeError):
        right.voxel_index()  # no resolution is assumed
    with pytest.raises(UnitError, match="no unit"):
        checked(right.nm)


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: a - b,
        lambda a, b: Points.concatenate([a, b]),
        lambda a, b: a == b,
    ],
)
def test_unlike_resolutions_are_not_mixed(mix):
    nm = Points.in_nm([[1, 2, 3]])
    table = Points.in_voxels([[1, 2, 3]], TABLE)
    with pytest.raises(UnitError, match="unlike resolutions"):
        mix(nm, table)
    mix(nm, table.in_resolution((1, 1, 1)))


@pytest.mark.parametrize(
    "mix",
    [
        lambda points, plain: points + plain,
        lambda points, plain: plain + points,
        lambda points, plain: plain - points,
        lambda points, plain: points - plain,
        lambda points, plain: Points.concatenate([points, plain]),
        lambda points, plain: points == plain,
        lambda points, plain: np.concatenate([points, plain]),
    ],
)
def test_plain_arrays_are_refused(mix):
    with pytest.raises(UnitError):
        mix(Points.in_nm([[1, 2, 3]]), np.ones((1, 3)))


def test_sums_and_rows():
    points = Points.in_nm([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert (points + points - points) == points
    assert points[1].nm.tolist() == [[4, 5, 6]] and len(points[1:]) == 2
    assert points[np.array([True, False, True])] == points[[0, 2]]
    assert Points.concatenate([points[:1], points[1:]]) == points
    assert [len(one) for one in points] == [1, 1, 1]


def test_they_do_not_change_with_their_source():
    array = np.zeros((2, 3))
    points = Points.in_nm(array)
    array += 1
    points.nm[:] = 7
    assert points.nm.sum() == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Points.in_nm([[1, 2]]), "shape"),
        (lambda: Points.in_nm([[1, 2, 3], [1, np.nan, 3]]), "row 1"),
        (lambda: Points.in_voxels([[1, 2, 3]], (4, 4)), "resolution"),
        (lambda: Points.in_voxels([[1, 2, 3]], (4, 0, 4)), "above 0"),
        (lambda: Points.in_nm(Points.in_nm([[1, 2, 3]])), "unit already"),
        (lambda: Points.concatenate([]), "nothing"),
        (lambda: Points.from_table(pd.DataFrame({"x_nm": [1.0]})), "y_nm"),
        (lambda: Points.in_nm([[1, 2, 3]]).voxel_index(IMAGE, origin_nm=(0, 0)), "origin"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(UnitError, match=words):
        make()


def test_columns_of_our_tables():
    table = pd.DataFrame(
        {
            "x_nm": [1.0],
            "y_nm": [2.0],
            "z_nm": [3.0],
            "pre_x_nm": [4.0],
            "pre_y_nm": [5.0],
            "pre_z_nm": [6.0],
        }
    )
    assert Points.from_table(table).nm.tolist() == [[1, 2, 3]]
    assert Points.from_table(table, "pre_").nm.tolist() == [[4, 5, 6]]
    assert "nm" in repr(Points.from_table(table)) and "4 x 4 x 40" in repr(
        Points.in_voxels([[1, 2, 3]], TABLE)
    )
