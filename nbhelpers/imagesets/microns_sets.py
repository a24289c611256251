"""The data sets that notebook 01 wrote: its patches, its cubes and its split by neuron."""

from __future__ import annotations

from pathlib import Path

from nbhelpers.core.errors import InputError
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.imagesets.sections import central
from nbhelpers.imagesets.stacks import about_dataset, open_stacks, read_dataset


def load_microns_patches(
    data_dir: str | Path, data_folder: str | Path, *, size_px: int | None = 128
) -> ImageSet:
    """The patches of a data set; nothing is read until used. Group is the presynaptic neuron.

    ``data_dir`` is the folder that notebook 01 wrote, empty: ``microns`` in the data folder. Larger
    patches are cropped at their centre, once, into ``data_folder``; None keeps the stored size.
    Raises InputError when there is no data set, it is damaged, or its patches are smaller.
    """
    images = _load(data_dir, data_folder, "patches")
    return images if size_px is None else central(images, (size_px, size_px), data_folder)


def load_microns_cubes(data_dir: str | Path, data_folder: str | Path) -> ImageSet:
    """The cubes of a data set in their stored size; as :func:`load_microns_patches` else."""
    return _load(data_dir, data_folder, "cubes")


def load_stored_split(data_dir: str | Path) -> Split:
    """The split by presynaptic neuron that notebook 01 stored in its data set folder; its hash is
    checked.

    Raises InputError when there is no data set, SplitError when the split is absent or was changed.
    """
    about_dataset(data_dir)
    return Split.load(Path(data_dir) / "split.csv")


def _load(data_dir: str | Path, data_folder: str | Path, kind: str) -> ImageSet:
    folder = Path(data_dir or Path(data_folder) / "microns")
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
    content = sha256_of([rows, [stack["sha256"] for stack in stored["stacks"]], None])
    axes = 2 if kind == "patches" else 3
    return ImageSet(
        name=about["name"],
        table=table,
        pixels=pixels,
        classes=tuple(about["classes"]),
        source=about["source"],
        synthetic=bool(about["synthetic"]),
        content_hash=content,
        channels=("EM",),
        pixel_size_nm=tuple(stored["voxel_nm"][-axes:]),
        failures=left_out.rename(columns={"id": "file"})[["file", "why", "fix"]],
    )
