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
    points = Points(values, one)
    np.testing.assert_array_equal(points.voxel_index(one), values)
    again = Points(points.voxels(other), other)
    np.testing.assert_array_equal(again.voxel_index(one), values)
    np.testing.assert_allclose(points.voxels(other) * other, points.nm)


@given(voxels)
def test_table_voxels_are_in_the_image_voxel_that_holds_them(values):
    index = Points(values, TABLE).voxel_index(IMAGE)
    np.testing.assert_array_equal(index, np.array(values) // [2, 2, 1])


def test_the_index_floors_below_zero_too():
    points = Points.in_nm([[36.0, -0.1, 1.0], [0.0, 0.0, -40.0]])
    assert points.voxel_index(IMAGE).tolist() == [[4, -1, 0], [0, 0, -1]]
    assert points.voxel_index(IMAGE).dtype == np.int64


def test_the_forty_section_mistake_cannot_be_written():
    """A point of a table at section 20,000 lies at 800,000 nm; taken for nm it would be in
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
    for wrong in (lambda: Points.in_nm(frame), lambda: Points(frame[names], IMAGE)):
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
        with pytest.raises(TypeError):
            wrong()
    with pytest.raises(TypeError):
        right.voxel_index()  # no resolution is assumed
    with pytest.raises(UnitError, match="no unit"):
        checked(right.nm)


@pytest.mark.parametrize(
    "mix",
    [
        lambda points, plain: points + points,
        lambda points, plain: points + plain,
        lambda points, plain: plain + points,
        lambda points, plain: plain - points,
        lambda points, plain: points - plain,
        lambda points, plain: np.concatenate([points, plain]),
    ],
)
def test_there_is_no_arithmetic_that_could_lose_the_unit(mix):
    with pytest.raises((UnitError, TypeError)):
        mix(Points.in_nm([[1, 2, 3]]), np.ones((1, 3)))


def test_rows():
    points = Points.in_nm([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    assert points[1].nm.tolist() == [[4, 5, 6]] and len(points[1:]) == 2
    assert points[np.array([True, False, True])].nm.tolist() == points[[0, 2]].nm.tolist()
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
        (lambda: Points([[1, 2, 3]], (4, 4)), "resolution"),
        (lambda: Points([[1, 2, 3]], (4, 0, 4)), "above 0"),
        (lambda: Points.in_nm(Points.in_nm([[1, 2, 3]])), "unit already"),
        (lambda: Points.from_table(pd.DataFrame({"x_nm": [1.0]})), "y_nm"),
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
        Points([[1, 2, 3]], TABLE)
    )
