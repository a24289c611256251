"""The user's own stacks of electron microscopy: TIFF files, labelled by a table or to be
predicted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, TableError, UnreadableImageError, check_choice
from nbhelpers.core.imageset import ImageSet, failure_table
from nbhelpers.core.tables import is_table
from nbhelpers.imagesets.folder import FileList, read_label_table, read_unlabelled
from nbhelpers.imagesets.from_files import FileImages, GreyLine, spread
from nbhelpers.imagesets.polarity import membrane_contrast, unlike_the_others, with_doubts
from nbhelpers.imagesets.reader import (
    as_unsigned,
    colours_of,
    decoded,
    named_errors,
    one_series,
    opened,
    turned,
)
from nbhelpers.imagesets.sections import middle, shape_text, voxel_text
from nbhelpers.imagesets.synapses import PatchReference

# the units of length of OME and of Fiji, as people write them, and what one is in nanometres
_UNITS = """
Ym yottameter yottameters yottametre yottametres 1e33
Zm zettameter zettameters zettametre zettametres 1e30
Em exameter exameters exametre exametres 1e27
Pm petameter petameters petametre petametres 1e24
Tm terameter terameters terametre terametres 1e21
Gm gigameter gigameters gigametre gigametres 1e18
Mm megameter megameters megametre megametres 1e15
km kilometer kilometers kilometre kilometres 1e12
hm hectometer hectometers hectometre hectometres 1e11
dam decameter decameters decametre decametres 1e10
m meter meters metre metres 1e9
dm decimeter decimeters decimetre decimetres 1e8
cm centimeter centimeters centimetre centimetres 1e7
mm millimeter millimeters millimetre millimetres 1e6
um u micro micron microns mikrometer micrometer micrometers micrometre micrometres 1e3
nm nanometer nanometers nanometre nanometres 1e0
pm picometer picometers picometre picometres 1e-3
fm femtometer femtometers femtometre femtometres 1e-6
am attometer attometers attometre attometres 1e-9
zm zeptometer zeptometers zeptometre zeptometres 1e-12
ym yoctometer yoctometers yoctometre yoctometres 1e-15
å Å angstrom angstroms ångström ångströms ångstrom 0.1
in in. inch inches 2.54e7
thou mil mils 2.54e4
li line lines 2116666.6666666667
pt point points 352777.77777777778
ft foot feet 3.048e8
yd yard yards 9.144e8
mi mile miles 1.609344e12
ua au 1.495978707e20
ly 9.4607304725808e24
pc 3.0856775814913673e25
"""


def read_cube(path: str | Path) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """(z, y, x) uint8 or uint16 of a TIFF stack, and its voxel (z, y, x) in nm, or None where the
    file does not say.

    The size of a voxel is read from OME and from ImageJ (Fiji) files. Raises UnreadableImageError
    for what is no grey stack, is cut or damaged, is all black, or holds NaN or floating point
    values.
    """
    path = Path(path)
    fix = "Save it as an uncompressed grey TIFF stack, or copy it again."
    what = "it cannot be read as a TIFF stack"
    with (
        named_errors(path, what, fix),
        opened(path) as file,
        one_series(path, file) as (tiff, series),
    ):
        pixels = np.squeeze(decoded(path, series))
        axes = series.axes
        page = series.keyframe
        voxel_nm = None
        with suppress(TypeError):  # a size that is no number
            voxel_nm = _voxel_of(tiff)
    colours = any(size > 1 for axis, size in zip(axes, series.shape, strict=False) if axis in "CS")
    if page.photometric == 3:
        levels = colours_of(page)
        colours |= (levels != levels[0]).any()
        pixels = np.take(levels[0], pixels)
    if pixels.ndim != 3 or colours or not axes.rstrip("S").endswith("YX"):
        raise UnreadableImageError(
            path,
            f"the TIFF has the axes {axes} {series.shape}, and a grey stack is (z, y, x).",
            "Save one grey channel as a stack of sections; if the sections are taken for channels, "
            "in Fiji: Image > Hyperstacks > Re-order Hyperstack.",
        )
    orientation = page.tags.valueof(274, 1)
    pixels = turned(pixels, orientation)
    if voxel_nm and orientation in range(5, 9):
        voxel_nm = (voxel_nm[0], voxel_nm[2], voxel_nm[1])
    pixels = as_unsigned(path, pixels)
    if pixels.max() == pixels.min():
        what = "all black" if pixels.max() == 0 else "constant"
        raise UnreadableImageError(
            path,
            f"the cube is {what} (every pixel is {pixels.max()}).",
            "Nothing was imaged or read there: cut it out again, or leave the file out.",
        )
    return pixels, voxel_nm


@cache
def unit_nm(written: object) -> float:
    """The nanometres of a unit of length in the spellings of OME, Fiji and people; 0: not known."""
    text = re.sub(r"\\+u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), str(written))
    # the two signs of micro become one; the mark before it is of another encoding
    text = unicodedata.normalize("NFKC", text).strip().replace("Â", "").replace("μ", "u")
    for unit in (text, text.lower()):
        for line in _UNITS.strip().splitlines():
            *names, size = line.split()
            if unit in names:
                return float(size)
    return 0.0


def _voxel_of(tiff) -> tuple[float, float, float] | None:
    """(z, y, x) in nm from the metadata of OME or ImageJ."""
    import tifffile

    sizes = [0.0]
    if tiff.is_ome:
        found = tifffile.xml2dict(tiff.ome_metadata)["OME"].get("Image", {})
        about = (found[0] if isinstance(found, list) else found).get("Pixels", {})
        sizes = [
            about.get(f"PhysicalSize{axis}", 0)
            * unit_nm(about.get(f"PhysicalSize{axis}Unit", "um"))
            for axis in "ZYX"
        ]
    elif tiff.is_imagej:
        about = tiff.imagej_metadata
        unit = about.get("unit", "")
        sizes = [abs(about.get("spacing", 0)) * unit_nm(about.get("zunit", unit))]
        for name, axis_unit in (("YResolution", about.get("yunit", unit)), ("XResolution", unit)):
            count, length = tiff.pages.first.tags.valueof(name, (1, 0))
            sizes.append(unit_nm(axis_unit) * length / max(1, count))
    known = all(0 < size < math.inf for size in sizes)
    return tuple(float(f"{size:.6g}") for size in sizes) if known else None


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
    found, voxels, silent = _read(listed, voxel_nm, lambda path, pixels, voxel: pixels)
    found.check_classes(listed)
    shapes = [shape_text(cube.shape) for cube in found.pixels]
    _same(found.table["id"], shapes, "shape", "Crop them to one shape.")
    pixels, note = _in_8_bit(found.pixels)
    note += silent
    # one cube in two depths is a copy too
    found = replace(found, pixels=pixels).without_copies(pixels, group="group")
    found.check_classes(listed)
    ids = found.table["id"].tolist()
    usual = Counter(voxels[name] for name in ids).most_common(1)[0][0]
    sizes = [voxel_text(usual if _alike(voxels[name], usual) else voxels[name]) for name in ids]
    fix = "Resample them to one voxel size, or make two sets."
    _same(ids, sizes, "voxel size (z, y, x)", fix)
    found, _ = with_doubts(found, membrane_contrast(found.pixels))
    if "group" not in found.table:
        first = found.table.groupby("print")["id"].transform("first")
        found = replace(found, table=found.table.assign(group=first))
        note += (
            "; no group is named, so each cube is its own: synapses of one neuron or animal may "
            "stand in training and test, and the score may be too high for new ones"
        )
    return replace(found, pixels=found.pixels[:, None]).image_set(
        name="your cubes",
        classes=tuple(sorted(found.table["label"].unique())),
        source=f"your own stacks{note}",
        channels=("EM",),
        pixel_size_nm=usual,
    )


def load_unlabelled_cubes(
    path: str | Path,
    known: ImageSet,
    check: Callable[[Path, np.ndarray], None],
    *,
    voxel_nm: Sequence[float] | None = None,
    polarity: str = "check",
) -> ImageSet:
    """Every TIFF stack below a folder, or of a CSV with the column path, for prediction, made like
    the cubes of the training, ``known``; labels are not used.

    Larger stacks are cropped at their centre, and 16-bit values brought to the range of greys of
    ``known``. Listed in ``failures`` are files that cannot be used, stacks that are smaller, have
    voxels of another size (``voxel_nm`` is that of files that do not say theirs) or inverted greys
    (unless ``polarity`` is "as given"), and those for which ``check`` of the cropped stack raises
    UnreadableImageError; when none can be used, the set is empty. Raises TableError for a folder
    without images and a CSV without the column, and ParameterError.
    """
    check_choice("parameter polarity", polarity, ("check", "as given"))
    shape = known.pixels.shape[2:]
    wanted = known.pixel_size_nm

    def fitted(path: Path, pixels: np.ndarray, voxel: Sequence[float] | None) -> np.ndarray:
        if any(own < side for own, side in zip(pixels.shape, shape, strict=True)):
            raise UnreadableImageError(
                path,
                f"it is {shape_text(pixels.shape)}, smaller than the {shape_text(shape)} of the "
                "training cubes.",
                "Cut a larger one out around the synapse; do not enlarge this one.",
            )
        if wanted and not _alike(voxel, wanted):
            raise UnreadableImageError(
                path,
                f"its voxels (z, y, x) are {voxel_text(voxel)}, and those of the training cubes "
                f"are {voxel_text(wanted)}.",
                "Resample it; or set section_nm and pixel_nm, if the file does not say its voxels.",
            )
        pixels = pixels[middle(pixels.shape, shape)]
        check(path, pixels)
        return pixels

    found, _, note = _read(read_unlabelled(path), voxel_nm, fitted)
    reference = PatchReference.of(known)
    pixels = np.zeros((0, *shape), np.uint8)
    if len(found.pixels):
        pixels, how = _in_8_bit(found.pixels, reference)
        note = f"{how}, as in the training cubes{note}" if how else note
    found = replace(found, pixels=pixels)
    if polarity == "check":
        usual = reference.membrane_contrast
        contrast = membrane_contrast(pixels)
        found, verdicts = with_doubts(found, contrast, usual)
        found = found.without(
            unlike_the_others(contrast, usual) | ("inverted" in verdicts.values()),
            "the grey values are inverted, compared with the training cubes.",
            "Invert it (in Fiji: Edit > Invert, then save), or set polarity to 'as given' if that "
            "is meant.",
        )
    found = replace(found, table=found.table.assign(group=found.table["id"]))
    return replace(found, pixels=found.pixels[:, None]).image_set(
        name="cubes to predict",
        classes=known.classes,
        source=f"your own stacks{note}",
        channels=("EM",),
        pixel_size_nm=wanted,
    )


def _read(
    listed: FileList,
    voxel_nm: Sequence[float] | None,
    prepare: Callable[[Path, np.ndarray, tuple[float, ...] | None], np.ndarray],
) -> tuple[FileImages, dict[str, tuple[float, ...] | None], str]:
    """Stacks, of any shape, as ``prepare`` makes them of path, pixels and voxel; the voxel of each;
    and a note on those that do not say it.
    """
    cubes = np.empty(len(listed.table), object)
    voxels = {}
    silent = 0
    rows = []
    bad = []
    for row in listed.table.itertuples():
        try:
            pixels, voxel = read_cube(row.path)
            said = voxel is not None
            voxel = voxel or (tuple(map(float, voxel_nm)) if voxel_nm else None)
            cubes[row.Index] = prepare(row.path, pixels, voxel)
        except UnreadableImageError as error:
            bad.append((row.id, error.what, error.fix))
            continue
        silent += not said
        voxels[row.id] = voxel
        rows.append(row.Index)
    failures = pd.concat([listed.failures, failure_table(bad)], ignore_index=True)
    table = listed.table.loc[rows].reset_index(drop=True)
    note = ""
    if silent:
        note = (
            f"; {silent} of {len(voxels)} stacks do not say the size of their voxels in a known "
            f"unit: taken for {voxel_text(voxel_nm)}"
        )
    return FileImages(table, cubes[rows], failures, notes=listed.notes), voxels, note


def _in_8_bit(
    cubes: Sequence[np.ndarray], reference: PatchReference | None = None
) -> tuple[np.ndarray, str]:
    """Cubes of one shape as uint8, and what was done; with a ``reference``, to its range of greys.

    0 of 16 bit, where nothing was imaged, stays 0 alone.
    """
    depths = {cube.dtype for cube in cubes}
    if depths == {np.dtype(np.uint8)}:
        return np.stack(list(cubes)), ""
    sections = list(chain(*cubes))
    if reference:
        some = spread([section for section in sections if section.dtype == np.uint16])
        ends = np.percentile(some[some > 0], (1, 99))
        line = GreyLine(*ends, reference.dark, reference.bright)
    elif len(depths) > 1:
        line = GreyLine.between(sections)
    else:
        some = spread(sections)
        line = GreyLine.through(some[some > 0])
    made = [np.where(cube > 0, np.maximum(line.in_8_bit(cube), 1), 0) for cube in cubes]
    return np.stack(made), f"; {line}"


def _alike(voxel: Sequence[float] | None, usual: Sequence[float] | None) -> bool:
    """Whether they differ by no more than a measurement of one microscope does, or both are not
    known.
    """
    return np.allclose(voxel or np.nan, usual or np.nan, rtol=0.01, atol=0, equal_nan=True)


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
