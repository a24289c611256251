"""The user's own images: a folder per class, or a CSV of path and label, or a folder to predict."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import InputError, TableError, check_columns
from nbhelpers.core.files import folders_below, read_csv
from nbhelpers.core.imageset import failure_table
from nbhelpers.imagesets.reader import SUFFIXES, printable

_SKIPPED = {".ds_store", "thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class FileList:
    """Files to read: ``table`` has path, label, id and perhaps group and centre; ``failures`` lists
    what was left out before anything was read.
    """

    table: pd.DataFrame
    failures: pd.DataFrame = field(default_factory=failure_table)


def read_labelled(path: str | Path) -> FileList:
    """The files of a folder with one folder per class, or of a CSV with path, label and perhaps
    group. Raises TableError.
    """
    if Path(path).suffix.lower() == ".csv":
        return read_label_table(path)
    return FileList(read_class_folders(path))


def read_unlabelled(path: str | Path) -> FileList:
    """Every image below a folder, or of a CSV with the column path; labels are not used.

    Raises TableError for a folder without images and a CSV without the column.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        found, ids = _written_paths(path)
    else:
        found = find_images(path)
        ids = [id_of(item, path) for item in found]
        if not found:
            raise TableError(
                path, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
            )
    return FileList(pd.DataFrame({"path": found, "label": None, "id": ids}))


def _written_paths(csv: Path) -> tuple[list[Path], list[str]]:
    table = read_csv(csv, "the table", "Save it as CSV in UTF-8 with the column path.")
    table.columns = [str(name).strip().lower() for name in table.columns]
    if "path" not in table.columns or table.empty:
        raise TableError(
            csv,
            f"it has no rows with the column path; there is {list(table.columns)}.",
            "The first line must hold the word path.",
        )
    written = table["path"].str.strip().drop_duplicates().tolist()
    ids = _names_without_machine(written, csv.parent)
    return [csv.parent / name for name in written], ids


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
        raise InputError(folder, "this is a file.", "Give the folder that it is in.")
    raise InputError(folder, "this folder does not exist.", "Check the path and its spelling.")


def read_class_folders(folder: str | Path) -> pd.DataFrame:
    """Table with path, label, id from a folder that holds one folder per class.

    Raises TableError for fewer than two class folders, an empty one, or images that lie beside the
    class folders.
    """
    folder = Path(folder)
    _check_folder(folder)
    classes = sorted(
        entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")
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
    if len(classes) < 2:
        raise TableError(
            folder,
            f"there are {len(classes)} class folders.",
            "Make one folder per class, at least 2.",
        )
    rows = []
    for entry in classes:
        images = find_images(entry)
        if not images:
            raise TableError(
                entry, "the class folder holds no images.", "Put images in it or delete it."
            )
        rows += [{"path": path, "label": entry.name, "id": id_of(path, folder)} for path in images]
    return pd.DataFrame(rows)


def read_label_table(csv: str | Path) -> FileList:
    """The files of a CSV, and what was left out.

    The CSV has the columns ``path`` (relative to the CSV, or absolute) and ``label``, and may have
    ``group`` and ``centre`` (or ``center``), which are kept. ``id`` is the path relative to the
    CSV; of an absolute path that leads elsewhere it is the shortest end that no other image shares,
    so that no folder of the machine is named. Left out and listed: rows whose image is missing or
    whose label is empty, the second of two rows with the same image (``a.png``, ``./a.png`` and a
    link to it are the same), and images of the same folders that no row names. Raises TableError
    for missing columns, an empty table, and two rows that give one image two labels.
    """
    csv = Path(csv)
    fix = "Save it as CSV in UTF-8 with the columns path and label."
    table = read_csv(csv, "the label table", fix)
    table.columns = [str(name).strip().lower() for name in table.columns]
    table = table.rename(columns={"center": "centre"})
    check_columns(csv, table, ("path", "label"))
    table["row"] = range(2, len(table) + 2)
    for name in {"path", "label", "group", "centre"} & set(table.columns):
        table[name] = table[name].str.strip()
    table["file"] = [os.path.realpath(csv.parent / name) for name in table["path"]]
    table["id"] = _names_without_machine(table["path"].tolist(), csv.parent)
    named = set(table["file"])
    failures = []

    def leave_out(rows: pd.Series, why: str, fix: str) -> pd.DataFrame:
        for row in table[rows].itertuples():
            failures.append((f"{csv.name}, row {row.row}: {row.id}", why, fix))
        return table[~rows]

    table = leave_out(table["label"] == "", "the row has no label.", "Fill in the label.")
    labels = table.groupby("file", sort=False)["label"].nunique()
    if (labels > 1).any():
        rows = table[table["file"] == labels.index[labels > 1][0]]
        raise TableError(
            f"{csv.name}, rows {rows['row'].tolist()}",
            f"the image {' = '.join(dict.fromkeys(rows['id']))} has two different labels.",
            "Decide which one is right and delete the other row.",
        )
    table = leave_out(
        table.duplicated("file"),
        "the image stands twice in the table.",
        "Delete one of the two rows.",
    )
    exists = table["file"].map(os.path.isfile).astype(bool)
    table = leave_out(
        ~exists,
        "the image of this row does not exist.",
        "Check the path; it starts at the CSV's folder.",
    )
    if table.empty:
        raise TableError(
            csv,
            "no row is left that names an existing image and a label.",
            "The paths start at the folder of the CSV.",
        )
    if table["label"].nunique() < 2:
        raise TableError(
            csv,
            f"every image has the label {table['label'].iloc[0]}.",
            "To tell classes apart, at least two are needed.",
        )
    table = table.assign(path=table["path"].map(lambda name: csv.parent / name))
    for folder in sorted({path.parent for path in table["path"]}):
        for path in sorted(folder.iterdir()):
            if (
                path.suffix.lower() in SUFFIXES
                and path.is_file()
                and os.path.realpath(path) not in named
            ):
                (file,) = _names_without_machine([str(path.absolute())], csv.parent)
                why = "no row of the table names this image."
                failures.append((file, why, "Add a row for it, or move it away."))
    columns = ["path", "label", "id"]
    for name, examples in (("group", "neuron, animal ..."), ("centre", "laboratory, scanner ...")):
        if name not in table.columns:
            continue
        columns.append(name)
        if (table[name] == "").any():
            row = table.loc[table[name] == "", "row"].iloc[0]
            raise TableError(
                f"{csv.name}, row {row}",
                f"the {name} is empty.",
                f"Fill in the {name} ({examples}) of every row, or delete the whole column.",
            )
    return FileList(table[columns].reset_index(drop=True), failure_table(failures))


def _names_without_machine(written: list[str], base: Path) -> list[str]:
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
