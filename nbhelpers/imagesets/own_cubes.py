"""The user's own stacks of electron microscopy: TIFF files, named by a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, TableError, UnreadableImageError
from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.tables import is_table
from nbhelpers.imagesets.folder import read_label_table
from nbhelpers.imagesets.from_files import FileImages, GreyLine
from nbhelpers.imagesets.reader import as_unsigned, check_pages
from nbhelpers.imagesets.sections import shape_text, voxel_text

_NM = {
    "nm": 1.0,
    "nanometer": 1.0,
    "µm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "micrometer": 1e3,
    "\\u00b5m": 1e3,
    "mm": 1e6,
    "cm": 1e7,
}


def read_cube(path: str | Path) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """(z, y, x) uint8 or uint16 of a TIFF stack, and its voxel (z, y, x) in nm, or None where the
    file does not say.

    The size of a voxel is read from OME and from ImageJ (Fiji) files. Raises UnreadableImageError
    for what is no grey stack, is cut or damaged, is all black, or holds NaN or floating point
    values.
    """
    import tifffile

    try:
        with open(path, "rb") as file:
            check_pages(path, file)
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.series) != 1:
                raise UnreadableImageError(
                    path,
                    f"{len(tiff.series)} images are found in it.",
                    "Save one stack per file, or copy it again if it is damaged.",
                )
            series = tiff.series[0]
            # tifffile fills what is missing from a cut file with zeros
            ends = []
            for page in series.pages:
                if page is not None:
                    places = zip(page.dataoffsets, page.databytecounts, strict=False)
                    ends += [at + size for at, size in places]
            # one block without gaps, of which pages may be missing
            if series.dataoffset is not None:
                ends.append(series.dataoffset + series.nbytes)
            if not ends or max(ends) > Path(path).stat().st_size:
                raise UnreadableImageError(
                    path,
                    "the TIFF is cut: it ends before its last section.",
                    "Copy it again from its source.",
                )
            pixels = series.asarray()
            axes = series.axes
            voxel_nm = _voxel_of(tiff)
    except UnreadableImageError:
        raise
    except Exception as error:
        # decoders raise many types on damaged files; the file's name must not be lost
        raise UnreadableImageError(
            path,
            f"it cannot be read as a TIFF stack ({type(error).__name__}: {error}).",
            "Save it as an uncompressed grey TIFF stack, or copy it again.",
        ) from None
    colours = any(size > 1 for axis, size in zip(axes, series.shape, strict=False) if axis in "CS")
    pixels = np.squeeze(pixels)
    if pixels.ndim != 3 or colours or not axes.rstrip("S").endswith("YX"):
        raise UnreadableImageError(
            path,
            f"the TIFF has the axes {axes} {series.shape}, and a grey stack is (z, y, x).",
            "Save one grey channel as a stack of sections; if the sections are taken for channels, "
            "in Fiji: Image > Hyperstacks > Re-order Hyperstack.",
        )
    pixels = as_unsigned(Path(path), pixels)
    if pixels.max() == pixels.min():
        what = "all black" if pixels.max() == 0 else "constant"
        raise UnreadableImageError(
            path,
            f"the cube is {what} (every pixel is {pixels.max()}).",
            "Nothing was imaged or read there: cut it out again, or leave the file out.",
        )
    return pixels, voxel_nm


def _voxel_of(tiff) -> tuple[float, float, float] | None:
    """(z, y, x) in nm from the metadata of OME or ImageJ."""
    import tifffile

    if tiff.is_ome:
        found = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        about = (found[0] if isinstance(found, list) else found)["Pixels"]
        sizes = [
            about.get(f"PhysicalSize{axis}", 0)
            * _NM.get(about.get(f"PhysicalSize{axis}Unit", "µm"), 0)
            for axis in "ZYX"
        ]
    elif tiff.is_imagej and "spacing" in tiff.imagej_metadata:
        unit = _NM.get(str(tiff.imagej_metadata.get("unit", "")), 0)
        tags = tiff.pages.first.tags
        per_px = [
            tags[name].value[0] / max(1, tags[name].value[1]) if name in tags else 0
            for name in ("YResolution", "XResolution")
        ]
        sizes = [
            tiff.imagej_metadata["spacing"] * unit,
            *(unit / value if value else 0 for value in per_px),
        ]
    else:
        return None
    return tuple(float(f"{size:.6g}") for size in sizes) if min(sizes) > 0 else None


def load_own_cubes(path: str | Path, *, voxel_nm: Sequence[float] | None = None) -> ImageSet:
    """The user's TIFF stacks from a CSV with path, label and perhaps group (the neuron), all held
    in memory as uint8.

    ``voxel_nm`` (z, y, x) is that of files that do not say theirs. 16-bit values are scaled to 8
    bit once for the whole set, as in 2D. Files that cannot be used, and equal cubes under two
    labels or groups, are listed in ``failures``. Where no group is given each cube is its own
    (equal ones share one), and the source says so. Raises TableError, and InputError for cubes of
    different shapes, types or voxel sizes: a network would learn the difference.
    """
    if not is_table(path):
        raise TableError(
            path,
            "cubes are named by a table.",
            "Give a CSV with path, label and group of each TIFF stack.",
        )
    listed = read_label_table(path)
    # of any shape, until they are known to have the same
    cubes = np.empty(len(listed.table), object)
    voxels = {}
    rows = []
    bad = []
    for row in listed.table.itertuples():
        try:
            pixels, voxel = read_cube(row.path)
        except UnreadableImageError as error:
            bad.append((row.id, error.what, error.fix))
            continue
        cubes[row.Index] = pixels
        voxels[row.id] = voxel or (tuple(map(float, voxel_nm)) if voxel_nm else None)
        rows.append(row.Index)
    failures = pd.concat([listed.failures, failure_table(bad)], ignore_index=True)
    table = listed.table.loc[rows].reset_index(drop=True)
    found = FileImages(table, cubes[rows], failures, notes=listed.notes)
    found = found.without_copies(found.pixels, group="neuron")
    found.check_classes(listed)
    ids = found.table["id"].tolist()
    forms = [f"{shape_text(cube.shape)}, {cube.dtype}" for cube in found.pixels]
    _same(ids, forms, "shape", "Crop them to one shape.")
    sizes = [voxel_text(voxels[name]) for name in ids]
    fix = "Resample them to one voxel size, or make two sets."
    _same(ids, sizes, "voxel size (z, y, x)", fix)
    pixels = np.stack(list(found.pixels))
    note = ""
    if pixels.dtype == np.uint16:
        pixels, line = _in_8_bit(pixels)
        note = f"; {line}"
    if "group" not in found.table:
        first = found.table.groupby("print")["id"].transform("first")
        found = replace(found, table=found.table.assign(group=first))
        note += (
            "; no neuron is named, so each cube is its own group: synapses of one neuron may stand "
            "in training and test, and the score may be too high for new neurons"
        )
    return replace(found, pixels=pixels[:, None]).image_set(
        name="your cubes",
        classes=tuple(sorted(found.table["label"].unique())),
        source=f"your own stacks{note}",
        channels=("EM",),
        pixel_size_nm=voxels[ids[0]],
    )


def _in_8_bit(pixels: np.ndarray) -> tuple[np.ndarray, GreyLine]:
    """uint16 cubes as uint8; 0, where nothing was imaged, stays 0 alone."""
    some = pixels[:: max(1, len(pixels) // 200), :: max(1, pixels.shape[1] // 4)]
    line = GreyLine.through(some[some > 0])
    made = np.empty(pixels.shape, np.uint8)
    for cube, scaled in zip(pixels, made, strict=True):
        scaled[:] = np.where(cube > 0, np.clip(line.scaled(cube), 1, 255), 0)
    return made, line


def _same(ids: Sequence[str], values: Sequence[str], what: str, fix: str) -> None:
    """Raise InputError that names the commonest value and the first cube with another one."""
    usual = Counter(values).most_common(1)[0][0]
    others = [(name, value) for name, value in zip(ids, values, strict=True) if value != usual]
    if others:
        raise InputError(
            others[0][0],
            f"its {what} is {others[0][1]}, and most cubes have {usual} ({len(others)} of "
            f"{len(values)} differ).",
            fix,
        )
