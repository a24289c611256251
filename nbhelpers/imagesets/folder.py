"""The user's own images: a folder per class, or a table of path and label, or a folder to
predict.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, TableError, check_columns
from nbhelpers.core.files import folders_below
from nbhelpers.core.imageset import failure_table
from nbhelpers.core.keys import one_spelling
from nbhelpers.core.tables import IMAGE_COLUMNS, LOOKED, is_table, located, read_table, with_columns
from nbhelpers.imagesets.reader import SUFFIXES, printable

GONE = "the image of this row does not exist, or is no file."
_SKIPPED = {".ds_store", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class FileList:
    """Files to read: ``table`` has path, label, id and perhaps group and centre; ``failures`` lists
    what was left out before anything was read, ``notes`` say what a reader should know of it.
    """

    table: pd.DataFrame
    failures: pd.DataFrame = field(default_factory=failure_table)
    notes: tuple[str, ...] = ()


def read_labelled(path: str | Path, *, across_classes: bool = True) -> FileList:
    """The files of a folder with one folder per class, or of a table with path, label and perhaps
    group.

    Where most images of every class lie in folders below it (``Thin/animal 7/a.png``), these are
    the groups, and images beside them are left out and listed. A folder of one name below two
    classes is one group, unless a group has one class (``across_classes`` false). Raises
    TableError.
    """
    if is_table(path):
        return read_label_table(path)
    table, notes = read_class_folders(path)
    parts = [Path(name).parts for name in table["id"]]
    deep = pd.Series([len(one) > 2 for one in parts])
    if not deep.any():
        return FileList(table, notes=notes)
    if not (deep.groupby(table["label"]).mean() > 0.5).all():
        few = "folders below the classes are no groups here, as most images of a class lie in none"
        return FileList(table, notes=(*notes, few))
    folders = ["/".join(one[1:-1]) for one in parts if len(one) > 2]
    groups, joined = one_spelling(folders, "group folder", Path(path).name)
    table["group"] = pd.Series(groups, index=table.index[deep])
    if not across_classes:
        table["group"] = table["label"] + "/" + table["group"]
    loose = failure_table(
        (name, "it lies beside the folders of the groups.", "Move it into that of its group.")
        for name in table["id"][~deep]
    )
    return FileList(table[deep].reset_index(drop=True), loose, (*notes, *joined))


def read_unlabelled(path: str | Path) -> FileList:
    """Every image below a folder, or of a table with the column path; labels are not used.

    Raises TableError for a folder without images and a table without the column.
    """
    path = Path(path)
    if is_table(path):
        table = _table_of_images(path, ("path",))
        written = located(table["path"].drop_duplicates().tolist(), path.parent)
        found = [path.parent / name for name in written]
        ids = names_without_machine(written, path.parent)
        absent = [not os.path.isfile(file) for file in found]
    else:
        found = find_images(path)
        ids = [id_of(item, path) for item in found]
        if not found:
            raise TableError(
                path, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
            )
        absent = [False] * len(found)
    table = pd.DataFrame({"path": found, "label": None, "id": ids})
    missing = failure_table((name, GONE, f"Check it. {LOOKED}") for name in table["id"][absent])
    return FileList(table[~np.array(absent)].reset_index(drop=True), missing)


def _table_of_images(path: Path, needed: Sequence[str]) -> pd.DataFrame:
    fix = f"Give a table (.csv in UTF-8, .tsv, .txt or .xlsx) with {' and '.join(needed)}."
    table = with_columns(read_table(path, "the table", fix), path, IMAGE_COLUMNS)
    check_columns(path, table, needed)
    return table


def find_images(folder: str | Path) -> list[Path]:
    """All files below ``folder`` that could be images, in a stable order; hidden and system files
    are passed over.

    Files with other suffixes are returned too when they are not obviously something else, so that
    the reader can say what is wrong with them instead of their vanishing in silence; and so are
    folders that cannot be opened, pipes and other special files. Each folder is looked through
    once, see :func:`nbhelpers.core.files.folders_below`.
    """
    folder = Path(folder)
    _check_folder(folder)
    other = {".csv", ".txt", ".md", ".json", ".xlsx", ".yaml", ".yml", ".pdf"}
    found: list[Path] = []
    closed: list[OSError] = []
    for root, names in folders_below(folder, hidden=False, closed=closed.append):
        found += [
            root / name
            for name in names
            if not name.startswith(".")
            and name.lower() not in _SKIPPED
            and Path(name).suffix.lower() not in other
        ]
    return found + sorted(Path(os.fsdecode(error.filename)) for error in closed)


def id_of(path: Path, base: Path) -> str:
    """The name of an image: its path from ``base``, with slashes, as text that every
    file can hold."""
    return printable(path.relative_to(base).as_posix())


def plain(name: str) -> str:
    """A name without case, spaces and signs, to compare spellings."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        fix = "Give the folder that it is in, or a table as .csv, .tsv, .txt or .xlsx."
        raise InputError(folder, "this is a file.", fix)
    raise InputError(folder, "this folder does not exist.", "Check the path and its spelling.")


def read_class_folders(folder: str | Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Table with path, label, id from a folder that holds one folder per class; and which classes
    are spelled in two ways.

    Raises TableError for fewer than two classes, an empty folder, images that lie beside the class
    folders, and names that may be one class.
    """
    folder = Path(folder)
    _check_folder(folder)
    classes = sorted(
        entry
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    )
    loose = [
        entry for entry in folder.iterdir() if entry.is_file() and entry.suffix.lower() in SUFFIXES
    ]
    if loose:
        raise TableError(
            loose[0],
            f"{len(loose)} images lie beside the class folders and so have no label.",
            "Move each into the folder of its class.",
        )
    names, joined = one_spelling([printable(entry.name) for entry in classes], "class", folder)
    if len(set(names)) < 2:
        raise TableError(
            folder,
            f"there are {len(set(names))} class folders.",
            "Make one folder per class, at least 2.",
        )
    rows = []
    for entry, name in zip(classes, names, strict=True):
        images = find_images(entry)
        if not images:
            raise TableError(
                entry, "the class folder holds no images.", "Put images in it or delete it."
            )
        rows += [{"path": path, "label": name, "id": id_of(path, folder)} for path in images]
    return pd.DataFrame(rows), tuple(joined)


def read_label_table(path: str | Path) -> FileList:
    """The files of a table (.csv, .tsv, .txt, .xlsx), and what was left out.

    The table has the columns ``path`` and ``label``, and may have ``group`` and ``centre``, which
    are kept (other names: ``IMAGE_COLUMNS``). For where a path starts see
    :func:`nbhelpers.core.tables.located`. ``id`` is the path relative to the table; of an absolute
    path that leads elsewhere it is the shortest end that no other image shares, so that no folder
    of the machine is named. Left out and listed: rows whose image is missing or whose label is
    empty, the second of two rows with the same image (``a.png``, ``./a.png`` and a link to it are
    the same), and images of the same folders that no row names. Raises TableError for missing
    columns, an empty table, two rows that give one image two labels or groups, and keys that may be
    one thing in two spellings.
    """
    path = Path(path)
    table = _table_of_images(path, ("path", "label"))
    base = path.parent
    table["row"] = table.index
    table["path"] = located(table["path"].tolist(), base)
    files = [os.path.join(base, name) for name in table["path"]]
    table["file"] = list(map(os.path.realpath, files))
    table["id"] = names_without_machine(table["path"].tolist(), base)
    notes: list[str] = []
    keys = [name for name in ("label", "group", "centre") if name in table]
    for name in keys:
        table[name], joined = one_spelling(table[name], name, path.name)
        notes += joined
    named = {*files, *table["file"]}
    failures = []

    def leave_out(rows: pd.Series, why: str, fix: str) -> pd.DataFrame:
        for row in table[rows].itertuples():
            failures.append((f"{path.name}, row {row.row}: {row.id}", why, fix))
        return table[~rows]

    table = leave_out(table["label"] == "", "the row has no label.", "Fill in the label.")
    for name in keys:
        several = table.groupby("file", sort=False)[name].nunique()
        if (several > 1).any():
            rows = table[table["file"] == several.index[several > 1][0]]
            raise TableError(
                f"{path.name}, rows {rows['row'].tolist()}",
                f"the image {' = '.join(dict.fromkeys(rows['id']))} has two different {name}s.",
                "Decide which one is right and delete the other row.",
            )
    table = leave_out(
        table.duplicated("file"),
        "the image stands twice in the table.",
        "Delete one of the two rows.",
    )
    exists = table["file"].map(os.path.isfile).astype(bool)
    table = leave_out(~exists, GONE, f"Check it. {LOOKED}")
    if table.empty:
        first = f"First: {failures[0][0]}: {failures[0][1]} {LOOKED}"
        raise TableError(path, "no row is left that names an existing image and a label.", first)
    if table["label"].nunique() < 2:
        raise TableError(
            path,
            f"every image has the label {table['label'].iloc[0]}.",
            "To tell classes apart, at least two are needed.",
        )
    table = table.assign(path=table["path"].map(lambda name: base / name))
    for folder in sorted({file.parent for file in table["path"]}):
        for file in sorted(map(str, folder.iterdir())):
            if (
                os.path.splitext(file)[1].lower() in SUFFIXES
                and file not in named
                and os.path.isfile(file)
                and os.path.realpath(file) not in named
            ):
                (name,) = names_without_machine([os.path.abspath(file)], base)
                why = "no row of the table names this image."
                failures.append((name, why, "Add a row for it, or move it away."))
    examples = {"group": "neuron, animal ...", "centre": "laboratory, scanner ..."}
    for name in keys[1:]:
        empty = table.loc[table[name] == "", "row"]
        if len(empty):
            raise TableError(
                f"{path.name}, row {empty.iloc[0]}",
                f"the {name} is empty.",
                f"Fill in the {name} ({examples[name]}) of every row, or delete the whole column.",
            )
    columns = ["path", "label", "id", *keys[1:]]
    return FileList(table[columns].reset_index(drop=True), failure_table(failures), tuple(notes))


def names_without_machine(written: list[str], base: Path) -> list[str]:
    """One name per path: relative to ``base`` where it lies there, as written where that is
    relative already, else the shortest end of the path that no other one has."""
    names = {}
    elsewhere = {}
    for path in dict.fromkeys(written):
        if not os.path.isabs(path):
            names[path] = Path(os.path.normpath(path)).as_posix() if path else ""
            continue
        straight = Path(os.path.normpath(path))
        real = Path(os.path.realpath(os.path.dirname(path)), Path(path).name)
        for folder, file in ((base.absolute(), straight), (Path(os.path.realpath(base)), real)):
            if file.is_relative_to(folder):
                names[path] = file.relative_to(folder).as_posix()
                break
        else:
            parts = straight.parts[1:]
            elsewhere[path] = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    times = Counter(names.values())
    for ends in elsewhere.values():
        times.update(ends)
    for path, ends in elsewhere.items():
        names[path] = next((end for end in ends if times[end] == 1), ends[-1])
    return [names[path] for path in written]
