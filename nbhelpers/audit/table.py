"""A user's own table: a CSV with label and split columns, and as a rule path and group, made ready
for the audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.audit.checks import run_audit
from nbhelpers.audit.duplicates import SIDE_PX, small
from nbhelpers.audit.question import Provenance
from nbhelpers.audit.verdicts import Audit, Check
from nbhelpers.core import tables
from nbhelpers.core.decimals import with_decimal_points
from nbhelpers.core.errors import TableError, check_columns
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.keys import MISSING_WORDS, one_spelling
from nbhelpers.core.splits import Split, fold_table
from nbhelpers.imagesets.folder import names_without_machine
from nbhelpers.imagesets.packed import NoUsableImageError, pack_images

NAMES = tables.IMAGE_COLUMNS | {"split": ("part", "set", "subset", "fold"), "id": ()}
PART_OF = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "held-out": "test",
    "hold-out": "test",
}
GREY = ("1", "L", "I", "F")  # beginnings of Pillow's modes
BITS = {
    "1": 1,
    "L": 8,
    "P": 8,
    "LA": 8,
    "RGB": 8,
    "RGBA": 8,
    "I;16": 16,
    "I;16B": 16,
    "I": 32,
    "F": 32,
}


@dataclass(frozen=True)
class Table:
    """A user's table: what :func:`nbhelpers.audit.run_audit` needs of it."""

    images: ImageSet
    split: Split
    provenance: Provenance

    @property
    def check(self) -> Check:
        """What was found about the files."""
        return self.provenance.checks[0]

    def audit(self, columns: Sequence[str] = (), **options) -> Audit:
        """``columns``: further ones to try as shortcuts; ``options`` go to ``run_audit``."""
        known = replace(self.provenance, columns=columns)
        return run_audit(self.images, self.split, provenance=known, **options)


def read_table(csv: str | Path, cache_folder: str | Path) -> Table:
    """Read a CSV with the columns label and split (train, validation, test), and path and group
    where known.

    Paths start at the folder of the CSV; without a path column there must be an id. An image may
    stand in several rows: that it is in two parts is what the audit is for. Images are kept small
    (64 x 64 px, 16 bit) in ``cache_folder``, memory-mapped. All other columns are kept; those that
    say how an image was taken (well, centre, date ...) are tried as shortcuts. Files that are
    missing or cannot be read are listed in ``check`` and left out. Raises TableError for absent
    columns, unknown parts, and an image with two labels or groups.
    """
    csv = Path(csv)
    table, joined = _read(csv)
    rows = table.drop_duplicates("id", ignore_index=True).copy()
    groups_known = "group" in table
    for name in ("label", "group") if groups_known else ("label",):
        several = table.groupby("id")[name].nunique()
        if (several > 1).any():
            raise TableError(
                csv,
                f"the image {several.index[several > 1][0]} has two different {name}s.",
                "Decide which one is right, and fix the other row.",
            )
    if not groups_known:
        rows["group"] = rows["id"]
    pixels, kept, check = _pixels(csv, rows, cache_folder)
    rows = rows.iloc[kept].reset_index(drop=True)
    if not len(rows):
        raise TableError(csv, "no row is left.", "Check the table.")
    files = None
    sides = pd.DataFrame(np.nan, rows.index, ["height_px", "width_px"])
    if "path" in rows and check.verdict != "not assessable":
        files = [csv.parent / path for path in rows["path"]]
        heads = _headers(files)
        # what the user says counts
        rows = rows.join(heads.drop(columns=[name for name in heads if name in rows]))
        sides = heads[["height_px", "width_px"]]
        sides = sides.where(sides > 0)
    # positions are in pixels of the files
    rows[["crop_height_px", "crop_width_px"]] = sides.to_numpy(float)
    images = ImageSet(
        name=csv.name,
        table=rows.drop(columns=["split"]),
        pixels=pixels,
        classes=tuple(sorted(set(rows["label"]))),
        source="; ".join(("your own table", *joined)),
        synthetic=False,
    )
    parts = table[table["id"].isin(rows["id"])]
    at = images.positions(parts["id"])
    placed = fold_table(images, parts["split"].to_numpy(), rows=at)
    split = Split(
        placed.drop_duplicates(ignore_index=True),
        f"as in {csv.name}",
        0,
        known_leak="not known: it is being audited",
    )
    return Table(images, split, Provenance(files, groups_known, files is not None, checks=(check,)))


def _read(csv: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table with our names, and which keys were spelled in two ways."""
    table = tables.read_table(csv, "the table", "Save it as CSV in UTF-8.")
    table = tables.with_columns(table, csv, NAMES)
    check_columns(csv, table, ("label", "split"))
    if "path" not in table and "id" not in table:
        raise TableError(
            csv, "there is neither a column path nor id.", "Name the images in one of them."
        )
    keys = ["label", "split", *(["group"] if "group" in table else [])]
    for name in ["path" if "path" in table else "id", *keys]:
        empty = table.index[table[name] == ""]
        if len(empty):
            fix = "Fill it in, or use another word."
            if name == "group":
                fix = "Fill in every row, or delete the whole column."
            raise TableError(f"{csv.name}, row {empty[0]}", f"{name} is empty.", fix)
    joined: list[str] = []
    table["split"] = table["split"].str.lower()
    for name in keys:
        table[name], twice = one_spelling(table[name], name, csv.name)
        joined += twice
    for name in table.columns.difference([*keys, "path", "id"]):
        if name == "centre":
            table[name], twice = one_spelling(table[name], name, csv.name)
            joined += twice
        table[name] = _typed(table[name])
    if "path" in table:
        table["path"] = tables.located(table["path"].tolist(), csv.parent)
        table["id"] = names_without_machine(table["path"].tolist(), csv.parent)
    unknown = sorted(set(table["split"]) - set(PART_OF))
    if unknown:
        raise TableError(
            csv, f"the split {unknown[0]!r} is unknown.", "Write train, validation or test."
        )
    return table.assign(split=table["split"].map(PART_OF)).reset_index(drop=True), joined


def _typed(column: pd.Series) -> pd.Series:
    """Numbers where all that is there are numbers; missing words and empty cells as missing."""
    known = column.mask((column == "") | column.str.lower().isin(MISSING_WORDS))
    numbers = pd.to_numeric(with_decimal_points(column)[known.notna()], errors="coerce")
    numbers = numbers.reindex(known.index)
    return numbers if numbers.notna().equals(known.notna()) else known


def _prepare(pixels: np.ndarray, path: Path) -> np.ndarray:
    return (small(pixels[None]).numpy() * 65535).round().astype(np.uint16)


def _pixels(
    csv: Path, rows: pd.DataFrame, cache_folder: str | Path
) -> tuple[np.ndarray, np.ndarray, Check]:
    """The small images, the rows that have one, and what is to be said about the files; black
    pixels for all rows where there are no files.
    """
    nothing = np.zeros((len(rows), 1, 1, 1), np.uint8)
    everything = np.arange(len(rows))
    fix = "Give a column 'path' with the image files; it starts at the folder of the table."
    if "path" not in rows:
        says = "There is no column 'path': only the table is audited."
        return nothing, everything, Check("files", "not assessable", says, fix)
    try:
        pixels, kept, failures, _ = pack_images(
            [csv.parent / path for path in rows["path"]],
            _prepare,
            cache_folder=cache_folder,
            prepare_name=f"audit {SIDE_PX} px, 1",
        )
    except NoUsableImageError as error:
        says = f"None of the {len(rows)} files can be read: only the table is audited. {error.fix}"
        check = Check("files", "not assessable", says, fix, {}, error.failures)
        return nothing, everything, check
    if not len(failures):
        return pixels, kept, Check("files", "pass", f"All {len(rows)} files can be read.")
    failures["file"] = [Path(file).name for file in failures["file"]]
    first = failures.iloc[0]
    says = (
        f"{len(failures)} of {len(rows)} files are missing or cannot be read; they are left out of "
        f"all checks. First: {first['file']}: {first['why']}"
    )
    numbers = {"left out": len(failures)}
    return pixels, kept, Check("files", "warn", says, first["fix"], numbers, failures)


def _headers(files: Sequence[Path]) -> pd.DataFrame:
    """Format, bit depth, colour, width and height from the head of each file; no
    pixels are read."""
    from PIL import Image

    found = []
    for file in files:
        row = {
            "file_format": file.suffix.lower().lstrip("."),
            "bit_depth": -1,
            "colour": "",
            "width_px": -1,
            "height_px": -1,
        }
        try:
            with Image.open(file) as image:
                row["bit_depth"] = BITS.get(image.mode, -1)
                row["width_px"] = image.width
                row["height_px"] = image.height
                row["colour"] = "grey" if image.mode.startswith(GREY) else "colour"
        except (OSError, Image.DecompressionBombError):
            pass  # the reader could (BigTIFF ...): the pixels are checked
        found.append(row)
    return pd.DataFrame(found)
