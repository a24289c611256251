"""Single cells of BBBC021 in three stains, for checks only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nbhelpers.core.errors import UnreadableImageError, check_columns
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.keys import one_spelling
from nbhelpers.core.tables import read_table
from nbhelpers.imagesets.packed import pack_images
from nbhelpers.phantoms.layouts import FIELD_COLUMNS, concentrations, treatment_names, well_name


def load_bbbc021(path: str | Path, data_folder: str | Path) -> ImageSet:
    """Single MCF7 cells of BBBC021 (Caie et al. 2010), DMSO against cycloheximide, from a folder
    with ``cells.csv``.

    (n, 3, 68, 68) uint16: DAPI, tubulin, actin. For checks only: it is not downloaded. DMSO always
    is in well B02, so that the position gives the label away. Raises TableError when ``cells.csv``
    is absent or other.
    """
    csv = Path(path) / "cells.csv"
    given = {
        "Metadata_Plate": "plate",
        "Metadata_Well": "well",
        "Metadata_Site": "field",
        "Metadata_Cell": "cell",
        "Metadata_Compound": "compound",
        "Metadata_Concentration_uM": "dose_uM",
        "FileName": "file",
    }
    table = read_table(csv, "the table of cells", "Give the folder that holds cells.csv.")
    check_columns(csv, table, given)
    table = table.rename(columns=given)
    for name in ("plate", "compound"):
        table[name], _ = one_spelling(table[name], name, csv.name)
    pixels, kept, failures, _ = pack_images(
        [csv.parent / name for name in table["file"]],
        _three_stains,
        prepare_name="bbbc021 cell, 1",
        cache_folder=Path(data_folder) / "packed",
    )
    table = table.iloc[kept].reset_index(drop=True)
    well = table["well"].map(well_name)
    table = table.assign(
        id=[Path(name).stem for name in table["file"]],
        well=well,
        row=well.str[0],
        column=well.str[1:].astype(np.int64),
        label=table["compound"],
        group=table["plate"],
        dose_uM=concentrations(table, "dose_uM", csv.name),
        amyloid_uM=0.0,
        treatment=treatment_names,
    )
    return ImageSet(
        name="BBBC021 cells",
        table=table[[*FIELD_COLUMNS, "cell"]],
        pixels=pixels,
        synthetic=False,
        classes=("DMSO", "cycloheximide"),
        channels=("DAPI", "tubulin", "actin"),
        failures=failures,
        source="BBBC021v1 (Caie et al. 2010), single cells, for checks only",
    )


def _three_stains(pixels: np.ndarray, path: object) -> np.ndarray:
    if len(pixels) != 3:
        raise UnreadableImageError(
            path, f"the image has {len(pixels)} channels.", "Expected DAPI, tubulin and actin."
        )
    return pixels
