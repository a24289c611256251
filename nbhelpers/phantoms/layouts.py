"""Layouts of culture plates: the names of wells, and what each was treated with. Reader and phantom
share them.

The layout of the published plates is in ``plate_layouts.csv``. The published picture prints F2-4
where J2-4 is meant (10 uM with amyloid-beta): as printed, three wells would stand twice and three
would be left over.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import TableError
from nbhelpers.core.files import read_csv

STAINS = ("MAP2", "PSD-95", "Synaptophysin", "Hoechst")
CLASSES = ("control", "amyloid-beta")
# what every table of fields has, whatever the source of the plates
FIELD_COLUMNS = [
    "id",
    "label",
    "group",
    "plate",
    "well",
    "row",
    "column",
    "field",
    "treatment",
    "compound",
    "dose_uM",
    "amyloid_uM",
]
AMYLOID_UM = 30.0  # of the class amyloid-beta
PLATEMAP = {"well_position": "well", "broad_sample": "compound"}
LAYOUT_FILE = Path(__file__).with_name("plate_layouts.csv")
PUBLISHED_WELLS = tuple(
    f"{letter}{number:02d}" for letter, number in itertools.product("BCDEFGHJ", range(2, 8))
)
_WELL = re.compile(r"\s*([A-Za-z]{1,2})\s*-?\s*0*(\d{1,2})\s*")


def well_name(text: str, where: str = "") -> str:
    """ "B - 4", "b4" or "B04" as "B04". Raises TableError, which names ``where``, for what is no
    well.
    """
    found = _WELL.fullmatch(str(text))
    if not found or not 1 <= int(found[2]) <= 48:
        raise TableError(
            f"{where}{', ' if where else ''}well {text!r}",
            "this is no name of a well.",
            "Write a letter and a number, as in B04.",
        )
    return f"{found[1].upper()}{int(found[2]):02d}"


def read_layout(source: str | os.PathLike = "published") -> pd.DataFrame:
    """The treatment of each well: ``well``, ``row``, ``column``, ``dose_uM``, ``amyloid_uM``; a row
    per well.

    ``source`` is "published" (48 inner wells, letters B to H and J, numbers 2 to 7), or a table:
    ``well``, ``dose_uM``, ``amyloid_uM`` and, where plates differ, ``plate``
    and ``compound``. A platemap as it lies beside CellProfiler's files is read too: its
    ``well_position`` is the well, ``broad_sample`` the compound, and ``mmoles_per_liter`` the dose
    in mM, here uM; an empty one is none. The column ``amyloid_uM`` must be added to it. Raises
    TableError for missing columns, a well that stands twice, wells left over, and doses that are no
    numbers of 0 or more.
    """
    published = str(source) == "published"
    path = LAYOUT_FILE if published else Path(source)
    table = read_csv(path, "the layout", "Give a CSV with the columns well, dose_uM, amyloid_uM.")
    if published:
        table = table[table["layout"] == "published"].drop(columns=["layout", "printed_as"])
    return check_layout(
        _from_platemap(table).reset_index(drop=True),
        path.name,
        PUBLISHED_WELLS if published else None,
    )


def _from_platemap(table: pd.DataFrame) -> pd.DataFrame:
    table = table.rename(columns={old: new for old, new in PLATEMAP.items() if new not in table})
    if "mmoles_per_liter" in table and "dose_uM" not in table:
        millimolar = table["mmoles_per_liter"].str.strip().replace("", "0")
        numbers = pd.to_numeric(millimolar, errors="coerce")
        table["dose_uM"] = numbers.mul(1000).round(9).astype(str).where(numbers.notna(), millimolar)
    return table


def check_layout(
    table: pd.DataFrame, where: str = "layout", expected: Sequence[str] | None = None
) -> pd.DataFrame:
    """The layout with tidy wells and numbers, or the TableError that says what is wrong with it.

    ``expected``: the wells that there are; each must stand once. See :func:`read_layout`.
    """
    absent = [name for name in ("well", "dose_uM", "amyloid_uM") if name not in table]
    if absent:
        raise TableError(
            where,
            f"the columns {absent} are missing; there are {list(table.columns)}.",
            "Expected well, dose_uM, amyloid_uM (0 where there is none), and perhaps plate and "
            "compound.",
        )
    if table.empty:
        raise TableError(where, "the layout has no rows.", "Give a row per well.")
    table = table.copy()
    table["well"] = [well_name(text, where) for text in table["well"]]
    for name in ("dose_uM", "amyloid_uM"):
        numbers = pd.to_numeric(table[name], errors="coerce")
        bad = ~np.isfinite(numbers) | (numbers < 0)
        if bad.any():
            first = table[bad].iloc[0]
            raise TableError(
                f"{where}, well {first['well']}",
                f"{name} is {first[name]!r}.",
                "Give micromolar as a number of 0 or more.",
            )
        table[name] = numbers.astype(np.float64)
    keys = (["plate"] if "plate" in table else []) + ["well"]
    twice = table.loc[table.duplicated(keys), "well"].unique().tolist()
    left_over = [well for well in expected or () if well not in set(table["well"])]
    if twice or left_over:
        said = [
            f"{', '.join(wells)} {what}"
            for wells, what in ((twice, "stand twice"), (left_over, "are left over"))
            if wells
        ]
        raise TableError(
            where,
            f"the wells {'; the wells '.join(said)}.",
            "Give every well exactly one treatment.",
        )
    outside = [well for well in table["well"] if expected is not None and well not in expected]
    if outside:
        raise TableError(
            where,
            f"the wells {', '.join(outside)} are not on the plate.",
            f"It has {expected[0]} to {expected[-1]}.",
        )
    table["row"] = table["well"].str.extract(r"([A-Z]+)", expand=False)
    table["column"] = table["well"].str.extract(r"(\d+)", expand=False).astype(np.int64)
    return table


def training_labels(table: pd.DataFrame) -> np.ndarray:
    """(n,) "control", "amyloid-beta" (30 uM), or None: only wells without compound are training
    candidates.
    """
    no_compound = table["dose_uM"].to_numpy() == 0
    amyloid = table["amyloid_uM"].to_numpy()
    return np.select(
        [no_compound & (amyloid == 0), no_compound & (amyloid == AMYLOID_UM)],
        np.array(CLASSES, dtype=object),
        None,
    )


def treatment_names(table: pd.DataFrame) -> list[str]:
    """What each row was treated with, in words, e.g. "C01 3 uM + amyloid-beta 30 uM"."""
    names = []
    for compound, dose, amyloid in zip(
        table["compound"], table["dose_uM"], table["amyloid_uM"], strict=True
    ):
        parts = [
            f"{name} {concentration:g} uM"
            for name, concentration in ((compound, dose), ("amyloid-beta", amyloid))
            if concentration > 0
        ]
        names.append(" + ".join(parts) or "none")
    return names
