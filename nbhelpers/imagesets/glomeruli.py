"""Glomeruli in stained sections: phantoms, the public patches of Bueno et al. 2020, or the user's
own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import TableError, check_columns
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.keys import bare_key, one_spelling
from nbhelpers.core.tables import is_table, read_table, with_columns
from nbhelpers.imagesets.folder import read_labelled, read_unlabelled
from nbhelpers.imagesets.glomerulus_files import SIZE_PX, from_files
from nbhelpers.imagesets.sources import NONE, load_source

SOURCES = {
    "phantom": "nbhelpers.phantoms.glomerulus:load_phantom_glomeruli",
    "bueno": "nbhelpers.imagesets.bueno:load_bueno_glomeruli",
    "folder": "nbhelpers.imagesets.glomeruli:load_own_glomeruli",
}
UNKNOWN_SLIDES = (
    "no slide is named, so each image is its own group: glomeruli of one slide may stand in "
    "training and test both, and the scores come out too high"
)
LABEL_TABLES = ("public.csv", "labels.csv")


def load_glomeruli(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    seed: int = 0,
    phantom: Mapping[str, object] = NONE,
) -> ImageSet:
    """Glomeruli by the name of their source: "phantom", "bueno" or "folder".

    ``data_dir`` is the folder or CSV of "folder"; for "bueno" it may name a folder that already
    holds the published patches, or some of them. ``phantom`` says the ``count`` of phantoms, and
    perhaps their ``size_px`` and ``difficulty``. Raises ParameterError when "folder" has no
    ``data_dir``.
    """
    return load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=data_dir,
        phantom={"seed": seed, "difficulty": 0.8, **phantom},
        hint="Give the folder that holds one folder per class, or a CSV with path, label and "
        "group.",
    )


def load_own_glomeruli(
    path: str | Path, data_folder: str | Path, *, size_px: int = SIZE_PX
) -> ImageSet:
    """The user's images: a folder with one folder per class, or a CSV with path, label and perhaps
    group and centre.

    A folder with class folders may hold ``public.csv`` or ``labels.csv`` with the columns ``name``
    and ``ground truth`` (class names, or 0 and 1) as the published project has it; it must agree
    with the folders. Without a group column every image is its own group, but copies of one image
    share it, and the source says that slides are unknown. Raises TableError for class folders that
    differ in spelling only, labels that contradict the folder, other than two classes, and classes
    without a usable image.
    """
    path = Path(path)
    listed = read_labelled(path)
    table = listed.table
    found = sorted(table["label"].unique())
    if is_table(path):
        _check_labels_against_folders(path, table)
    else:
        for name in LABEL_TABLES:
            if (path / name).is_file():
                check_public_table(path / name, table)
    if len(found) != 2:
        raise TableError(
            path,
            f"there are {len(found)} classes: {', '.join(found)}.",
            "Two are told apart here, as one "
            "threshold between them is chosen: put several into one, or leave some out.",
        )
    return from_files(
        listed,
        data_folder,
        size_px=size_px,
        name="your glomeruli",
        source="your own images" + ("" if "group" in table else f"; {UNKNOWN_SLIDES}"),
        classes=tuple(found),
    )


def _check_labels_against_folders(csv: Path, table: pd.DataFrame) -> None:
    """Whether a label table gives an image another class than the folder it lies in."""
    classes = {bare_key(name): name for name in table["label"].unique()}
    for row, (path, label, name) in enumerate(
        zip(table["path"], table["label"], table["id"], strict=True)
    ):
        folder_class = classes.get(bare_key(Path(path).parent.name))
        if folder_class is not None and folder_class != label:
            raise TableError(
                f"{csv.name}: {name}",
                f"the table says {label}, but the image is in the folder {Path(path).parent.name}.",
                "Decide which one is right, and move the image or change the label (entry "
                f"{row + 1} of the table).",
            )


def check_public_table(csv: str | Path, table: pd.DataFrame) -> None:
    """Whether a published label table (``name``, ``ground truth``) agrees with the class folders.

    ``table`` has ``label`` and ``id`` as ``read_class_folders`` gives them. Labels are class names
    or 0 and 1; which of the two classes 1 is, is whatever fits the folders best. Raises TableError
    at the first contradiction, naming the row, and for names that lie in no class folder.
    """
    csv = Path(csv)
    given = read_table(csv, "the label table", "Save it as CSV in UTF-8.")
    given = with_columns(given, csv, {"name": (), "ground truth": ("label",)})
    check_columns(csv, given, ("name", "ground truth"))
    folders: dict[str, set[str]] = {}
    for name, label in zip(table["id"], table["label"], strict=True):
        for key in {name, Path(name).name}:
            folders.setdefault(key, set()).add(label)
    classes = sorted(table["label"].unique())
    values, _ = one_spelling(given["ground truth"], "label", csv.name)
    ways = [dict(zip(classes, classes, strict=True))]
    if set(values) <= {"0", "1"} and len(classes) == 2:
        ways = [dict(zip("01", order, strict=True)) for order in (classes, classes[::-1])]
    found_in = [folders.get(name, set()) for name in given["name"]]
    wrong = min(
        (_contradictions([way.get(value) for value in values], found_in) for way in ways), key=len
    )
    if wrong:
        row = wrong[0]
        where = f"is in the folder {' and '.join(sorted(found_in[row]))}"
        if not found_in[row]:
            where = "is in no class folder"
        raise TableError(
            f"{csv.name}, row {given.index[row]}",
            f"the label of {given['name'].iloc[row]} is {values[row]}, but the image {where} "
            f"({len(wrong)} such rows).",
            "Decide which one is right, and move the image or change the row.",
        )


def _contradictions(labels: Sequence[str], folders: Sequence[set[str]]) -> list[int]:
    rows = enumerate(zip(labels, folders, strict=True))
    return [row for row, (label, known) in rows if label not in known]


def load_unlabelled_glomeruli(
    path: str | Path, data_folder: str | Path, classes: Sequence[str], *, size_px: int = SIZE_PX
) -> ImageSet:
    """Every image below a folder, or of a CSV with the column path, for prediction. Unreadable ones
    are listed in ``failures``; when none can be used, the set is empty and lists them all.

    Raises InputError for a folder without images. For folders too large for a report see
    :mod:`nbhelpers.studies.predict_folder`.
    """
    return from_files(
        read_unlabelled(path),
        data_folder,
        size_px=size_px,
        name="images to predict",
        source="your own images",
        classes=tuple(classes),
    )


def _span(values: pd.Series) -> str:
    low = values.min()
    high = values.max()
    if pd.isna(low):
        return "unknown"
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def intensity_table(images: ImageSet) -> pd.DataFrame:
    """Per class (and centre, where known): images, groups, copies, the smallest and largest width
    and height of the files in pixels, and mean and standard deviation of each channel.

    For the data look of a notebook; channel values are 0 to 255.
    """
    keys = ["label"] + (["centre"] if "centre" in images.table else [])
    means = np.array([image.mean(axis=(1, 2)) for image in images.pixels]).reshape(len(images), -1)
    work = images.table[[*keys, "group"]].copy()
    work["copies"] = images.table["copy_of"] != "" if "copy_of" in images.table else False
    for name, values in zip(images.channels, means.T, strict=True):
        work[name] = values
    grouped = work.groupby(keys, sort=True)
    found = pd.DataFrame(
        {
            "images": grouped.size(),
            "groups": grouped["group"].nunique(),
            "copies": grouped["copies"].sum(),
        }
    )
    for name, axis in (("width_px", -1), ("height_px", -2)):
        work[name] = images.table[name] if name in images.table else images.pixels.shape[axis]
        found[name.replace("_", ", ")] = work.groupby(keys)[name].agg(_span)
    for name in images.channels:
        found[f"{name} mean"] = grouped[name].mean()
        found[f"{name} sd"] = grouped[name].std()
    return found.reset_index()
