"""Culture plates in several stains: phantoms, IN Cell Analyzer folders, CellProfiler tables,
BBBC021 cells.

One row of an image set is one field of a well, its channels are the stains. What a well was treated
with is data, a layout, see :mod:`nbhelpers.phantoms.layouts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import (
    InputError,
    ParameterError,
    SplitError,
    check_choice,
    check_range,
    nearest,
)
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept
from nbhelpers.core.seeds import generator_for
from nbhelpers.core.splits import Split, fold_table
from nbhelpers.imagesets.sources import NONE, load_source

SOURCES = {
    "phantom": "nbhelpers.phantoms.plate:load_phantom_plates",
    "in_cell": "nbhelpers.imagesets.plate_files:load_in_cell",
    "cellprofiler": "nbhelpers.imagesets.plate_files:load_cellprofiler",
    "bbbc021": "nbhelpers.imagesets.bbbc021:load_bbbc021",
}
SCALED_BY = {
    "controls": "the wells without compound (with and without amyloid-beta together)",
    "all": "all wells",
}
PERCENTILES = (1.0, 99.8)  # of a stain, that go to 5 % and 70 % of the range


def load_plates(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    layout: str = "published",
    size_px: int = 0,
    planes: str = "",
    seed: int = 0,
    phantom: Mapping[str, object] = NONE,
) -> ImageSet:
    """Fields of plates by the name of their source, pixels memory-mapped; group is the plate.

    Parameters
    ----------
    data : "phantom"; "in_cell" (a folder per plate with files named as by an IN Cell Analyzer:
        ``data_dir``); "cellprofiler" (``data_dir`` is a LoadData CSV with Metadata_*, FileName_*,
        PathName_*); "bbbc021" (a folder with ``cells.csv``, single cells in three stains, for
        checks only, not downloaded).
    layout : "published", or a CSV (see :func:`nbhelpers.phantoms.layouts.read_layout`): what each
        well holds. Of phantoms "published" or "randomised"; of "cellprofiler" "metadata" takes it
        from Metadata_Concentration_uM, Metadata_Amyloid_uM and Metadata_Compound.
    size_px : fields are averaged over whole blocks down to this height and width; 0: as they are
        (of phantoms 96).
    planes : which of several z-planes and time points of "in_cell" and "cellprofiler" is the image:
        "sharpest", "maximum" (the brightest value of each pixel) or "z3", and "t2" for a time
        point, as in "sharpest t2"; "": there is but one.
    phantom : of "phantom" only: more parameters of :func:`nbhelpers.phantoms.plate.make_plates`.

    The table has ``id``, ``label`` (missing where a well is no training candidate), ``group``,
    ``plate``, ``well``, ``row``, ``column``, ``field``, ``treatment``, ``compound``, ``dose_uM``,
    ``amyloid_uM``, and of phantoms the injected truth. What is missing or left out is listed in
    ``failures``. Raises ParameterError, TableError and InputError.
    """
    check_range("parameter size_px", size_px, 0, 65536)
    return load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=data_dir,
        layout=layout,
        size_px=size_px,
        planes=planes,
        phantom={"layout": layout, "size_px": size_px or 96, "seed": seed, **phantom},
        hint="Give the folder of the images, or the CSV that lists them.",
    )


def load_unlabelled_plates(
    path: str | Path,
    known: ImageSet,
    *,
    data_folder: str | Path,
    layout: str = "none",
    size_px: int = 0,
    planes: str = "",
    wells: str = "controls",
) -> ImageSet:
    """Every field of new plates, for prediction, scaled as :func:`normalise_to_controls` scales
    them; labels are not used.

    ``path`` is a folder of plate folders, or a LoadData CSV; ``layout``, ``size_px`` and ``planes``
    as in :func:`load_plates`, but that wells outside the layout are taken too, and "none" is a
    layout without wells. Fields that cannot be used are listed in ``failures``. Raises
    InputError where the stains or the size are not those of ``known``, the plates of the training,
    and the errors of :func:`load_plates`.
    """
    data = "in_cell" if Path(path).is_dir() else "cellprofiler"
    found = load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=str(path),
        layout=layout,
        size_px=size_px,
        planes=planes,
        unlabelled=True,
        phantom=NONE,
        hint="",
    )
    for what, own, wanted, fix in (
        ("stains", found.channels, known.channels, "Give the same stains, in that order."),
        ("height and width", found.pixels.shape[2:], known.pixels.shape[2:], "Set size_px."),
    ):
        if own != wanted:
            raise InputError(
                path,
                f"the {what} of the new plates are {', '.join(map(str, own))}, and those of the "
                f"training plates are {', '.join(map(str, wanted))}.",
                fix,
            )
    # "P1/B02/1" would be shortened to the number of the field
    ids, files = (
        names.str.replace(r"/(\d+)$", r" field \1", regex=True)
        for names in (found.table["id"], found.failures["file"])
    )
    found = replace(
        found,
        classes=known.classes,
        table=found.table.assign(label=None, id=ids),
        failures=found.failures.assign(file=files),
    )
    return normalise_to_controls(found, wells=wells, cache_folder=Path(data_folder) / "packed")


def plate_summary(images: ImageSet) -> pd.DataFrame:
    """One row per plate: compounds, wells, fields, fields of each class and without label, and the
    wells that set its scale.
    """
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
    if "scaled_by" in table:
        found["scaled by"] = grouped["scaled_by"].first()
    return found.reset_index()


def normalise_to_controls(
    images: ImageSet, *, wells: str = "controls", cache_folder: str | Path | None = None
) -> ImageSet:
    """The same fields with the stains of each plate brought to one scale, one straight line per
    plate and stain.

    ``wells`` says which wells of a plate set the line: "controls": all wells without compound, with
    and without amyloid-beta TAKEN TOGETHER, which are known from the layout, without a label,
    and every well of a plate that has no such well; "all": every well. No label is looked at, of
    training or of test plates, and all wells of a plate get the same line, so that differences
    within a plate stay. The means over these fields of the percentiles 1 and 99.8 go to 5 % and
    70 % of the range of the type: brighter fields have room. The table gains ``clipped`` (share of
    the field's pixels beyond the range) and ``scaled_by`` ("wells without compound" or "all
    wells"). With a ``cache_folder`` the pixels are memory-mapped, else in memory. Raises
    ParameterError where wells without compound are one of the classes, as DMSO is: the scale would
    then show the label.
    """
    check_choice("parameter wells", wells, SCALED_BY)
    table = images.table
    top = np.iinfo(images.pixels.dtype).max
    chosen = (table["dose_uM"] == 0).to_numpy() | (wells == "all")
    if set(images.labels[chosen]) - {-1} != set(images.labels) - {-1}:
        raise ParameterError(
            "parameter wells",
            "the wells without compound are one of the classes here, so a scale set by "
            "them would show the label.",
            "Give 'all' (in notebook 05: normalise).",
        )
    lacking = [] if wells == "all" else sorted({*table["plate"]} - {*table["plate"][chosen]})
    every = table["plate"].isin(lacking).to_numpy() | (wells == "all")
    lines = {}
    for plate in table["plate"].unique():
        rows = np.flatnonzero((chosen | every) & (table["plate"] == plate).to_numpy())
        each = [np.percentile(images.pixels[row], PERCENTILES, axis=(1, 2)) for row in rows]
        ends = np.mean(each, axis=0)
        gain = 0.65 * top / np.maximum(ends[1] - ends[0], 1e-6)
        lines[plate] = gain[:, None, None], (0.05 * top - gain * ends[0])[:, None, None]
    pixels = _line_by_plate(images, lines, cache_folder)
    clipped = [((values == 0) | (values == top)).mean() for values in pixels]
    scaled_by = np.where(every, "all wells", "wells without compound")
    source = f"{images.source}; each plate and stain scaled by {SCALED_BY[wells]}"
    if lacking:
        source += f", and by all wells where there are none: {', '.join(lacking)}"
    return replace(
        images,
        pixels=pixels,
        table=table.assign(clipped=clipped, scaled_by=scaled_by),
        content_hash="",
        source=source,
    )


def _line_by_plate(images: ImageSet, lines: Mapping, cache_folder: str | Path | None) -> np.ndarray:
    dtype = images.pixels.dtype
    top = np.iinfo(dtype).max

    def fields():
        for row, plate in enumerate(images.table["plate"]):
            gain, offset = lines[plate]
            scaled = np.clip(np.rint(images.pixels[row] * gain + offset), 0, top)
            yield scaled[None].astype(dtype)

    if cache_folder is None:
        return np.concatenate(list(fields()))
    return kept(cache_folder, ["one line by plate", images.content_hash, lines], fields)


def split_by_plate(images: ImageSet, *, test: int | Sequence[str] = 1, seed: int = 0) -> Split:
    """Whole plates for test, another whole plate for validation, the rest for training; only
    labelled fields are split.

    ``test``: how many plates (drawn by ``seed``), or their names. Raises SplitError for unknown
    plates, too few plates, and a plate of one class only among those named.
    """
    kinds = _classes_on_plates(images)
    named = [] if isinstance(test, int) else list(test)
    _check_named(images, kinds, named)
    free = [name for name in _whole_plates(images, kinds) if name not in named]
    free = list(generator_for(seed, "plates").permutation(free))
    part = dict.fromkeys(kinds, "train") | dict.fromkeys(named, "test")
    drawn = ({} if named else {"test": test}) | {"validation": 1}
    for name, count in drawn.items():
        if count > len(free):
            raise SplitError(
                images.name,
                f"{count} plates for {name} are asked for, but only {len(free)} with both "
                "classes are left.",
                "Use fewer plates for test, or add plates.",
            )
        part |= dict.fromkeys(free[:count], name)
        free = free[count:]
    left = set().union(*(kinds[name] for name, which in part.items() if which == "train"))
    if len(left) < len(images.classes):
        raise SplitError(
            images.name,
            f"the training plates hold {sorted(left)} only."
            if left
            else "no plate is left to train.",
            "Leave more plates for training.",
        )
    return Split(_part_table(images, part, 0), "grouped: hold-out of whole plates", seed)


def _check_named(images: ImageSet, kinds: Mapping[str, set[str]], named: Sequence[str]) -> None:
    for name in named:
        if name not in kinds:
            raise SplitError(
                f"plate {name}",
                "there is no such plate with labelled fields.",
                nearest(name, kinds),
            )
        if len(kinds[name]) < len(images.classes):
            raise SplitError(
                f"plate {name}",
                f"it has only the class {' and '.join(sorted(kinds[name]))}, so nothing can "
                "be told apart on it.",
                "Use it for training, and plates with both classes for test.",
            )


def leave_one_plate_out(images: ImageSet, *, test: Sequence[str] = (), seed: int = 0) -> Split:
    """Each plate with every class, or each of those named by ``test``, is the test part of one
    fold; another such plate, if one is left, validates.

    Where only one plate with every class remains beside the test plate, it is needed for training,
    and a plate of one class validates if there is one (``protocol`` says so). Raises SplitError for
    fewer than two plates with every class, and for unknown plates and those of one class in
    ``test``.
    """
    kinds = _classes_on_plates(images)
    _check_named(images, kinds, test)
    whole = _whole_plates(images, kinds)
    if len(whole) < 2:
        raise SplitError(
            images.name,
            f"only {len(whole)} plates have every class.",
            "Leaving one out needs two or more.",
        )
    one_class = [name for name in sorted(kinds) if name not in whole]
    tables = []
    for fold, tested in enumerate(test or whole):
        validates = one_class[:1]
        if len(whole) > 2:
            validates = [whole[(whole.index(tested) + 1) % len(whole)]]
        part = dict.fromkeys(kinds, "train") | dict.fromkeys(validates, "validation")
        tables.append(_part_table(images, part | {tested: "test"}, fold))
    note = "" if len(whole) > 2 else ", validation plates have one class only"
    return Split(pd.concat(tables, ignore_index=True), f"grouped: leave one plate out{note}", seed)


def _whole_plates(images: ImageSet, kinds: Mapping[str, set[str]]) -> list[str]:
    """The plates that hold every class."""
    return [name for name in sorted(kinds) if len(kinds[name]) == len(images.classes)]


def _classes_on_plates(images: ImageSet) -> dict[str, set[str]]:
    return images.table.dropna(subset="label").groupby("plate")["label"].agg(set).to_dict()


def _part_table(images: ImageSet, part: Mapping[str, str], fold: int) -> pd.DataFrame:
    rows = np.flatnonzero(images.labels >= 0)
    parts = [part[plate] for plate in images.groups[rows]]
    return fold_table(images, parts, fold=fold, rows=rows)


def parts_of_plates(images: ImageSet, split: Split) -> np.ndarray:
    """(n,) text: "train", "validation" or "test" as the plate of each field was used in the last
    fold, also of fields without a label; "unused" of plates without any label.

    Only on test plates can scores of unlabelled wells be trusted: elsewhere the network knows the
    plate.
    """
    table = split.only(*split.folds()[-1]).table
    part = dict(zip(table["group"], table["part"], strict=True))
    return np.array([part.get(plate, "unused") for plate in images.groups], dtype=object)
