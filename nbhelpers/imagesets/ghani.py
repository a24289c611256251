"""The public spine masks of Ghani et al. 2017."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nbhelpers.core.errors import TableError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets import downloads
from nbhelpers.imagesets.folder import FileList, find_images
from nbhelpers.imagesets.masks import from_files

CLASSES = ("Mushroom", "Stubby", "Thin")
GHANI_SOURCE = (
    "456 two-photon dendritic spine masks with expert labels, Ghani et al. 2017 (J. Neurosci. "
    f"Methods), MIT licence, commit {downloads.GHANI_COMMIT[:12]}"
)


def load_ghani_spines(data_folder: str | Path, *, data_dir: str | Path = "") -> ImageSet:
    """The 456 public masks (288 Mushroom, 113 Stubby, 55 Thin), 250 x 250 px; no pixel size is
    published.

    Downloaded once into ``data_folder`` and checked by sha256, or read from ``data_dir`` where the
    two published files are already. The set names no neuron or animal, so each spine is its own
    group (equal masks share one). Raises DownloadError, TableError.
    """
    data_folder = Path(data_folder)
    files = downloads.fetch(
        "spines_ghani", data_folder / "downloads", given_folder=data_dir or None
    )
    labels = pd.read_excel(files["Dataset_Labels.xlsx"], sheet_name=0, usecols=[0, 1], dtype=str)
    labels.columns = ["file", "label"]
    masks = downloads.unpack_zip(
        files["Dataset_Annotations.zip"],
        data_folder / "unpacked" / f"spines_ghani-{downloads.GHANI_COMMIT[:12]}",
    )
    by_name = {path.name: path for path in find_images(masks)}
    labels["label"] = labels["label"].str.strip()
    unmatched = set(labels["file"]) ^ set(by_name)
    if unmatched:
        raise TableError(
            "Dataset_Labels.xlsx",
            f"labels and masks do not match, e.g. {min(unmatched)}.",
            "Delete the folders data/unpacked and data/downloads and run again.",
        )
    table = pd.DataFrame(
        {
            "path": [by_name[name] for name in labels["file"]],
            "label": labels["label"],
            "id": labels["file"],
        }
    )
    about = {"name": "spines of Ghani et al. 2017", "source": GHANI_SOURCE, "classes": CLASSES}
    return from_files(FileList(table), data_folder, **about)
