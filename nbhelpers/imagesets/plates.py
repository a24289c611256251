"""Culture plates in several stains: phantoms, IN Cell Analyzer folders, CellProfiler tables,
BBBC021 cells.

One row of an image set is one field of a well, its channels are the stains. What a well was treated
with is data, a layout, see :mod:`nbhelpers.phantoms.layouts`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import (
    InputError,
    ParameterError,
    SplitError,
    TableError,
    UnreadableImageError,
)
from nbhelpers.core.files import sha256_of, whole_file
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.imagesets import folder
from nbhelpers.imagesets.packed import NoUsableImageError, pack_images
from nbhelpers.phantoms.layouts import (
    AMYLOID_UM,
    CLASSES,
    LAYOUT_FILE,
    STAINS,
    check_layout,
    read_layout,
    training_labels,
    treatment_names,
    well_name,
)

SOURCES = ("phantom", "in_cell", "cellprofiler", "bbbc021")
WAVELENGTHS = {
    "Red - Cy5": "MAP2",
    "Blue - FITC": "PSD-95",
    "Green - dsRed": "Synaptophysin",
    "UV - DAPI": "Hoechst",
}
IN_CELL_PATTERN = "B - 4(fld 1 wv Red - Cy5 ...).tif"
MOST_SATURATED = 0.05  # of the pixels of a stain: beyond it structure is lost
CAMERA_TOPS = (
    255,
    1023,
    4095,
    16383,
    65535,
)  # brightest value of cameras with 8, 10, 12, 14 and 16 bit
WELL_COLUMNS = ["plate", "well", "row", "column", "compound", "dose_uM", "amyloid_uM"]
COLUMNS = [
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
_IN_CELL = re.compile(
    r"(?P<well>[A-Za-z]{1,2}\s*-\s*\d{1,2})\s*\(\s*fld\s+(?P<field>\d+)\s+wv\s+"
    r"(?P<wavelength>[^-()]+?\s*-\s*[^\s()]+)[^()]*\)\.tiff?",
    re.IGNORECASE,
)


# Loading


def load_plates(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    layout: str = "published",
    size_px: int = 0,
    seed: int = 0,
    **phantom: object,
) -> ImageSet:
    """Fields of plates by the name of their source, pixels memory-mapped; group is the plate.

    Parameters
    ----------
    data : "phantom"; "in_cell" (a folder per plate with files named as by an IN Cell Analyzer:
        ``data_dir``); "cellprofiler" (``data_dir`` is a LoadData CSV with Metadata_*, FileName_*,
        PathName_*); "bbbc021" (a folder with ``cells.csv``, single cells in three stains, for
        checks only).
    layout : "published", or a CSV (see :func:`read_layout`): what each well holds. Of phantoms
        "published" or "randomised"; of "cellprofiler" "metadata" takes it from
        Metadata_Concentration_uM, Metadata_Amyloid_uM and Metadata_Compound.
    size_px : fields are averaged over whole blocks down to this height and width; 0: as they are
        (of phantoms 96).
    phantom : more parameters of :func:`nbhelpers.phantoms.plate.make_plates`.

    The table has ``id``, ``label`` (missing where a well is no training candidate), ``group``,
    ``plate``, ``well``, ``row``, ``column``, ``field``, ``treatment``, ``compound``, ``dose_uM``,
    ``amyloid_uM``, and of phantoms the injected truth. What is missing or left out is listed in
    ``failures``. Raises ParameterError, TableError and InputError.
    """
    if data not in SOURCES:
        raise ParameterError(
            "parameter data", f"{data!r} is unknown.", f"Known are {', '.join(SOURCES)}."
        )
    if data == "phantom":
        return _load_phantoms(
            data_folder, layout=layout, size_px=size_px or 96, seed=seed, **phantom
        )
    if phantom:
        raise ParameterError(
            f"parameter {next(iter(phantom))}",
            f"it is for phantoms, but data is {data!r}.",
            "Leave it out.",
        )
    if not data_dir:
        why = " This set is for checks only and is not downloaded." if data == "bbbc021" else ""
        raise ParameterError(
            "parameter data_dir",
            f"it is empty, but data is {data!r}.{why}",
            "Give the folder of the images, or the CSV that lists them.",
        )
    if data == "bbbc021":
        return load_bbbc021(data_dir, data_folder)
    if layout == "randomised" or (layout == "metadata" and data != "cellprofiler"):
        source = "phantoms" if layout == "randomised" else "cellprofiler"
        raise ParameterError(
            "parameter layout",
            f"{layout!r} is for {source}, but data is {data!r}.",
            "Give 'published', or a CSV with what each well of yours holds.",
        )
    if data == "in_cell":
        files, failures = in_cell_files(data_dir)
        stains = tuple(stain for stain in STAINS if stain in set(files["stain"]))
        return from_files(
            files,
            stains,
            read_layout(layout),
            data_folder,
            size_px=size_px,
            failures=failures,
            name="plates",
            source="your own plates, IN Cell Analyzer file names",
        )
    files, stains, own_layout = cellprofiler_files(data_dir)
    wells = (
        check_layout(own_layout, f"{Path(data_dir).name}, Metadata_*")
        if layout == "metadata"
        else read_layout(layout)
    )
    return from_files(
        files,
        stains,
        wells,
        data_folder,
        size_px=size_px,
        name="plates",
        source="your own plates, CellProfiler LoadData table",
    )


def _load_phantoms(data_folder: str | Path, **parameters) -> ImageSet:
    """Drawn once and kept: found again by the parameters and by the source text of the phantom."""
    from nbhelpers.phantoms import plate

    drawn_by = [
        hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for path in (plate.__file__, LAYOUT_FILE)
    ]
    kept = Path(data_folder) / "phantoms" / f"plates-{sha256_of([drawn_by, parameters])[:32]}"
    if not (kept / "table.parquet").is_file():
        made = plate.make_plates(**parameters)
        with whole_file(kept / "pixels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, made.pixels)
        with whole_file(kept / "table.parquet") as temporary:
            made.table.to_parquet(temporary, index=False)
    table = pd.read_parquet(kept / "table.parquet")
    return ImageSet(
        name="plate phantoms",
        table=table,
        pixels=np.load(kept / "pixels.npy", mmap_mode="r"),
        classes=CLASSES,
        synthetic=True,
        channels=STAINS,
        pixel_size_nm=(plate.PIXEL_NM, plate.PIXEL_NM),
        source=f"{table['plate'].nunique()} synthetic plates drawn by nbhelpers.phantoms.plate, "
        + ", ".join(f"{name} {value}" for name, value in sorted(parameters.items())),
    )


def in_cell_files(
    data_dir: str | Path, wavelengths: Mapping[str, str] = WAVELENGTHS
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Table with path, name, plate (the folder), well, field, stain of IN Cell Analyzer files; and
    what did not parse.

    A wavelength that no file has is listed with the latter. Raises InputError for a folder without
    such files.
    """
    rows = []
    failures = []
    known = {re.sub(r"\s", "", key).lower(): stain for key, stain in wavelengths.items()}
    for path in folder.find_images(data_dir):
        name = path.relative_to(data_dir).as_posix()
        found = _IN_CELL.fullmatch(path.name)
        if not found:
            failures.append(
                {
                    "file": name,
                    "why": "the name does not parse.",
                    "fix": f"Expected {IN_CELL_PATTERN}",
                }
            )
            continue
        stain = known.get(re.sub(r"\s", "", found["wavelength"]).lower())
        if stain is None:
            failures.append(
                {
                    "file": name,
                    "why": f"the wavelength {found['wavelength']} is unknown.",
                    "fix": f"Known are {', '.join(wavelengths)}.",
                }
            )
            continue
        plate = path.parent.relative_to(data_dir).as_posix()
        rows.append(
            {
                "path": path,
                "name": name,
                "plate": Path(data_dir).resolve().name if plate == "." else plate,
                "well": well_name(found["well"]),
                "field": int(found["field"]),
                "stain": stain,
            }
        )
    if not rows:
        first = f" First: {failures[0]['file']}." if failures else ""
        raise InputError(
            data_dir,
            f"none of its {len(failures)} files has a name of an IN Cell Analyzer.{first}",
            f"Expected {IN_CELL_PATTERN}, one folder per plate.",
        )
    absent = [
        wavelength
        for wavelength, stain in wavelengths.items()
        if stain not in {row["stain"] for row in rows}
    ]
    failures += [
        {
            "file": Path(data_dir).name,
            "why": f"no file has the wavelength {wavelength}.",
            "fix": "Add its files, or carry on with the other stains.",
        }
        for wavelength in absent
    ]
    return pd.DataFrame(rows), _failure_table(failures)


def cellprofiler_files(csv: str | Path) -> tuple[pd.DataFrame, tuple[str, ...], pd.DataFrame]:
    """Table as of :func:`in_cell_files` from a LoadData CSV, its stains, and the layout that its
    metadata give.

    Needs Metadata_Plate, Metadata_Well and one FileName_<stain> per stain, with PathName_<stain> or
    beside the CSV; Metadata_Site or Metadata_Field numbers the fields. Stains named as ours come in
    our order. Raises TableError.
    """
    csv = Path(csv)
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise TableError(
            csv,
            f"the LoadData table cannot be read ({error}).",
            "Give the CSV that CellProfiler loads.",
        ) from None
    files = {name.removeprefix("FileName_"): name for name in table if name.startswith("FileName_")}
    absent = [name for name in ("Metadata_Plate", "Metadata_Well") if name not in table] + (
        [] if files else ["FileName_*"]
    )
    if absent:
        raise TableError(
            csv,
            f"the columns {absent} are missing; there are {list(table.columns)}.",
            "Expected Metadata_Plate, Metadata_Well, Metadata_Site, FileName_<stain>, "
            "PathName_<stain>.",
        )
    if table.empty:
        raise TableError(csv, "the LoadData table has no rows.", "Copy it again from its source.")
    nameless = np.flatnonzero(table["Metadata_Plate"].str.strip() == "")
    if len(nameless):
        raise TableError(
            f"{csv.name}, row {nameless[0] + 2}",
            "Metadata_Plate is empty.",
            "Name the plate of every row.",
        )
    site = next((name for name in ("Metadata_Site", "Metadata_Field") if name in table), None)
    if site is None and table.duplicated(["Metadata_Plate", "Metadata_Well"]).any():
        raise TableError(
            csv,
            "wells have several rows, and no column numbers their fields.",
            "Add Metadata_Site.",
        )
    fields = (
        table[site].str.extract(r"(\d+)", expand=False) if site else pd.Series("1", table.index)
    )
    if fields.isna().any():
        row = int(np.flatnonzero(fields.isna())[0])
        raise TableError(
            f"{csv.name}, row {row + 2}", f"{site} is {table[site].iloc[row]!r}.", "Give a number."
        )
    ours = {_plain(stain): stain for stain in STAINS} | {
        "dna": "Hoechst",
        "dapi": "Hoechst",
        "hoechst33342": "Hoechst",
    }
    names = {given: ours.get(_plain(given), given) for given in files}
    stains = tuple(
        sorted(
            names.values(),
            key=lambda stain: STAINS.index(stain) if stain in STAINS else len(STAINS),
        )
    )
    if len(set(stains)) < len(stains) or len(stains) > 5:
        raise TableError(csv, f"its stains are {list(files)}.", "Give 1 to 5 stains, each once.")
    wells = [
        well_name(text, f"{csv.name}, row {row + 2}")
        for row, text in enumerate(table["Metadata_Well"])
    ]
    parts = []
    for given, column in files.items():
        folders = table.get(f"PathName_{given}", pd.Series("", table.index))
        parts.append(
            pd.DataFrame(
                {
                    "path": [
                        csv.parent / place / name
                        for place, name in zip(folders, table[column], strict=True)
                    ],
                    "name": [
                        f"{csv.name}, row {row + 2}: {name}"
                        for row, name in enumerate(table[column])
                    ],
                    "plate": table["Metadata_Plate"],
                    "well": wells,
                    "field": fields.astype(int),
                    "stain": names[given],
                }
            )
        )
        parts[-1] = parts[-1][table[column] != ""]
    if not sum(map(len, parts)):
        raise TableError(
            csv,
            f"no row names a file in {', '.join(files.values())}.",
            "Give the names of the image files.",
        )
    about = {
        "dose_uM": "Metadata_Concentration_uM",
        "amyloid_uM": "Metadata_Amyloid_uM",
        "compound": "Metadata_Compound",
    }
    layout = pd.DataFrame(
        {
            "plate": table["Metadata_Plate"],
            "well": wells,
            **{name: table[column] for name, column in about.items() if column in table},
        }
    )
    return pd.concat(parts, ignore_index=True), stains, layout.drop_duplicates(ignore_index=True)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _failure_table(rows: list[dict]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["file", "why", "fix"], dtype=object)


def from_files(
    files: pd.DataFrame,
    stains: Sequence[str],
    layout: pd.DataFrame,
    data_folder: str | Path,
    *,
    size_px: int = 0,
    failures: pd.DataFrame | None = None,
    name: str = "plates",
    source: str = "",
) -> ImageSet:
    """Fields from single files of one stain each: (n, stains, y, x), memory-mapped, uint8 or
    uint16.

    ``files`` has path, name, plate, well, field, stain. A field is left out, and listed with the
    reason, when a stain is missing or stands twice, one of its files stands for something else too,
    its well is not in the layout, its stains differ in size, it differs from most fields in size or
    bit depth, a stain is saturated, of one grey, or unreadable, and when its whole well shows
    nothing but noise. Wells of the layout without a field, wells with fewer fields than most, and
    plates without a class are listed too. Raises TableError when nothing is left.
    """
    listed = [] if failures is None else failures.to_dict("records")
    files = files.assign(key=[f"{row.plate}/{row.well}/{row.field}" for row in files.itertuples()])
    wells = _wells_of(layout, sorted(set(files["plate"])))
    files = _only_whole_fields(files, stains, wells, listed)
    files = _only_alike(files, listed)
    order = {stain: at for at, stain in enumerate(stains)}
    pixels = np.zeros((0, len(stains), 1, 1), np.uint8)
    while len(
        files
    ):  # a second time when a file turned out unusable, so that the fields lie whole in one file
        files = files.assign(at=files["stain"].map(order)).sort_values(
            ["plate", "well", "field", "at"], ignore_index=True
        )
        pixels, bad = _packed(files, size_px, Path(data_folder) / "packed")
        if not len(bad):
            pixels = pixels.reshape(-1, len(stains), *pixels.shape[-2:])
            bad = _wells_without_structure(files["key"].to_numpy()[:: len(stains)], pixels)
        listed += bad.drop(columns="key").drop_duplicates().to_dict("records")
        if not len(bad):
            break
        files = files[~files["key"].isin(bad["key"])]
    if not len(files):
        first = (
            f"First: {listed[0]['file']}: {listed[0]['why']} {listed[0]['fix']}"
            if listed
            else "There are no files."
        )
        raise TableError(name, "no field can be used.", first)
    table = files.drop_duplicates("key")[["key", "plate", "well", "field"]].rename(
        columns={"key": "id"}
    )
    listed += _missing(table, wells)
    table = _finished(table.merge(wells, on=["plate", "well"], how="left", validate="many_to_one"))
    listed += _one_class(table)
    return ImageSet(
        name=name,
        table=table,
        pixels=pixels,
        classes=CLASSES,
        synthetic=False,
        source=source,
        channels=tuple(stains),
        failures=_failure_table(listed),
    )


def _wells_of(layout: pd.DataFrame, plates: Sequence[str]) -> pd.DataFrame:
    """The layout once for every plate, unless it names plates itself."""
    if "plate" not in layout:
        layout = pd.concat([layout.assign(plate=plate) for plate in plates], ignore_index=True)
    layout = layout[layout["plate"].isin(plates)]
    return layout.assign(compound=layout.get("compound", "candidate"))[WELL_COLUMNS]


def _finished(table: pd.DataFrame) -> pd.DataFrame:
    table = table.reset_index(drop=True)
    table["label"], table["group"], table["treatment"] = (
        training_labels(table),
        table["plate"],
        treatment_names(table),
    )
    return table[[*COLUMNS, *(name for name in table if name not in COLUMNS)]]


def _only_whole_fields(
    files: pd.DataFrame, stains: Sequence[str], wells: pd.DataFrame, listed: list[dict]
) -> pd.DataFrame:
    """Fields of wells in the layout that have every stain once; the others are listed."""
    in_layout = set(zip(wells["plate"], wells["well"], strict=True))
    bad = set()
    for (plate, well), rows in files.groupby(["plate", "well"]):
        if (plate, well) not in in_layout:
            bad.update(rows["key"])
            listed.append(
                {
                    "file": f"{plate}/{well}",
                    "why": f"the well is outside the layout ({len(rows)} files).",
                    "fix": "Add it to the layout, or move its files away.",
                }
            )
    twice = files[files.duplicated(["key", "stain"], keep=False) & ~files["key"].isin(bad)]
    for (key, stain), rows in twice.groupby(["key", "stain"]):
        bad.add(key)
        listed.append(
            {
                "file": f"{key}, {stain}",
                "why": f"the field stands twice: {' and '.join(rows['name'])}.",
                "fix": "Decide which file is right, and move the other away.",
            }
        )
    files = files.assign(place=[os.path.abspath(path) for path in files["path"]])
    same = files[files.duplicated("place", keep=False) & ~files["key"].isin(bad)]
    for _, rows in same.groupby("place"):
        bad.update(rows["key"])
        stands = " and ".join(f"{row.key}, {row.stain}" for row in rows.itertuples())
        listed.append(
            {
                "file": rows["name"].iloc[0],
                "why": f"one file stands for {stands}.",
                "fix": "Name the file of each field and stain.",
            }
        )
    for plate, here in files[~files["key"].isin(bad)].groupby("plate"):
        absent = {
            key: [stain for stain in stains if stain not in set(had)]
            for key, had in here.groupby("key")["stain"]
        }
        lacking = {
            key: f"the stain {' and '.join(names)} is missing"
            for key, names in absent.items()
            if names
        }
        bad.update(lacking)
        whole = (
            len(lacking) == len(absent) > 1 and len(set(lacking.values())) == 1
        )  # said once, not for every field
        said = (
            [(plate, f"{next(iter(lacking.values()))} in all {len(lacking)} fields.")]
            if whole
            else [(key, f"{why}.") for key, why in lacking.items()]
        )
        listed += [
            {"file": file, "why": why, "fix": "Add its file, or leave the field out."}
            for file, why in said
        ]
    return files[~files["key"].isin(bad)].drop(columns="place")


def _only_alike(files: pd.DataFrame, listed: list[dict]) -> pd.DataFrame:
    """Fields whose stains have one size, and the size and bit depth of most fields; the others are
    listed.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        files = files.assign(form=list(pool.map(_form, files["path"])))
    known = files[files["form"].notna()]  # unreadable files are named when they are read
    if known.empty:
        return files.drop(columns="form")
    usual = known["form"].mode().iloc[0]
    bad = set()
    for key, rows in known.groupby("key"):
        forms = list(dict.fromkeys(rows["form"]))
        if forms == [usual]:
            continue
        bad.add(key)
        what = f"it is {forms[0]}, most fields are {usual}."
        fix = "All fields of a set need the same size and bit depth."
        if len(forms) > 1:
            each = ", ".join(f"{row.stain} {row.form}" for row in rows.itertuples())
            what = f"its stains differ in size or bit depth: {each}."
            fix = "Export all stains of a field alike."
        listed.append({"file": key, "why": what, "fix": fix})
    return files[~files["key"].isin(bad)].drop(columns="form")


def _form(path: Path) -> str | None:
    """Size and bit depth from the header, in words; None where it is not plain (the reader says
    what is wrong).
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            bits = {"1": 8, "L": 8, "P": 8, "RGB": 8}.get(
                image.mode, 16 if image.mode.startswith("I;16") else None
            )
            return f"{image.width} x {image.height} px, {bits} bit" if bits else None
    except Exception:
        return None


def _packed(files: pd.DataFrame, size_px: int, cache: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """(files, 1, y, x) and the table of the fields with an unusable file: key, file, why, fix."""
    try:
        pixels, _, failures, _ = pack_images(
            files["path"].tolist(),
            lambda image, path: prepare_stain(image, path, size_px),
            prepare_name=f"stain {size_px} px, 1",
            cache_folder=cache,
        )
    except NoUsableImageError as error:
        pixels = np.zeros((0, 1, 1, 1), np.uint8)
        failures = error.failures
    by_path = {
        str(row.path): (row.key, row.name_)
        for row in files.rename(columns={"name": "name_"}).itertuples()
    }
    rows = [
        {"key": by_path[file][0], "file": by_path[file][1], "why": why, "fix": fix}
        for file, why, fix in failures[["file", "why", "fix"]].itertuples(index=False)
    ]
    return pixels, pd.DataFrame(rows, columns=["key", "file", "why", "fix"], dtype=object)


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
        fix = (
            f"Choose a size_px that divides {height}."
            if height == width
            else ("Crop it to a square, or set size_px to 0.")
        )
        raise UnreadableImageError(
            path, f"{width} x {height} px cannot be averaged to {size_px} px in whole blocks.", fix
        )
    block = height // size_px
    means = pixels.reshape(len(pixels), size_px, block, size_px, block).mean(axis=(2, 4))
    return np.rint(means).astype(pixels.dtype)


def _wells_without_structure(keys: np.ndarray, pixels: np.ndarray) -> pd.DataFrame:
    """Wells in which every stain of every field is nothing but noise; a row per field."""
    wells = np.array([key.rsplit("/", 1)[0] for key in keys])
    flat = np.array([all(_is_noise(plane) for plane in field) for field in pixels])
    empty = [well for well in dict.fromkeys(wells) if flat[wells == well].all()]
    return pd.DataFrame(
        [
            {
                "key": key,
                "file": well,
                "why": "the well is empty: its fields show nothing but noise.",
                "fix": "Check whether it was seeded and in focus; leave it out of the plate.",
            }
            for key, well in zip(keys, wells, strict=True)
            if well in empty
        ],
        columns=["key", "file", "why", "fix"],
        dtype=object,
    )


def _is_noise(plane: np.ndarray, block: int = 8) -> bool:
    """Whether block means scatter about a smooth light no more than those of independent pixels
    would, times three.
    """
    height, width = (size // block for size in plane.shape)
    blocks = np.asarray(plane[: height * block, : width * block], np.float32).reshape(
        height, block, width, block
    )
    means = blocks.mean(axis=(1, 3), dtype=np.float64).ravel()
    down, across = (
        axis.ravel()
        for axis in np.meshgrid(
            *(np.linspace(-1, 1, size) for size in (height, width)), indexing="ij"
        )
    )
    light = np.stack([np.ones(means.size), down, across, down**2, down * across, across**2], 1)
    light = light if means.size >= 16 else light[:, :1]
    free = means.size - light.shape[1]
    rest = means - light @ np.linalg.lstsq(light, means, rcond=None)[0]
    return bool(free > 0 and (rest**2).sum() / free < 3 * blocks.var(axis=(1, 3)).mean() / block**2)


def _missing(table: pd.DataFrame, wells: pd.DataFrame) -> list[dict]:
    """Wells of the layout without a field, and with fewer fields than most."""
    counts = table.groupby(["plate", "well"]).size()
    usual = int(counts.mode().max())
    listed = []
    for plate, rows in wells.groupby("plate"):
        absent = [well for well in rows["well"] if (plate, well) not in counts.index]
        if absent:
            listed.append(
                {
                    "file": plate,
                    "why": f"{len(absent)} wells of the layout have no field: {', '.join(absent)}.",
                    "fix": "Add their images, or carry on without them.",
                }
            )
        few = [
            f"{well} ({counts[plate, well]})"
            for well in rows["well"]
            if counts.get((plate, well), usual) < usual
        ]
        if few:
            listed.append(
                {
                    "file": plate,
                    "why": f"{len(few)} wells have fewer than {usual} fields: {', '.join(few)}.",
                    "fix": "Add the missing fields, or carry on without them.",
                }
            )
    return listed


def _one_class(table: pd.DataFrame) -> list[dict]:
    """Plates on which a class has no field, so that they cannot be tested on."""
    found = table["label"].groupby(table["plate"]).agg(lambda labels: set(labels.dropna()))
    dose = dict(zip(CLASSES, (0, AMYLOID_UM), strict=True))
    return [
        {
            "file": plate,
            "why": f"no usable field is of the class {name}: no compound, {dose[name]:g} uM "
            f"amyloid-beta.",
            "fix": "Check the layout; such a plate can train, but not test.",
        }
        for plate, kinds in found.items()
        for name in CLASSES
        if name not in kinds
    ]


def load_bbbc021(data_dir: str | Path, data_folder: str | Path) -> ImageSet:
    """Single MCF7 cells of BBBC021 (Caie et al. 2010), DMSO against cycloheximide, from a folder
    with ``cells.csv``.

    (n, 3, 68, 68) uint16: DAPI, tubulin, actin. For checks only: it is not downloaded. DMSO always
    is in well B02, so position tells the label. Raises TableError when ``cells.csv`` is absent or
    other.
    """
    csv = Path(data_dir) / "cells.csv"
    given = {
        "Metadata_Plate": "plate",
        "Metadata_Well": "well",
        "Metadata_Site": "field",
        "Metadata_Cell": "cell",
        "Metadata_Compound": "compound",
        "Metadata_Concentration_uM": "dose_uM",
        "FileName": "file",
    }
    try:
        table = pd.read_csv(
            csv, dtype={name: str for name in given if name != "Metadata_Concentration_uM"}
        )
    except (OSError, ValueError) as error:
        raise TableError(
            csv,
            f"the table of cells cannot be read ({error}).",
            "Give the folder that holds cells.csv.",
        ) from None
    absent = [name for name in given if name not in table]
    if absent:
        raise TableError(csv, f"the columns {absent} are missing.", f"Expected {list(given)}.")
    table = table.rename(columns=given)
    pixels, kept, failures, _ = pack_images(
        [csv.parent / name for name in table["file"]],
        _three_stains,
        prepare_name="bbbc021 cell, 1",
        cache_folder=Path(data_folder) / "packed",
    )
    table = table.iloc[kept].reset_index(drop=True).assign(amyloid_uM=0.0)
    table["id"] = [Path(name).stem for name in table["file"]]
    table["well"] = [well_name(text) for text in table["well"]]
    table["row"], table["column"] = table["well"].str[0], table["well"].str[1:].astype(np.int64)
    table["label"], table["group"] = table["compound"], table["plate"]
    table["treatment"] = np.where(
        table["dose_uM"] > 0, table["compound"] + table["dose_uM"].map(" {:g} uM".format), "none"
    )
    return ImageSet(
        name="BBBC021 cells",
        table=table[[*COLUMNS, "cell"]],
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


# Before training


def plate_summary(images: ImageSet) -> pd.DataFrame:
    """One row per plate: compounds, wells, fields, fields of each class and without label."""
    table = images.table
    grouped = table.groupby("plate")
    found = pd.DataFrame(
        {
            "compounds": grouped["compound"].agg(lambda names: ", ".join(sorted(set(names)))),
            "wells": grouped["well"].nunique(),
            "fields": grouped.size(),
        }
    )
    for name in images.classes:
        found[name] = (table["label"] == name).groupby(table["plate"]).sum()
    found["not for training"] = table["label"].isna().groupby(table["plate"]).sum()
    return found.reset_index()


def normalise_to_controls(
    images: ImageSet,
    *,
    wells: str = "controls",
    low: float = 1.0,
    high: float = 99.8,
    cache_folder: str | Path | None = None,
) -> ImageSet:
    """The same fields with the stains of each plate brought to one scale, one straight line per
    plate and stain.

    ``wells`` says which wells of a plate set the line: "controls": all wells without compound, with
    and without amyloid-beta TAKEN TOGETHER, which the layout tells without a label; "all": every
    well. No label is looked at, of training or of test plates, and all wells of a plate get the
    same line, so that differences within a plate stay. The means over these fields of the
    percentiles ``low`` and ``high`` go to 5 % and 70 % of the range of the type: brighter fields
    have room. The table gains ``clipped`` (share of the field's pixels beyond the range). With a
    ``cache_folder`` the pixels are memory-mapped, else in memory. Raises InputError for a plate
    without such wells, and ParameterError where they are one of the classes, as DMSO is: the scale
    would then show the label.
    """
    if wells not in ("controls", "all"):
        raise ParameterError(
            "parameter wells", f"{wells!r} is unknown.", "Give 'controls' or 'all'."
        )
    table = images.table
    top = np.iinfo(images.pixels.dtype).max
    chosen = (table["dose_uM"] == 0).to_numpy() | (wells == "all")
    if set(images.labels[chosen]) - {-1} != set(images.labels) - {-1}:
        raise ParameterError(
            "parameter wells",
            "the wells without compound are one of the classes here, so a scale set by "
            "them would show the label.",
            "Give 'all' (in notebook 06: normalise).",
        )
    lines = {}
    for plate in table["plate"].unique():
        rows = np.flatnonzero(chosen & (table["plate"] == plate).to_numpy())
        if not len(rows):
            raise InputError(
                f"plate {plate}",
                "it has no well without compound to normalise to.",
                "Use wells='all', or leave the plate out.",
            )
        ends = np.mean(
            [np.percentile(images.pixels[row], [low, high], axis=(1, 2)) for row in rows], axis=0
        )
        gain = 0.65 * top / np.maximum(ends[1] - ends[0], 1e-6)
        lines[plate] = gain[:, None, None], (0.05 * top - gain * ends[0])[:, None, None]
    pixels = _line_by_plate(images, lines, cache_folder)
    clipped = np.zeros(len(images))
    for row, values in enumerate(pixels):
        clipped[row] = ((values == 0) | (values == top)).mean()
    used = (
        "all wells"
        if wells == "all"
        else "the wells without compound (with and without amyloid-beta together)"
    )
    return replace(
        images,
        pixels=pixels,
        table=table.assign(clipped=clipped),
        content_hash="",
        source=f"{images.source}; each plate and stain scaled by {used}",
    )


def _line_by_plate(images: ImageSet, lines: Mapping, cache_folder: str | Path | None) -> np.ndarray:
    top = np.iinfo(images.pixels.dtype).max
    dtype = images.pixels.dtype
    shape = images.pixels.shape

    def fill(pixels: np.ndarray) -> np.ndarray:
        for row, plate in enumerate(images.table["plate"]):
            gain, offset = lines[plate]
            pixels[row] = np.clip(np.rint(images.pixels[row] * gain + offset), 0, top).astype(dtype)
        return pixels

    if cache_folder is None:
        return fill(np.empty(shape, dtype))
    path = (
        Path(cache_folder)
        / f"{sha256_of([1, images.content_hash, {str(key): lines[key] for key in lines}])[:32]}.npy"
    )
    if not path.is_file():
        with whole_file(path) as temporary:
            fill(np.lib.format.open_memmap(temporary, "w+", dtype, shape)).flush()
    return np.load(path, mmap_mode="r")


def split_by_plate(
    images: ImageSet,
    *,
    test: int | Sequence[str] = 1,
    validation: int | Sequence[str] = 1,
    seed: int = 0,
) -> Split:
    """Whole plates for test, other whole plates for validation, the rest for training; only
    labelled fields are split.

    ``test``, ``validation``: how many plates (drawn by ``seed``), or their names. Raises SplitError
    for unknown plates, a plate named for both, too few plates, and a plate of one class only among
    those for test or validation.
    """
    from nbhelpers.core.seeds import derive_seed

    kinds = _classes_on_plates(images)
    for name in [
        name for given in (test, validation) if not isinstance(given, int) for name in given
    ]:
        if name not in kinds:
            raise SplitError(
                f"plate {name}",
                "there is no such plate with labelled fields.",
                f"There are {sorted(kinds)}.",
            )
        if len(kinds[name]) < len(images.classes):
            raise SplitError(
                f"plate {name}",
                f"it has only the class {' and '.join(sorted(kinds[name]))}, so nothing can "
                "be told apart on it.",
                "Use it for training, and plates with both classes for test.",
            )
    named = [name for given in (test, validation) if not isinstance(given, int) for name in given]
    if len(set(named)) < len(named):
        twice = next(name for name in named if named.count(name) > 1)
        raise SplitError(
            f"plate {twice}",
            "it is named twice.",
            "A plate is for test or for validation, not both.",
        )
    free = [
        name
        for name in sorted(kinds)
        if len(kinds[name]) == len(images.classes) and name not in named
    ]
    free = list(np.random.default_rng(derive_seed(seed, "plates")).permutation(free))
    part = dict.fromkeys(kinds, "train")
    for name, given in (("test", test), ("validation", validation)):
        if isinstance(given, int) and given > len(free):
            raise SplitError(
                images.name,
                f"{given} plates for {name} are asked for, but only {len(free)} with both "
                "classes are left.",
                "Use fewer plates for test and validation, or add plates.",
            )
        chosen = [free.pop(0) for _ in range(given)] if isinstance(given, int) else given
        part.update(dict.fromkeys(chosen, name))
    left = {label for name, which in part.items() if which == "train" for label in kinds[name]}
    if len(left) < len(images.classes):
        raise SplitError(
            images.name,
            f"the training plates hold {sorted(left) or 'no class'} only.",
            "Leave more plates for training.",
        )
    return Split(_part_table(images, part, 0), "grouped: hold-out of whole plates", seed)


def leave_one_plate_out(images: ImageSet, *, seed: int = 0) -> Split:
    """Each plate with every class is the test part of one fold; another such plate, if one is left,
    validates.

    Where only one plate with every class remains beside the test plate, it is needed for training,
    and a plate of one class validates if there is one (``protocol`` says so). Raises SplitError for
    fewer than two plates with every class.
    """
    kinds = _classes_on_plates(images)
    whole = [name for name in sorted(kinds) if len(kinds[name]) == len(images.classes)]
    one_class = [name for name in sorted(kinds) if name not in whole]
    if len(whole) < 2:
        raise SplitError(
            images.name,
            f"only {len(whole)} plates have every class.",
            "Leaving one out needs two or more.",
        )
    tables = []
    for fold, tested in enumerate(whole):
        others = (
            [whole[(fold + step) % len(whole)] for step in range(1, len(whole))]
            if len(whole) > 2
            else one_class
        )
        part = (
            dict.fromkeys(kinds, "train")
            | dict.fromkeys(others[:1], "validation")
            | {tested: "test"}
        )
        tables.append(_part_table(images, part, fold))
    note = "" if len(whole) > 2 else ", validation plates have one class only"
    return Split(pd.concat(tables, ignore_index=True), f"grouped: leave one plate out{note}", seed)


def _classes_on_plates(images: ImageSet) -> dict[str, set[str]]:
    labelled = images.table[images.table["label"].notna()]
    return {str(plate): set(rows["label"]) for plate, rows in labelled.groupby("plate")}


def _part_table(images: ImageSet, part: Mapping[str, str], fold: int) -> pd.DataFrame:
    rows = np.flatnonzero(images.labels >= 0)
    plates = images.groups[rows]
    return pd.DataFrame(
        {
            "repeat": 0,
            "fold": fold,
            "part": [part[plate] for plate in plates],
            "id": images.ids[rows],
            "group": plates,
        }
    )


def parts_of_plates(images: ImageSet, split: Split, repeat: int = 0, fold: int = 0) -> np.ndarray:
    """(n,) text: "train", "validation" or "test" as the plate of each field was used, also of
    fields without a label.

    Scores of unlabelled wells are honest on test plates; elsewhere the network knows their plate.
    """
    table = split.table[(split.table["repeat"] == repeat) & (split.table["fold"] == fold)]
    part = dict(zip(table["group"], table["part"], strict=True))
    return np.array([part.get(plate, "") for plate in images.groups], dtype=object)
