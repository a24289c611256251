"""Layouts of culture plates: the names of wells, and what each was treated with. Reader and phantom
share them.

The layout of the published plates is in ``plate_layouts.csv``. The published picture prints F2-4
where J2-4 is meant (10 uM with amyloid-beta): as printed, three wells would stand twice and three
would be left over.
"""

import itertools
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.decimals import with_decimal_points
from nbhelpers.core.errors import ParameterError, TableError, check_columns
from nbhelpers.core.keys import one_spelling
from nbhelpers.core.tables import Row, read_rows, table_of, with_columns

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
# what the columns of a layout may be called
SPELLINGS = {
    "plate": ("plate name", "plate id"),
    "well": ("well position", "well name", "well id", "row and column"),
    # not "treatment": such names may hold the dose, too
    "compound": (
        "broad sample, compound name, compound id, compounds, drug, substance, pert iname"
    ).split(", "),
    "row": (),
    "column": ("col",),
}
# how the column of a dose begins, whatever its unit
QUANTITIES = {
    "dose_uM": r"(?i:dose|conc(?:entration)?|(?=mmoles|units?$))",
    "amyloid_uM": r"(?i:(?:amyloid|a)[\s_-]*(?:beta|β)|amyloid)(?:[\s_(-]*(?:1[–-])?4[02]\)?)?",
}
UNITS = {"": np.nan, "pm": 1e-6, "nm": 1e-3, "um": 1, "mm": 1e3, "m": 1e6}
_UNIT = r"((?i:[pnuµμm]m)|M|(?i:[pnuµμm]?mol(?:es)?(?:/|[\s_]*per[\s_]*)l(?:it(?:er|re))?))"
_HEADER = r"[\s_,(\[-]*(?:in\s+)?" + _UNIT + r"?\s*[)\]]?"
# dose_uM_final and dose_unit: another dose, or another unit
_UNCLEAR = r".*(?i:unit|[\W_][pnuµμm]?m(?:ol.*)?(?:[\W_]|$))"
# a unit may stand in the header and in the cell, if it is the same
_CONCENTRATION = re.compile(
    r"((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(?:" + _UNIT + r"(?:\s*(?i:\2))?)?\s*"
)
NOTHING = ("", "-", "na", "n/a", "nan", "none", "null", "<na>")
NO_COMPOUND = ("none", "dmso", "vehicle", "control", "untreated")
_SHARE = r"[\s_(]*(?:[\d.,]+\s*%\W*(?:[vw]/[vw]\W*)?)?"  # of the solvent, as in DMSO 0.1%
_CONTROL = f"(?i){_SHARE}(?:{'|'.join(NO_COMPOUND)}){_SHARE}"
# numbers, dates, and doses with a unit
_NO_NAME = r"[\d\WTZe]*(?i:[pnuµμm]?m(?:ol.*)?)?"
LAYOUT_FILE = Path(__file__).with_name("plate_layouts.csv")
PUBLISHED_WELLS = tuple(
    f"{letter}{number:02d}" for letter, number in itertools.product("BCDEFGHJ", range(2, 8))
)
_WELL = re.compile(  # of up to 32 rows and 48 columns, as plates of 1536 wells have
    r"\s*(?:well\s*)?"
    r"(?:r0*(?P<number>[12]?[1-9]|[123]0|3[12])[\s_-]*c|(?P<row>[A-Z]|A[A-F])[\s_-]*)"
    r"0*(?P<column>[123]?[1-9]|[1234]0|4[1-8])\s*",
    re.IGNORECASE | re.ASCII,
)


def well_name(text: str, where: str = "") -> str:
    """ "B - 4", "b4", "B_04" or "r02c04" as "B04". Raises TableError, which names ``where``, for
    what is no well.
    """
    found = _WELL.fullmatch(str(text))
    if not found:
        raise TableError(
            f"{where}{', ' if where else ''}well {text!r}",
            "this is no name of a well.",
            "Write a letter and a number, as in B04, or a row and a column, as in r02c04.",
        )
    row = int(found["number"] or 0) - 1
    letters = found["row"] or "A" * (row // 26) + chr(ord("A") + row % 26)
    return f"{letters.upper()}{int(found['column']):02d}"


def read_layout(source: str | os.PathLike = "published") -> pd.DataFrame:
    """The treatment of each well: ``well``, ``row``, ``column``, ``dose_uM``, ``amyloid_uM``; a row
    per well.

    ``source`` is "published" (48 inner wells, letters B to H and J, numbers 2 to 7), or a table:
    ``well`` (or ``row`` and ``column``), ``dose_uM``, ``amyloid_uM`` and, where plates differ,
    ``plate`` and ``compound``. The unit of a dose stands in its header, as in ``dose (nM)``, or in
    each cell, as in 10 nM; from pM to M. An empty dose is 0 where the compound is empty or a
    control (DMSO, vehicle, untreated ...). A platemap as it lies beside CellProfiler's files is
    read too: its ``well_position`` is the well, ``broad_sample`` the compound, and
    ``mmoles_per_liter`` the dose in mM. And so are grids as plates lie on the bench, letters down
    and numbers across, beneath one another: above each, or in its corner, stands what it holds,
    as the headers of a table; a well that is empty in all of them is not in the layout. Raises
    TableError for missing columns, a well that stands twice, wells left over, and doses that are
    no numbers of 0 or more in a known unit.
    """
    belongs = {"randomised": "phantoms", "metadata": "cellprofiler"}.get(source)
    if belongs:
        raise ParameterError(
            "parameter layout",
            f"{source!r} is for {belongs}.",
            "Give 'published', or a CSV with what each well of yours holds.",
        )
    published = str(source) == "published"
    path = LAYOUT_FILE if published else Path(source)
    fix = (
        "Give a table with the columns well, dose_uM, amyloid_uM, or grids: letters down, numbers "
        "across, beneath the name of what each holds."
    )
    rows = read_rows(path, "the layout", fix)
    header = rows[0][1]
    named = set(with_columns(pd.DataFrame(columns=header), path.name, SPELLINGS))
    by_well = "well" in named or {"row", "column"} <= named
    table = table_of(rows, path, "the layout") if by_well else _from_grids(rows, path.name)
    if table.empty:
        raise TableError(path.name, f"the columns ['well'] are missing; there are {header}.", fix)
    return check_layout(
        with_wells(table).reset_index(drop=True), path.name, PUBLISHED_WELLS if published else None
    )


def with_wells(table: pd.DataFrame) -> pd.DataFrame:
    """The table with columns named as ours, and ``well`` where it has ``row`` and ``column``.
    Raises TableError where two columns say which well, plate or compound it is, and differ.
    """
    table = with_columns(table, "layout", SPELLINGS)
    if {"row", "column"} <= set(table):
        rows = table["row"].str.replace(r"^(\d+)(?:\.0)?$", r"r\1c", regex=True)
        placed = rows + table["column"].str.removesuffix(".0")
        table = table.assign(**{"row and column" if "well" in table else "well": placed})
    for name in table.columns.intersection(["plate", "well", "compound"]):
        rest = with_columns(table.drop(columns=name), "layout", {name: SPELLINGS[name]})
        if name in rest:
            told = {}
            for pair in zip(table[name], rest[name], strict=True):
                if all(pair):
                    one, other = map(well_name, pair) if name == "well" else pair
                    if told.setdefault(one, one if name == "well" else other) != other:
                        raise TableError(
                            "layout",
                            f"two columns name the {name}, and contradict each other: {pair}.",
                            "Delete the wrong one.",
                        )
            table = rest.assign(**{name: table[name]})
    return table


def _from_grids(rows: Sequence[Row], where: str) -> pd.DataFrame:
    """A row per well and a column per grid; empty where the rows are not those of grids."""
    wells = {}
    title = ""
    numbers = []
    for _, (first, *cells) in rows:
        if re.fullmatch("(?i:[A-Z]|A[A-F])", first):
            for number, cell in itertools.zip_longest(numbers, cells, fillvalue=""):
                if cell and (number or cell != first):  # letters may stand on both sides
                    well = well_name(first + number.removesuffix(".0"), where)
                    held = wells.setdefault(well, {})
                    # what two grids of one name say is no number, and refused
                    held[title] = f"{held.get(title, '')} {cell}".strip()
        elif not first.startswith("#"):
            title = first or title
            numbers = cells
    return pd.DataFrame([{**held, "well": well} for well, held in wells.items()]).fillna("")


def concentrations(table: pd.DataFrame, name: str, where: str = "layout") -> list[float]:
    """``dose_uM`` or ``amyloid_uM`` of each row in micromolar, to six digits so that doses which
    differ by rounding are one, from the column that holds it in any unit; see :func:`read_layout`.

    ``table`` has ``well`` and perhaps ``compound``. Raises TableError, which names the well.
    """
    header = re.compile(QUANTITIES[name] + _HEADER)
    values = None
    for column in map(str, table):
        found = header.fullmatch(column)
        own = []
        if found:
            cells = with_decimal_points(table[column].astype(str).str.strip())
            if name == "dose_uM" and "compound" in table:
                control = table["compound"].str.fullmatch(_CONTROL)
                cells = cells.mask(control & cells.str.lower().isin(NOTHING), "0")
            own = [_micromolar(f"{cell} {found[1] or ''}") for cell in cells]
            for well, cell, value in zip(table["well"], cells, own, strict=True):
                if not np.isfinite(value):
                    raise TableError(
                        f"{where}, well {well}",
                        f"{column} is {cell!r}.",
                        "Give a number of 0 or more, and its unit in the header (dose_uM, dose_nM) "
                        "or here (10 nM); an empty dose is 0 only where the compound is empty or a "
                        "control.",
                    )
        if found or re.match(QUANTITIES[name] + _UNCLEAR, column):
            values = own if values in (None, own) else []
    if not values:
        raise TableError(
            where,
            f"{name} must stand in one column with a known unit; there are {list(table)}.",
            "Expected well, dose_uM, amyloid_uM (0 where there is none; also in nM or mM), and "
            "perhaps plate and compound; no other dose, and no unit in a column of its own.",
        )
    return values


def _micromolar(text: str) -> float:
    """NaN for what is no number, in no unit, or in two; 0 needs none."""
    found = _CONCENTRATION.fullmatch(re.sub("[µμ]", "u", text))
    if not found:
        return np.nan
    number = float(found[1])
    unit = re.sub("mol.*", "m", (found[2] or "").lower())
    return float(f"{number and number * UNITS[unit]:.6g}")


def check_layout(
    table: pd.DataFrame,
    where: str = "layout",
    expected: Sequence[str] | None = None,
    *,
    by_field: bool = False,
) -> pd.DataFrame:
    """The layout with tidy wells and numbers, or the TableError that says what is wrong with it.

    ``expected``: the wells that there are; each must stand once. ``by_field``: rows are fields, so
    that a well may stand several times with the same treatment. See :func:`read_layout`.
    """
    check_columns(where, table, ["well"])
    if table.empty:
        raise TableError(where, "the layout has no rows.", "Give a row per well.")
    table = table.assign(well=[well_name(text, where) for text in table["well"]])
    if "compound" in table:
        compound = table["compound"].astype(str).str.strip()
        table["compound"] = compound.mask(compound.str.lower().isin(NOTHING), "none")
    joined = []
    for name in table.filter(["plate", "compound"]):
        table[name], twice = one_spelling(table[name], name, where, allowed=NO_COMPOUND)
        joined += twice
    numbers = {name: concentrations(table, name, where) for name in QUANTITIES}
    dosed = table[np.array(numbers["dose_uM"]) > 0]
    keys = [*table.filter(["plate"]), "well"]
    table = table.filter([*keys, "compound"]).assign(**numbers)
    wrong = dosed[dosed.get("compound", dosed["well"]).str.fullmatch(_CONTROL)]
    if len(wrong):
        where = f"{where}, well {wrong['well'].iloc[0]}"
        fix = "Name the compound; a control has no dose."
        raise TableError(where, "it has a dose of no compound.", fix)
    if by_field:
        table = table.drop_duplicates(ignore_index=True)
    told = {
        "stand twice": table.loc[table.duplicated(keys), "well"].unique().tolist(),
        "are left over": [well for well in expected or () if well not in set(table["well"])],
        "are not on the plate": [
            well for well in table["well"] if well not in (expected or [well])
        ],
    }
    said = [f"{', '.join(wells)} {what}" for what, wells in told.items() if wells]
    if said:
        raise TableError(
            where,
            f"the wells {'; the wells '.join(said)}.",
            "Give every well exactly one treatment.",
        )
    for column in () if "compound" in table else dosed.drop(columns=keys):
        names = {cell for cell in dosed[column] if not re.fullmatch(_NO_NAME, str(cell))}
        if len(names) > 1 and column not in ("row", "printed_as"):
            raise TableError(
                where,
                f"no column is named compound, but {column} has {sorted(names)[:2]}.",
                "Name it compound, or delete it.",
            )
    place = r"(?P<row>[A-Z]+)(?P<column>\d+)"
    table = table.join(table["well"].str.extract(place).astype({"column": np.int64}))
    table.attrs["joined"] = joined  # which keys are spelled in two ways
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
    """What each row was treated with, in words, e.g. "C01 3 uM + amyloid-beta 30 uM"; "unknown"
    where doses are missing.
    """
    names = []
    for compound, dose, amyloid in zip(
        table["compound"], table["dose_uM"], table["amyloid_uM"], strict=True
    ):
        parts = [
            f"{name} {concentration:g} uM"
            for name, concentration in ((compound, dose), ("amyloid-beta", amyloid))
            if concentration > 0
        ]
        names.append(" + ".join(parts) or ("unknown" if np.isnan(dose) else "none"))
    return names
