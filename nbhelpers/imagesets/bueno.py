"""The public glomeruli of Bueno et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import TableError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets import downloads
from nbhelpers.imagesets.folder import FileList
from nbhelpers.imagesets.glomerulus_files import from_files

CLASSES = ("nonGS", "GS")
BUENO_SOURCE = (
    "PAS-stained glomeruli of Bueno et al. 2020 (Data in Brief), patches of Weishaupt et al. 2025, "
    f"CC BY-NC-SA 4.0, commit {downloads.BUENO_COMMIT[:12]}"
)
_BUENO_NAME = r"(?P<label>[^/]+)/(?P<slide>(?P<centre>[A-Z]+)_\d+)(?:_\d+)?-\d+\.png$"


def load_bueno_glomeruli(data_folder: str | Path, *, data_dir: str | Path = "") -> ImageSet:
    """The public patches: 946 of 31 slides from 3 centres, 224 x 224 px RGB, 209 GS and 737 nonGS.

    Downloaded once into ``data_folder`` and checked by sha256, or read from ``data_dir``, which
    may hold only a part of them: then ``source`` says how many, and ``failures`` lists per centre
    how many are missing. The table has ``centre`` and ``slide`` from the file name; groups are
    slides. The patches are cut to the glomerulus and scaled to one size, so the magnification
    differs between them and no pixel size is known. Raises DownloadError, TableError.
    """
    data_folder = Path(data_folder)
    files = downloads.fetch(
        "glomeruli_bueno",
        data_folder / "downloads",
        given_folder=data_dir or None,
        partial=bool(data_dir),
    )
    known = [file.name for file in downloads.files_of("glomeruli_bueno")]
    table = _bueno_table(known)
    missing = table[~table["id"].isin(files)]
    table = table[table["id"].isin(files)].reset_index(drop=True)
    table["path"] = table["id"].map(files)
    table["id"] = table["label"] + "/" + table["id"].map(lambda name: Path(name).name)
    listed = FileList(table)
    source = BUENO_SOURCE
    if len(missing):
        counts = missing.groupby("centre").size()
        absent = pd.DataFrame(
            {
                "file": [f"{count} patches of the centre {name}" for name, count in counts.items()],
                "why": "the folder given does not hold them.",
                "fix": "Leave data_dir empty to download all, or carry on without them.",
            }
        )
        listed = replace(listed, failures=absent)
        centres = ", ".join(sorted(set(table["centre"])))
        source = f"{len(table)} of {len(known)} patches, centres {centres}; {BUENO_SOURCE}"
    return from_files(
        listed, data_folder, name="glomeruli of Bueno et al. 2020", classes=CLASSES, source=source
    )


def _bueno_table(names: Sequence[str]) -> pd.DataFrame:
    """id (path in the repository), label, centre, slide, group of the published file names."""
    names = pd.Series(names, dtype=object)
    table = names.str.extract(_BUENO_NAME).assign(id=names)
    other = table["centre"].isna()
    if other.any():
        raise TableError(
            names[other].iloc[0],
            "the file name does not read CLASS/CENTRE_slide_section-number.png.",
            "The list of published files was changed.",
        )
    return table.assign(group=table["slide"])[["id", "label", "centre", "slide", "group"]]
