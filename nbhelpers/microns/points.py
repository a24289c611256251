"""Places in the brain that carry their unit: nm, table voxels and image voxels cannot be mixed
up.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, check_columns

NM = (1.0, 1.0, 1.0)


class UnitError(InputError):
    """Positions without a unit."""


class Points:
    """(n, 3) float64 positions, in the order x, y, z, together with the nm that one step along each
    axis means.

    There is no conversion to a plain array but by name: :attr:`nm`, :meth:`voxels`,
    :meth:`voxel_index`, and no arithmetic: MICrONS tables count in voxels of 4 x 4 x 40 nm, the
    images in voxels of 8 x 8 x 40 nm, and a table voxel taken for nm is 40 sections away for each
    one. Points never change after they are made.
    """

    __slots__ = ("_resolution", "_xyz")
    __array_ufunc__ = None  # NumPy then refuses array + points

    def __init__(self, xyz: object, resolution_nm: Sequence[float]):
        self._resolution = _resolution(resolution_nm)
        # a copy: changes of the source must not come through
        array = np.array(_plain(xyz), dtype=np.float64, ndmin=2)
        if array.size == 0:
            array = array.reshape(0, 3)
        if array.ndim != 2 or array.shape[1] != 3:
            raise UnitError(
                "points",
                f"the positions have the shape {array.shape}.",
                "Give (n, 3), in the order x, y, z.",
            )
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(bad):
            raise UnitError(
                f"points, row {bad[0]}",
                f"the position {array[bad[0]].tolist()} is not finite ({len(bad)} such rows).",
                "Leave the rows without a position out.",
            )
        array.flags.writeable = False
        self._xyz = array

    @classmethod
    def in_nm(cls, array: object) -> Points:
        """Points from (n, 3) x, y, z in nm. A DataFrame must have columns that end in ``_nm``."""
        if isinstance(array, pd.DataFrame):
            wrong = [str(name) for name in array.columns if not str(name).endswith("_nm")]
            if wrong:
                raise UnitError(
                    f"column {wrong[0]}",
                    "it is not in nm, as its name does not end in _nm.",
                    "Use Points.from_cave for a table of CAVE, which says its own resolution.",
                )
        return cls(array, NM)

    @classmethod
    def from_table(cls, table: pd.DataFrame, prefix: str = "") -> Points:
        """Points from the columns ``x_nm``, ``y_nm``, ``z_nm``, or with a prefix
        such as ``pre_``."""
        names = [f"{prefix}{axis}_nm" for axis in "xyz"]
        check_columns("points", table, names, UnitError)
        return cls.in_nm(table[names])

    @classmethod
    def from_cave(cls, frame: pd.DataFrame, column: str) -> Points:
        """Points from a frame of caveclient, whose columns ``<column>_x``, ``_y``, ``_z`` are in
        the resolution that the server wrote into its header ``dataframe_resolution``. Raises
        UnitError where it wrote none."""
        names = [f"{column}_{axis}" for axis in "xyz"]
        check_columns("points", frame, names, UnitError)
        resolution = frame.attrs.get("dataframe_resolution")
        if resolution is None or isinstance(resolution, str):
            raise UnitError(
                f"column {column}",
                f"the table does not say the resolution of its points ({resolution}).",
                "Query it with desired_resolution=[1, 1, 1] and split_positions=True.",
            )
        return cls(frame[names].to_numpy(), resolution)

    @property
    def resolution_nm(self) -> tuple[float, float, float]:
        """nm per step along x, y, z; (1, 1, 1) for points in nm."""
        return self._resolution

    @property
    def nm(self) -> np.ndarray:
        """(n, 3) float64, x, y, z in nm."""
        return self._xyz * self._resolution

    def voxels(self, resolution_nm: Sequence[float]) -> np.ndarray:
        """(n, 3) float64, x, y, z in voxels of ``resolution_nm``, with fractions."""
        target = _resolution(resolution_nm)
        return self._xyz.copy() if target == self._resolution else self.nm / target

    def voxel_index(self, resolution_nm: Sequence[float]) -> np.ndarray:
        """(n, 3) int64, x, y, z: the voxel of ``resolution_nm`` that holds each point. A point
        within a millionth of a voxel below a border belongs to the next voxel, so that rounding of
        nm never moves it back.
        """
        return np.floor(self.nm / _resolution(resolution_nm) + 1e-6).astype(np.int64)

    def __len__(self) -> int:
        return len(self._xyz)

    def __getitem__(self, rows: object) -> Points:
        """Some rows: an int, a slice, an int array or a bool mask."""
        return Points(self._xyz[rows].reshape(-1, 3), self._resolution)

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise UnitError(
            "points",
            "they were used as a plain array, which has no unit.",
            "Say which one is meant: .nm, .voxels(resolution_nm) or .voxel_index(resolution_nm).",
        )

    def __repr__(self) -> str:
        unit = "nm"
        if self._resolution != NM:
            unit = f"voxels of {' x '.join(f'{step:g}' for step in self._resolution)} nm"
        return f"Points({len(self)} in {unit})"


def checked(points: object) -> Points:
    """``points`` if they are Points; raises UnitError for a plain array, list or table."""
    if not isinstance(points, Points):
        raise UnitError(
            "points",
            f"{_short(points)} has no unit.",
            "Make Points of it: Points.in_nm(array) or Points(array, resolution_nm).",
        )
    return points


def _plain(array: object) -> object:
    if isinstance(array, Points):
        raise UnitError(
            "points",
            f"{array!r} have a unit already.",
            "Use them as they are, or in_resolution(...).",
        )
    if isinstance(array, pd.DataFrame | pd.Series):
        if array.attrs.get("dataframe_resolution") is not None:
            raise UnitError(
                "points",
                "the table of CAVE says its own resolution.",
                "Use Points.from_cave(frame, column).",
            )
        array = array.to_numpy()
    return array


def _resolution(resolution_nm: Sequence[float]) -> tuple[float, float, float]:
    try:
        steps = tuple(float(step) for step in resolution_nm)
    except (TypeError, ValueError):
        steps = ()
    if len(steps) != 3 or not all(np.isfinite(step) and step > 0 for step in steps):
        raise UnitError(
            "points",
            f"the resolution {resolution_nm} is not nm per step along x, y, z.",
            "Give three numbers above 0, e.g. (4, 4, 40).",
        )
    return steps


def _short(value: object) -> str:
    return (
        f"{type(value).__name__} {str(value)[:40]!r}"
        if np.isscalar(value)
        else f"a {type(value).__name__}"
    )
