"""The data sets that notebook 01 wrote: its patches, its cubes and its split by neuron."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.kept import kept
from nbhelpers.core.splits import Split
from nbhelpers.imagesets.stacks import about_dataset, open_stacks, read_dataset

PIECE = 512  # patches that are cropped at one time


def load_microns_patches(
    data_dir: str | Path, data_folder: str | Path, *, size_px: int | None = 128
) -> ImageSet:
    """The patches of a data set; nothing is read until used. Group is the presynaptic neuron.

    ``data_dir`` is the folder that notebook 01 wrote, empty: ``microns`` in the data folder. Larger
    patches are cropped at their centre, once, into ``data_folder``; None keeps the stored size.
    Raises InputError when there is no data set, it is damaged, or its patches are smaller.
    """
    return _load(data_dir or Path(data_folder) / "microns", data_folder, size_px, "patches")


def load_microns_cubes(data_dir: str | Path, data_folder: str | Path) -> ImageSet:
    """The cubes of a data set in their stored size; as :func:`load_microns_patches` else."""
    return _load(data_dir or Path(data_folder) / "microns", data_folder, None, "cubes")


def load_stored_split(data_dir: str | Path) -> Split:
    """The split by presynaptic neuron that notebook 01 stored in its data set folder; its hash is
    checked.

    Raises InputError when there is no data set, SplitError when the split is absent or was changed.
    """
    about_dataset(data_dir)
    return Split.load(Path(data_dir) / "split.csv")


def _load(folder: str | Path, data_folder: str | Path, size_px: int | None, kind: str) -> ImageSet:
    folder = Path(folder)
    about, table, left_out = read_dataset(folder)
    pixels = open_stacks(folder, kind)
    if len(pixels) != len(table):
        raise InputError(
            folder.name,
            f"{len(table)} rows in synapses.parquet but {len(pixels)} {kind}.",
            "Run notebook 01 again; it goes on where it stopped.",
        )
    table = table.assign(id=table["id"].astype(str), group=table["group"].astype(str))
    stored = about[kind]
    rows = table[["id", "label", "group"]].astype(str).values.tolist()
    content = sha256_of([rows, [stack["sha256"] for stack in stored["stacks"]], size_px])
    source = about["source"]
    if size_px is not None:
        pixels, cropped = _cropped(folder, pixels, size_px, content, data_folder)
        source += cropped
    axes = 2 if kind == "patches" else 3
    return ImageSet(
        name=about["name"],
        table=table,
        pixels=pixels,
        classes=tuple(about["classes"]),
        source=source,
        synthetic=bool(about["synthetic"]),
        content_hash=content,
        channels=("EM",),
        pixel_size_nm=tuple(stored["voxel_nm"][-axes:]),
        failures=left_out.rename(columns={"id": "file"})[["file", "why", "fix"]],
    )


def _cropped(folder: Path, whole, size_px: int, content: str, data_folder: str | Path):
    """The central ``size_px`` of every patch, and the words for it."""
    height, width = whole.shape[-2:]
    if min(height, width) < size_px:
        raise InputError(
            folder.name,
            f"its patches are {width} x {height} px, smaller than the {size_px} px asked for.",
            f"Set size_px to {min(height, width)}, or run notebook 01 with larger patches.",
        )
    if max(height, width) == size_px:
        return whole, ""
    top = (height - size_px) // 2
    left = (width - size_px) // 2

    def pieces():
        for start in range(0, len(whole), PIECE):
            piece = np.asarray(whole[start : start + PIECE])
            yield piece[..., top : top + size_px, left : left + size_px]

    pixels = kept(Path(data_folder) / "packed", ["central", content], pieces)
    return pixels, f"; the central {size_px} of {width} x {height} px"
