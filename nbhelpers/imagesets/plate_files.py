"""The user's own plates: IN Cell Analyzer folders and CellProfiler tables, one grey file per stain.

What cannot be used is left out field by field, and listed with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd

from nbhelpers.core.elsewhere import longest_end
from nbhelpers.core.errors import InputError, ParameterError, TableError, UnreadableImageError
from nbhelpers.core.files import sha256_of_file, special_file
from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.keys import one_spelling
from nbhelpers.core.tables import read_table
from nbhelpers.imagesets.folder import find_images, plain
from nbhelpers.imagesets.packed import NoUsableImageError, pack_images
from nbhelpers.imagesets.reader import read_image
from nbhelpers.phantoms.layouts import (
    AMYLOID_UM,
    CLASSES,
    FIELD_COLUMNS,
    STAINS,
    check_layout,
    read_layout,
    training_labels,
    treatment_names,
    well_name,
    with_wells,
)

WAVELENGTHS = {
    "Red - Cy5": "MAP2",
    "Blue - FITC": "PSD-95",
    "Green - dsRed": "Synaptophysin",
    "UV - DAPI": "Hoechst",
}
IN_CELL_PATTERN = "B - 4(fld 1 wv Red - Cy5 ...).tif"
MOST_SATURATED = 0.05  # of the pixels of a stain: beyond it structure is lost
# brightest value of cameras with 8, 10, 12, 14 and 16 bit
CAMERA_TOPS = (255, 1023, 4095, 16383, 65535)
BLOCK_PX = 8  # side of the blocks whose means tell structure from noise
# in brackets field, wavelength, z-plane and time point in any order, as in
# B - 4(fld 1 wv Red - Cy5 z 3 time 2 - 2636ms).tif
_IN_CELL = re.compile(
    r"(?P<well>(?:[A-Z]|A[A-F])\s*-\s*0?(?:[1-9]|[1-3]\d|4[0-8]))\s*"
    r"\((?=[^()]*?\bfld\s*(?P<field>\d+))"
    r"(?=[^()]*?\bwv\s+(?P<wavelength>[^-()]+?\s*-\s*[^\s()]+))(?=[^()]*?\bz\s*(?P<z>\d+)|)"
    r"(?=[^()]*?\bt(?:ime)?\s*(?P<t>\d+)|)[^()]*\)\.tiff?",
    re.IGNORECASE | re.ASCII,
)
# names of newer ones: row, column, field, channel, excitation, emission, z-plane, time point
_IN_CELL_7 = re.compile(
    r"(?P<well>(?:[A-Z]|A[A-F])_0?(?:[1-9]|[1-3]\d|4[0-8]))_f(?P<field>\d+)"
    r"_c\d+_x(?P<wavelength>[^_]+_m[^_]+?)"
    r"(?=.*_z(?P<z>\d+)|)(?=.*_t(?P<t>\d+)|)(?:_[a-z]+\d+)*\.tiff?",
    re.IGNORECASE | re.ASCII,
)
_PLANES = re.compile(
    r"\s*(?:(?P<how>sharpest|maximum)|(?:z\s*)?(?P<z>\d+))?[\s,]*(?:t\s*(?P<t>\d+))?\s*",
    re.ASCII,
)
PLANES = (
    "Set planes to sharpest, maximum or the number of a z-plane (z3), and add that of a time point "
    "(t2), as in 'sharpest t2'."
)
# Metadata_... of a LoadData table that number what a row is of
NUMBERS = {
    "z": ["planeid", "plane", "z", "slice", "frame"],
    "t": ["timepointid", "timepoint", "t"],
    "field": ["site", "field", "fieldid"],
}


def load_in_cell(
    path: str | Path,
    data_folder: str | Path,
    *,
    layout: str = "published",
    size_px: int = 0,
    planes: str = "",
    unlabelled: bool = False,
) -> ImageSet:
    """Plates of an IN Cell Analyzer: a folder per plate, see :func:`in_cell_files`."""
    wells = read_own_layout(layout)
    files, failures = in_cell_files(path)
    return from_files(
        files,
        wells,
        data_folder,
        size_px=size_px,
        planes=planes,
        unlabelled=unlabelled,
        failures=failures,
        source="your own plates, IN Cell Analyzer file names",
    )


def load_cellprofiler(
    path: str | Path,
    data_folder: str | Path,
    *,
    layout: str = "published",
    size_px: int = 0,
    planes: str = "",
    unlabelled: bool = False,
) -> ImageSet:
    """Plates of a CellProfiler LoadData table, see :func:`cellprofiler_files`. The layout
    "metadata" is that of its columns Metadata_Concentration_uM, Metadata_Amyloid_uM and
    Metadata_Compound.
    """
    files, own_layout = cellprofiler_files(path)
    where = f"{Path(path).name}, Metadata_*"
    own = layout == "metadata"
    return from_files(
        files,
        check_layout(own_layout, where, by_field=True) if own else read_own_layout(layout),
        data_folder,
        size_px=size_px,
        planes=planes,
        unlabelled=unlabelled,
        source="your own plates, CellProfiler LoadData table",
    )


def read_own_layout(layout: str) -> pd.DataFrame:
    """As :func:`nbhelpers.phantoms.layouts.read_layout`; without any well for "none"."""
    return read_layout().head(0) if layout == "none" else read_layout(layout)


def in_cell_files(data_dir: str | Path) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Table with path, name, plate (the folder), well, field, stain, z (plane) and t (time point)
    of IN Cell Analyzer files; and file, why and fix of what did not parse.

    A wavelength that no file has is listed with the latter. Raises InputError for a folder without
    such files.
    """
    rows = []
    failures = []
    known = {}
    for wavelength, stain in WAVELENGTHS.items():
        emission = wavelength.split(" - ")[1]
        known |= {plain(wavelength): stain, plain(emission * 2): stain}  # also "DAPI - DAPI"
    for path in find_images(data_dir):
        name = path.relative_to(data_dir).as_posix()
        found = _IN_CELL.fullmatch(path.name) or _IN_CELL_7.fullmatch(path.name)
        if not found:
            failures.append((name, "the name does not parse.", f"Expected {IN_CELL_PATTERN}"))
            continue
        wavelength = found["wavelength"].replace("_m", " - ")
        stain = known.get(plain(wavelength))
        if stain is None:
            fix = f"Known are {', '.join(WAVELENGTHS)}."
            failures.append((name, f"the wavelength {wavelength} is unknown.", fix))
            continue
        plate = path.parent.relative_to(data_dir).as_posix()
        rows.append(
            {
                "path": path,
                "name": name,
                "plate": Path(data_dir).resolve().name if plate == "." else plate,
                "well": well_name(found["well"]),
                "stain": stain,
                **{number: int(found[number] or 1) for number in NUMBERS},
            }
        )
    if not rows:
        first = f" First: {failures[0][0]}." if failures else ""
        raise InputError(
            data_dir,
            f"none of its {len(failures)} files has a name of an IN Cell Analyzer.{first}",
            f"Expected {IN_CELL_PATTERN}, one folder per plate.",
        )
    stains = {row["stain"] for row in rows}
    for wavelength, stain in WAVELENGTHS.items():
        if stain not in stains:
            why = f"no file has the wavelength {wavelength}."
            failures.append(
                (Path(data_dir).name, why, "Add its files, or carry on with the other stains.")
            )
    return pd.DataFrame(rows), failures


def cellprofiler_files(csv: str | Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table as of :func:`in_cell_files` from a LoadData CSV, and the layout that its metadata give,
    a row for each of its rows.

    Needs Metadata_Plate, Metadata_Well (or Metadata_Row and Metadata_Col) and one FileName_<stain>
    per stain, with PathName_<stain> or beside the CSV, or URL_<stain>; before each may stand
    Image_, and Orig before a stain. Of a path that is not there, the longest end that exists below
    the folder of the CSV is taken. Illumination functions and outlines are passed over.
    Metadata_Site or Metadata_Field numbers the fields, Metadata_PlaneID the z-planes,
    Metadata_TimepointID the time points. Raises TableError.
    """
    csv = Path(csv)
    table = read_table(csv, "the LoadData table", "Give the CSV that CellProfiler loads.")
    rows = [f"{csv.name}, row {row}" for row in table.index]
    table = table.reset_index(drop=True)
    for kind in ("Metadata_", "URL_", "FileName_", "PathName_"):
        table.columns = [re.sub(f"(?i)^(Image_)?{kind}", kind, name) for name in table]
    files = {}
    for kind in ("URL_", "FileName_"):  # not of what was computed from an image
        for name in table.filter(regex=f"^{kind}(?!.*(?i:illum|outline|mask))"):
            stain = re.sub(f"{kind}(?i:orig)?", "", name, count=1)
            if stain in files:
                first, second = (
                    table[column].map(unquote).str.extract(r"([^\\/]*)$")
                    for column in (files[stain], name)
                )
                if not first.equals(second):
                    raise TableError(
                        csv,
                        f"{files[stain]} and {name} name different files.",
                        "Delete the wrong one.",
                    )
            files[stain] = name
    about = with_wells(table.filter(regex="^Metadata_").rename(columns=lambda name: name[9:]))
    if not (files and {"plate", "well"} <= set(about)):
        raise TableError(
            csv,
            f"there are the columns {list(table)}.",
            "Expected Metadata_Plate, Metadata_Well (or Metadata_Row and Metadata_Col), and "
            "FileName_ or URL_ with the name of each stain, as in FileName_DNA.",
        )
    within = table.filter(regex="^(Image_)?(Frame|Series)_")
    if not within.isin(["", "0"]).all(axis=None):
        raise TableError(
            csv,
            f"{list(within)} name planes within one file.",
            "Save each plane as a file of its own, and number it.",
        )
    for row, plate in zip(rows, about["plate"], strict=True):
        if not plate:
            raise TableError(row, "Metadata_Plate is empty.", "Name the plate of every row.")
    about["well"] = list(map(well_name, about["well"], rows))
    place = about[["plate", "well"]]
    for number, spellings in NUMBERS.items():
        column = next((name for name in about if plain(name) in spellings), None)
        # what numbers the images names no compound
        said = about.pop(column) if column else pd.Series("1", about.index)
        found = said.str.extract(r"^[^\W\d]*\s*(\d{1,9})(?:\.0*)?$", expand=False)
        for at in np.flatnonzero(found.isna()):
            raise TableError(
                rows[at],
                f"Metadata_{column} is {said[at]!r}.",
                "Give a number: one whole number of 0 or more, perhaps after letters.",
            )
        place = place.assign(**{number: found.astype(int)})
    if not column and place.duplicated().any():
        raise TableError(
            csv,
            "wells have several rows, and no column numbers their fields.",
            "Add Metadata_Site.",
        )
    ours = {plain(stain): stain for stain in STAINS} | {
        "dna": "Hoechst",
        "dapi": "Hoechst",
        "hoechst33342": "Hoechst",
    }
    names = {given: ours.get(plain(given), given) for given in files}
    if len(set(names.values())) < len(names) or len(names) > 5:
        raise TableError(csv, f"its stains are {list(files)}.", "Give 1 to 5 stains, each once.")
    parts = []
    for given, column in files.items():
        folder = "PathName_" + column.partition("_")[2]
        written = table[column]
        if folder in table:
            written = table[folder] + "/" + written
        part = place.assign(
            path=[longest_end(csv.parent, path) for path in written],
            name=pd.Series(rows) + ": " + table[column],
            stain=names[given],
        )
        parts.append(part[table[column] != ""])
    if not sum(map(len, parts)):
        raise TableError(
            csv,
            f"no row names a file in {', '.join(files.values())}.",
            "Give the names of the image files.",
        )
    return pd.concat(parts, ignore_index=True), about


def from_files(
    files: pd.DataFrame,
    layout: pd.DataFrame,
    data_folder: str | Path,
    *,
    size_px: int,
    source: str,
    planes: str = "",
    unlabelled: bool = False,
    failures: Sequence[tuple[str, str, str]] = (),
) -> ImageSet:
    """Fields from single files of one stain each: (n, stains, y, x), memory-mapped, uint8 or
    uint16; stains named as ours come in our order.

    ``files`` has path, name, plate, well, field, stain, z and t. ``planes`` says which of several
    z-planes and time points is the image: a stain is that plane ("z3"), for itself its sharpest
    one ("sharpest"), or its brightest value at each pixel ("maximum"), at that time point ("t2");
    a stain that has but one on its plate is taken as it is. Of ``unlabelled`` plates wells outside
    the layout are taken too: their compound and treatment are "unknown", their doses missing.

    A field is left out, and listed with the reason, when a stain or a plane of it is missing or
    stands twice, one of its files stands for something else too, its well is not in the layout, its
    stains differ in size, it differs from most fields in size or bit depth, a stain is saturated,
    of one grey, or unreadable, and when its whole well shows nothing but noise. Wells of the layout
    without a field, wells with fewer fields than most, and plates without a class are listed too,
    last: ``attrs`` of the failures have how many rows come before (``images``), and how many fields
    were ``given``. Raises TableError when nothing is left, and ParameterError where ``planes``
    leaves several planes or time points or none.
    """
    listed = list(failures)
    plates, joined = one_spelling(files["plate"], "plate", "plates")
    joined += layout.attrs.get("joined", [])
    # a plate of the layout and one of the files may be one in two spellings
    one_spelling({*plates, *layout.get("plate", [])}, "plate", "plates and layout")
    files = files.assign(plate=plates)
    stains = sorted(files["stain"].unique(), key=lambda stain: [*STAINS, stain].index(stain))
    files = files.assign(id=[f"{row.plate}/{row.well}/{row.field}" for row in files.itertuples()])
    given = files["id"].nunique()
    wells = layout.assign(compound=layout.get("compound", "candidate"))
    if "plate" not in wells:
        wells = wells.merge(files[["plate"]].drop_duplicates(), how="cross")
    if unlabelled:
        place = ["plate", "well"]
        some = files[place].drop_duplicates().assign(dose_uM="0", amyloid_uM="0")
        unknown = {"compound": "unknown", "dose_uM": np.nan, "amyloid_uM": np.nan}
        wells = pd.concat([wells, check_layout(some).assign(**unknown)])
        wells = wells[wells["plate"].isin(plates)].drop_duplicates(place, ignore_index=True)
    files, how = _chosen_planes(files, planes, listed)
    files = _only_whole_fields(files, stains, wells, listed)
    files = _only_alike(files, listed)
    # a second time when a file turned out unusable, so that whole fields follow one another
    while len(files):
        files = files.assign(at=files["stain"].map(stains.index)).sort_values(
            ["plate", "well", "field", "at", "z"], ignore_index=True
        )
        pixels, bad = _packed(files, size_px, how, Path(data_folder) / "packed")
        if not len(bad):
            pixels = pixels.reshape(-1, len(stains), *pixels.shape[-2:])
            bad = _wells_without_structure(files["id"].unique(), pixels)
        rows = bad[["file", "why", "fix"]].drop_duplicates()
        listed += rows.itertuples(index=False, name=None)
        if not len(bad):
            break
        files = files[~files["id"].isin(bad["id"])]
    if not len(files):
        last = f"{': '.join(listed[-1][:2])} {listed[-1][2]}"  # what emptied the set
        raise TableError("plates", "no field can be used.", last)
    table = files.drop_duplicates("id")[["id", "plate", "well", "field"]]
    about = {"given": given, "images": len(listed)}
    listed += _missing(table, wells)
    table = table.merge(wells, on=["plate", "well"], how="left", validate="many_to_one")
    table = table.assign(label=training_labels, group=table["plate"], treatment=treatment_names)[
        FIELD_COLUMNS
    ]
    listed += [] if unlabelled else _one_class(table)
    failures = failure_table(listed)
    failures.attrs = about
    return ImageSet(
        name="plates",
        table=table,
        pixels=pixels,
        classes=CLASSES,
        synthetic=False,
        source="; ".join((source, *[f"planes {planes}"] * bool(planes), *joined)),
        channels=tuple(stains),
        failures=failures,
    )


def _chosen_planes(
    files: pd.DataFrame, planes: str, listed: list[tuple[str, str, str]]
) -> tuple[pd.DataFrame, str | None]:
    """The files of the planes and the time point that were chosen, and how planes become one."""
    told = [
        f"{files[letter].nunique()} {what} ({files[letter].min()} to {files[letter].max()})"
        for letter, what in (("z", "z-planes"), ("t", "time points"))
    ]
    what = f"{planes!r} does not choose one of {' and '.join(told)}."
    refused = ParameterError("parameter planes", what, PLANES)
    chosen = _PLANES.fullmatch(planes.lower())
    if not chosen:
        raise refused
    left = files
    for letter in "tz":
        if chosen[letter]:
            several = left.groupby(["plate", "stain"])[letter].transform("nunique") > 1
            asked = left[letter] == int(chosen[letter])
            if not asked.any():
                raise refused
            left = left[asked | ~several]
        elif letter == "t" or not chosen["how"]:
            if left.groupby(["id", "stain"])[letter].nunique().max() > 1:
                raise refused
    why = f"it has no file for planes = {planes!r}."
    listed += [(key, why, "Choose another.") for key in sorted({*files["id"]} - {*left["id"]})]
    return left, chosen["how"]


def _only_whole_fields(
    files: pd.DataFrame, stains: Sequence[str], wells: pd.DataFrame, listed: list[dict]
) -> pd.DataFrame:
    """Fields of wells in the layout that have every stain once; the others are listed."""
    place = ["plate", "well"]
    outside = ~files.set_index(place).index.isin(wells.set_index(place).index)
    for (plate, well), rows in files[outside].groupby(place):
        why = f"the well is outside the layout ({len(rows)} files)."
        listed.append((f"{plate}/{well}", why, "Add it to the layout, or move its files away."))
    files = files[~outside]
    twice = files[files.duplicated(["id", "stain", "z"], keep=False)]
    for (key, stain), rows in twice.groupby(["id", "stain"]):
        why = f"the field stands twice: {' and '.join(rows['name'])}."
        listed.append(
            (f"{key}, {stain}", why, "Decide which file is right, and move the other away.")
        )
    files = files[~files["id"].isin(twice["id"])]
    real = files["path"].map(os.path.abspath)
    same = files[real.duplicated(keep=False)]
    for _, rows in same.groupby(real):
        stands = " and ".join(f"{row.id}, {row.stain}" for row in rows.itertuples())
        why = f"one file stands for {stands}."
        listed.append((rows["name"].iloc[0], why, "Name the file of each field, stain and plane."))
    files = files[~files["id"].isin(same["id"])]
    bad = []
    lacks = "is missing" if files["z"].nunique() == 1 else "or one of its planes is missing"
    for plate, here in files.groupby("plate"):
        counts = here.groupby(["id", "stain"]).size().unstack(fill_value=0)
        counts = counts.reindex(columns=stains, fill_value=0)
        lacking = {
            key: f"the stain {' and '.join(counts.columns[few])} {lacks}"
            for key, few in (counts < counts.mode().max().clip(lower=1)).iterrows()
            if few.any()
        }
        bad += lacking
        said = [(key, f"{why}.") for key, why in lacking.items()]
        if len(lacking) == len(counts) > 1 and len(set(lacking.values())) == 1:
            # once, not for every field
            said = [(plate, f"{next(iter(lacking.values()))} in all {len(lacking)} fields.")]
        listed += [(file, why, "Add its file, or leave the field out.") for file, why in said]
    return files[~files["id"].isin(bad)]


def _only_alike(files: pd.DataFrame, listed: list[dict]) -> pd.DataFrame:
    """Fields whose stains have one size, and the size and bit depth of most fields; the others are
    listed.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        files = files.assign(form=list(pool.map(_form, files["path"])))
    known = files[files["form"].notna()]  # unreadable files are named when they are read
    usual = known["form"].mode().tolist()[:1]
    bad = set()
    for key, rows in known.groupby("id"):
        forms = list(dict.fromkeys(rows["form"]))
        if forms == usual:
            continue
        bad.add(key)
        what = f"it is {forms[0]}, most fields are {usual[0]}."
        if len(forms) > 1:
            each = ", ".join(f"{row.stain} {row.form}" for row in rows.itertuples())
            what = f"its stains differ in size or bit depth: {each}."
        listed.append((key, what, "Export all fields and stains in the same size and bit depth."))
    return files[~files["id"].isin(bad)]


def _form(path: Path) -> str | None:
    """Size and bit depth from the header, in words; None where it is not plain (the reader says
    what is wrong).
    """
    from PIL import Image

    try:
        if special_file(path):  # to open it may take for ever
            return None
        with Image.open(path) as image:
            bits = 8 * (image.mode in ("1", "L", "P", "RGB")) or 16 * image.mode.startswith("I;16")
            return f"{image.width} x {image.height} px, {bits} bit" if bits else None
    except Exception:
        return None


def _packed(
    files: pd.DataFrame, size_px: int, how: str | None, cache: Path
) -> tuple[np.ndarray | None, pd.DataFrame]:
    """(fields x stains, 1, y, x), None where no file can be used, and the table of the fields with
    an unusable file: id, file, why, fix. ``how``: what becomes of several planes.
    """
    stacks = files.groupby(["id", "at"], sort=False)["path"].agg(list)
    stacks = {stack[0]: stack[1:] for stack in stacks}
    name = f"stain {size_px} px, 1"
    if how:
        name += f", {how} of {list(map(_digest, files['path']))}"

    def prepare(pixels: np.ndarray, path: Path) -> np.ndarray:
        planes = [pixels, *map(read_image, stacks[path])]
        if len({plane.shape for plane in planes}) > 1:
            raise UnreadableImageError(path, "its planes differ in size.", "Export them alike.")
        if how == "sharpest":
            # noise is the same in every plane
            planes = [max(planes, key=lambda plane: np.diff(plane.astype(np.float32)).var())]
        return prepare_stain(reduce(np.maximum, planes), path, size_px)

    files = files.drop_duplicates(["id", "at"], ignore_index=True)
    try:
        pixels, _, failures, _ = pack_images(
            list(stacks), prepare, prepare_name=name, cache_folder=cache
        )
    except NoUsableImageError as error:
        pixels = None
        failures = error.failures
    bad = files.loc[failures.index]
    return pixels, failures.assign(id=bad["id"], file=bad["name"])


def _digest(path: Path) -> str:
    try:
        return sha256_of_file(path)
    except OSError as error:  # the reader says so
        return str(error)


def prepare_stain(pixels: np.ndarray, path: object, size_px: int = 0) -> np.ndarray:
    """One stain of a field, (1, y, x), averaged over whole blocks to ``size_px``; the type stays.

    Raises UnreadableImageError for colour images, one grey value, saturation (more than 5 % of the
    pixels at the brightest value the camera can give), and a size that ``size_px`` does not divide.
    """
    if len(pixels) > 1 and (pixels == pixels[:1]).all():
        pixels = pixels[:1]
    if len(pixels) != 1:
        raise UnreadableImageError(
            path, f"the image has {len(pixels)} channels.", "Give one grey file per stain."
        )
    top = pixels.max()
    if pixels.min() == top:
        raise UnreadableImageError(
            path, f"every pixel has the value {top}: nothing is seen.", "Leave the field out."
        )
    share = float((pixels == top).mean())
    if int(top) in CAMERA_TOPS and share > MOST_SATURATED:
        raise UnreadableImageError(
            path,
            f"it is saturated: {100 * share:.0f} % of its pixels have the brightest value {top}.",
            "Expose less, or do not stretch the grey values; what is cut off is lost.",
        )
    return _reduced(pixels, path, size_px)


def _reduced(pixels: np.ndarray, path: object, size_px: int) -> np.ndarray:
    height, width = pixels.shape[-2:]
    if not size_px or (height, width) == (size_px, size_px):
        return pixels
    if height != width or height % size_px:
        raise UnreadableImageError(
            path,
            f"{width} x {height} px cannot be averaged to {size_px} px in whole blocks.",
            "Crop it to a square, and choose a size_px that divides its side; or set it to 0.",
        )
    block = height // size_px
    means = pixels.reshape(len(pixels), size_px, block, size_px, block).mean(axis=(2, 4))
    return np.rint(means).astype(pixels.dtype)


def _wells_without_structure(keys: np.ndarray, pixels: np.ndarray) -> pd.DataFrame:
    """Wells in which every stain of every field is nothing but noise; a row per field."""
    fields = pd.DataFrame({"id": keys, "file": [key.rsplit("/", 1)[0] for key in keys]})
    flat = pd.Series([all(_is_noise(plane) for plane in field) for field in pixels], dtype=bool)
    return fields[flat.groupby(fields["file"]).transform("all")].assign(
        why="the well is empty: its fields show nothing but noise.",
        fix="Check whether it was seeded and in focus; leave it out of the plate.",
    )


def _is_noise(plane: np.ndarray) -> bool:
    """Whether block means scatter about a smooth light no more than those of independent pixels
    would, times three.
    """
    height, width = (size // BLOCK_PX for size in plane.shape)
    whole = np.asarray(plane[: height * BLOCK_PX, : width * BLOCK_PX], np.float32)
    blocks = whole.reshape(height, BLOCK_PX, width, BLOCK_PX)
    means = blocks.mean(axis=(1, 3), dtype=np.float64).ravel()
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].reshape(2, -1)
    light = np.stack([np.ones(means.size), down, across, down**2, down * across, across**2], 1)
    light = light if means.size >= 16 else light[:, :1]
    free = means.size - light.shape[1]
    rest = means - light @ np.linalg.lstsq(light, means, rcond=None)[0]
    independent = blocks.var(axis=(1, 3)).mean() / BLOCK_PX**2
    return bool(free > 0 and (rest**2).sum() / free < 3 * independent)


def _missing(table: pd.DataFrame, wells: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Wells of the layout without a field, and with fewer fields than most."""
    counts = table.groupby(["plate", "well"]).size()
    usual = int(counts.mode().max())
    listed = []
    for plate, rows in wells.groupby("plate"):
        found = {well: counts.get((plate, well), 0) for well in rows["well"]}
        absent = [well for well, count in found.items() if not count]
        few = [f"{well} ({count})" for well, count in found.items() if 0 < count < usual]
        for names, what in (
            (absent, "no field"),
            (few, f"fewer than {usual} fields"),
        ):
            if names:
                many = f"{len(names)} well{'s' * (len(names) > 1)}"
                why = f"{what} in {many} of the layout: {', '.join(names)}."
                listed.append((plate, why, "Add what is missing, or carry on without it."))
    return listed


def _one_class(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Plates on which a class has no field, so that they cannot be tested on."""
    listed = []
    for plate, labels in table["label"].groupby(table["plate"]):
        for name, dose in zip(CLASSES, (0, AMYLOID_UM), strict=True):
            if name not in set(labels):
                why = (
                    f"no usable field is of the class {name}: no compound, {dose:g} uM "
                    "amyloid-beta."
                )
                listed.append(
                    (plate, why, "Check it; such a plate can train and be predicted, but not test.")
                )
    return listed
