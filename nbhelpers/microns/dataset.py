"""From a table of synapses and a volume to a data set folder: stacks of cutouts, one table, what
was left out.

The folder, whichever way it was made (one process, many, killed and gone on with), ends in the same
bytes:

    dataset.json       what it is, where it comes from, its stacks with their hashes; written last
    synapses.parquet   one row per synapse, in the order of the stacks
    left_out.csv       id, why, fix
    split.csv, .json   written by the caller of :func:`split_by_neuron`
    patches/ cubes/    00000.ome.tif ...: the unit of work, of resume and of a shard
    work/              the request and a note per finished stack: what a later run goes on from

    python -m nbhelpers.microns.dataset --request FOLDER/work/request.json --shard 0 --shards 4
    python -m nbhelpers.microns.dataset --request FOLDER/work/request.json --merge
"""

import argparse
import ctypes
import errno
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from nbhelpers.core.errors import (
    InputError,
    ParameterError,
    SplitError,
    check_choice,
    check_columns,
    check_range,
)
from nbhelpers.core.files import plain, sha256_of, sha256_of_file, whole_file, write_csv, write_json
from nbhelpers.core.seeds import generator_for
from nbhelpers.core.splits import Split
from nbhelpers.imagesets.sections import constant_sections, continuity, zero_fraction
from nbhelpers.imagesets.stacks import (
    DATASET_FORMAT,
    StackedPixels,
    open_stacks,
    read_dataset,
    write_stack,
)
from nbhelpers.microns.cutouts import Volume
from nbhelpers.microns.points import Points

CLASSES = ("excitatory", "inhibitory")
CENTRES = {"ctr": "", "pre": "pre_"}  # which position of a synapse, and the prefix of its columns
# a stack has no more than either; its pixels are held in memory
STACK_ROWS = 4096
STACK_BYTES = 128 * 2**20
# a section with more zeros is blank; a synapse with more zeros in its other sections is left out
BLANK_SECTION = 0.5
MAX_ZERO_FRACTION = 0.05
MOST_JOBS = 1000
HELD_OUT = 0.15  # of the neurons for test, and as many for validation
NEEDED = (
    "id",
    "label",
    "group",
    "pre_root_id",
    "post_root_id",
    "nucleus_id",
    "x_nm",
    "y_nm",
    "z_nm",
)
MEASURED = ("zero_fraction", "continuity", "source_hash")
KINDS = ("patches", "cubes")
NAMES = {"patches": "patch", "cubes": "cube"}
ORDER = "tiles 1"  # of work, and so of the rows: another one gives other stacks
OF_THE_VOLUME = ("mip", "voxel_nm", "dtype", "volume_info", "stack_rows", "rows", "hash", "volume")
WORKFLOW = Path(__file__).resolve().parents[2] / "workflow" / "extraction.smk"
FROM_ABOUT = ("datastack", "version", "timestamp", "query_hash")


class DatasetError(InputError):
    """A data set folder that holds something else, is unfinished, damaged, or cannot be written."""


@dataclass(frozen=True)
class Extracted:
    """A finished data set folder: its table, what was left out (id, why, fix), and the content of
    dataset.json.
    """

    folder: Path
    synapses: pd.DataFrame
    left_out: pd.DataFrame
    about: dict[str, Any]

    def pixels(self, kind: str) -> StackedPixels:
        """The ``patches`` or ``cubes``, in the order of ``synapses``."""
        return open_stacks(self.folder, kind)


@dataclass(frozen=True)
class Cutout:
    """What is cut out around each synapse, in pixels of the volume at ``mip``.

    ``patch_px``: side of the 2D patches, or None for no patches. ``cube_px``: (z, y, x) of the 3D
    cubes, or None for no cubes. ``centre``: "ctr" (the cleft) or "pre" (the presynaptic side).
    Raises ParameterError.
    """

    patch_px: int | None = 128
    cube_px: Sequence[int] | None = (16, 128, 128)
    centre: str = "ctr"
    mip: int = 0

    def __post_init__(self):
        check_choice("parameter centre", self.centre, CENTRES)
        if not any(self.shapes.values()):
            raise ParameterError(
                "parameters patch_px and cube_px",
                "both are None.",
                "Ask for patches, cubes, or both.",
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...] | None]:
        """Shape of the images of each kind, or None."""
        return {
            "patches": (self.patch_px, self.patch_px) if self.patch_px else None,
            "cubes": tuple(self.cube_px) if self.cube_px else None,
        }


@dataclass(frozen=True)
class Origin:
    """What a data set is and where its images come from: ``source`` is a sentence, ``about`` holds
    further facts as JSON; datastack, version, timestamp and query_hash become keys of their own.
    """

    name: str
    source: str
    synthetic: bool
    about: Mapping[str, Any] = field(default_factory=dict)


def extract(
    synapses: pd.DataFrame,
    volume: Volume | Callable[[], Volume],
    folder: str | os.PathLike,
    cutout: Cutout,
    origin: Origin,
    *,
    stack_rows: int | None = None,
    jobs: int = 1,
    report: Callable[[str], None] = print,
) -> Extracted:
    """Cut out every synapse of a table and write the data set folder, or go on with it, or find it
    finished.

    Parameters
    ----------
    synapses : columns id, label, group, pre_root_id, post_root_id, nucleus_id, x_nm, y_nm, z_nm,
        and pre_x_nm, pre_y_nm, pre_z_nm where the centre is "pre". Further columns are kept.
    volume : or a function that opens it at the cutout's mip: called only when there is something to
        cut, so that a finished data set is found without a network.
    stack_rows : synapses per stack; by default at most 4096 and at most 128 MB of pixels.
    jobs : with more than one, processes cut side by side, under Snakemake. The data set is the same
        bit for bit.

    A synapse is left out when a section of its cube or its patch is blank (half of it zeros, or all
    of it one grey value), or more than 5 % of the pixels of the others are zeros. Raises
    DatasetError when the folder holds another request, when a table cannot be used, or when the
    disk is full; VolumeError when the volume fails. Finished stacks stay, and the next run goes on
    behind them without fetching them again.
    """
    folder = Path(folder)
    check_range("parameter jobs", jobs, 1, MOST_JOBS)
    opened = volume if isinstance(volume, Volume) else None
    _, asked = _asked(synapses, cutout, origin)
    finished = _finished(folder, asked, cutout.mip, opened, stack_rows)
    if finished:
        report(f"{len(finished.synapses)} synapses were cut out before: {folder.name}")
        return finished
    opened = opened or volume()
    request_path = prepare(synapses, opened, folder, cutout, origin, stack_rows=stack_rows)
    if jobs > 1:
        return _in_jobs(request_path, jobs, report)
    run_shard(folder, opened, 0, 1, report=report)
    return merge(folder)


def prepare(
    synapses: pd.DataFrame,
    volume: Volume,
    folder: str | os.PathLike,
    cutout: Cutout,
    origin: Origin,
    *,
    stack_rows: int | None = None,
) -> Path:
    """Write the request into the folder, for shards to work on, and return its path. Parameters as
    :func:`extract`.
    """
    folder = Path(folder)
    table, asked = _asked(synapses, cutout, origin)
    served = origin.about.get("served")
    if served is not None and served != volume.served:
        raise DatasetError(
            origin.name,
            f"the synapses are of {_miniature(served)}, and the volume is of "
            f"{_miniature(volume.served)}.",
            "Query the tables that belong to this volume.",
        )
    why, order = _planned(table, volume, cutout.shapes, cutout.centre)
    if not len(order):
        first = f" First: {why[0]}" if len(why) else ""
        raise DatasetError(
            origin.name,
            f"not one of the {len(table)} synapses can be cut out.{first}",
            "Check that the volume, its mip and the positions belong together.",
        )
    outside = np.setdiff1d(np.arange(len(table)), order)
    pixels = sum(math.prod(shape) for shape in cutout.shapes.values() if shape)
    fitting = max(1, min(STACK_ROWS, STACK_BYTES // (pixels * volume.dtype.itemsize)))
    request = plain(
        {
            **asked,
            "mip": volume.scale.mip,
            "voxel_nm": volume.voxel_nm,
            "dtype": volume.dtype.name,
            "volume_info": volume.identity,
            "stack_rows": stack_rows or fitting,
            "rows": len(order),
        }
    )
    # the address is no part of the hash: a mirror, or a loopback server started again, serves the
    # same volume
    request |= {"hash": sha256_of(request), "volume": _public_address(volume.address)}
    path = folder / "work" / "request.json"
    if path.is_file():
        _refuse_another(folder, _read_json(path), request)
    check_place(folder)
    rows = np.concatenate([order, outside])
    with _disk(folder, "the request"):
        _write_parquet(
            table.iloc[rows].assign(left_out=why[rows]),
            folder / "work" / "synapses.parquet",
            rows_at_a_time=request["stack_rows"],
        )
        # the address may change between runs
        write_json(folder / "work" / "volume.json", volume.settings)
        write_json(path, request)
    return path


def check_place(folder: str | os.PathLike) -> None:
    """Raises DatasetError when the folder holds something that is no data set."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DatasetError(folder.name, "it is a file.", "Give an empty or a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "work").is_dir():
        raise DatasetError(
            folder.name, "the folder holds something else.", "Give an empty or a new folder."
        )


def _miniature(served: str) -> str:
    return f"miniature {served[:8]}" if served else "no miniature"


def _in_jobs(request: Path, jobs: int, report: Callable[[str], None]) -> Extracted:
    """Make and merge the stacks in processes of their own, as workflow/extraction.smk says."""
    folder = request.parent.parent
    own = request.parent / "snakemake"
    if not WORKFLOW.is_file():
        raise DatasetError(
            WORKFLOW.name,
            "it is not there: more than one job needs the whole repository.",
            "Cut with one job.",
        )
    done_files = request.parent / "shards"
    shutil.rmtree(
        done_files, ignore_errors=True
    )  # of a killed run, whose stacks may have been lost since
    cores = min(jobs, os.cpu_count() or 1)
    report(f"{jobs} jobs cut the synapses out, {cores} at one time")
    try:
        with _disk(folder, "the notes of the jobs"):
            own.mkdir(exist_ok=True)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "snakemake",
                "-s",
                str(WORKFLOW),
                "--cores",
                str(cores),
                "--nolock",
                "--directory",
                str(own),
                "--keep-going",
                "--config",
                f"request={request.resolve()}",
                f"shards={jobs}",
            ],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(
                    filter(None, (str(WORKFLOW.parents[1]), os.environ.get("PYTHONPATH")))
                ),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    finally:
        shutil.rmtree(own, ignore_errors=True)
        shutil.rmtree(done_files, ignore_errors=True)
    if done.returncode or not (folder / "dataset.json").is_file():
        said = [
            line.removeprefix(FAILED)
            for line in done.stdout.splitlines()
            if line.startswith(FAILED)
        ]
        raise DatasetError(
            folder.name,
            f"a job failed: {(said or done.stdout.splitlines() or ['it said nothing'])[-1]}",
            "Run again: what is finished is kept.",
        )
    return load(folder)


def run_shard(
    folder: str | os.PathLike,
    volume: Volume,
    shard: int,
    shards: int,
    *,
    report: Callable[[str], None] = print,
) -> None:
    """Make the stacks of one shard that are not there yet: shard 0 the first ``1 / shards`` of
    them, and so on.
    """
    folder = Path(folder)
    check_range("parameter shard", shard, 0, shards - 1)
    request = _read_json(folder / "work" / "request.json")
    if volume.identity != request["volume_info"] or volume.scale.mip != request["mip"]:
        raise DatasetError(
            folder.name,
            "the volume is not the one of the request.",
            "Give its address, or a new folder.",
        )
    count = _stack_count(request)
    for stack in np.array_split(np.arange(count), shards)[shard].tolist():
        if _note_of(folder, request, stack):
            continue
        note = _make_stack(folder, request, volume, stack, _rows_of(folder, request, stack))
        _give_memory_back()
        report(
            f"stack {stack + 1} of {count}: {note['rows']} synapses cut out, "
            f"{len(note['left_out'])} left out"
        )


def merge(folder: str | os.PathLike) -> Extracted:
    """Put the stacks of all shards together: check each against its hash, write the tables and,
    last, dataset.json.

    Raises DatasetError naming the stacks that are not made yet or are damaged; these are made by
    the next run.
    """
    import pyarrow.parquet

    folder = Path(folder)
    request = _read_json(folder / "work" / "request.json")
    notes = []
    absent = []
    for stack in range(_stack_count(request)):
        note = _note_of(folder, request, stack)
        if note and any(
            sha256_of_file(folder / kind["file"]) != kind["sha256"]
            for kind in note["stacks"].values()
        ):
            _note_path(folder, stack).unlink()  # so that the next run makes it again
            note = None
        notes.append(note)
        absent += [] if note else [stack]
    if absent:
        raise DatasetError(
            folder.name,
            f"{len(absent)} of {len(notes)} stacks are not finished or damaged: "
            f"{', '.join(map(str, absent[:10]))}{' ...' if len(absent) > 10 else ''}.",
            "Run the shards again: what is finished is kept.",
        )
    parts = [
        pyarrow.parquet.read_table(_note_path(folder, stack).with_suffix(".parquet"))
        for stack, note in enumerate(notes)
        if note["rows"]
    ]
    if not parts:
        raise DatasetError(
            folder.name,
            f"all synapses were left out. First: {notes[0]['left_out'][0]['why']}",
            "Check that the volume, its mip and the positions belong together.",
        )
    before = pd.read_parquet(folder / "work" / "synapses.parquet", columns=["id", "left_out"]).iloc[
        request["rows"] :
    ]
    left_out = [
        {"id": row.id, "why": row.left_out, "fix": "Choose a smaller cutout, or do without it."}
        for row in before.itertuples()
    ]
    for note in notes:
        left_out += note["left_out"]
    left_out = pd.DataFrame(left_out, columns=["id", "why", "fix"], dtype=str)
    with _disk(folder, "the tables"):
        with whole_file(folder / "synapses.parquet") as temporary:
            # a column without a value in one stack has no type there
            pyarrow.parquet.write_table(
                pyarrow.concat_tables(parts, promote_options="permissive"), temporary
            )
        del parts
        write_csv(folder / "left_out.csv", left_out)
        for rest in folder.glob("*/.part-*"):  # of killed runs; no shard writes any more
            rest.unlink(missing_ok=True)
        synapses = pd.read_parquet(folder / "synapses.parquet")
        write_json(folder / "dataset.json", _about(folder, request, notes, synapses, left_out))
    return Extracted(folder, synapses, left_out, _read_json(folder / "dataset.json"))


def load(folder: str | os.PathLike) -> Extracted:
    """A finished data set folder. Raises InputError when it is not finished, or was changed."""
    about, synapses, left_out = read_dataset(folder)
    return Extracted(Path(folder), synapses, left_out, about)


def split_by_neuron(synapses: pd.DataFrame, *, seed: int) -> Split:
    """70 / 15 / 15 of the presynaptic neurons of each class, every synapse of a neuron in the same
    part.

    The caller stores it: ``split.save(folder / "split.csv")``. Raises SplitError when a class has
    fewer than 3 neurons, or a neuron two classes.
    """
    labels = synapses.groupby("group")["label"].agg(["nunique", "first"])
    if (labels["nunique"] > 1).any():
        raise SplitError(
            f"neuron {labels.index[labels['nunique'] > 1][0]}",
            "its synapses have two different classes.",
            "A synapse has the class of its presynaptic neuron: fix the table.",
        )
    part_of: dict[str, str] = {}
    for name in CLASSES:
        neurons = np.sort(labels.index[labels["first"] == name].to_numpy().astype(str))
        if len(neurons) < 3:
            raise SplitError(
                f"class {name}",
                f"it has {len(neurons)} neurons, and train, validation and test need one each.",
                f"Query more {name} neurons.",
            )
        draw = generator_for(seed, "split by neuron", name)
        neurons = draw.permutation(neurons)
        share = max(1, round(len(neurons) * HELD_OUT))
        held_out = min(share, len(neurons) - 2)
        validated = min(share, len(neurons) - held_out - 1)
        parts = np.split(neurons, [held_out, held_out + validated])
        for part, some in zip(("test", "validation", "train"), parts, strict=True):
            part_of.update(dict.fromkeys(some, part))
    groups = synapses["group"].astype(str)
    table = pd.DataFrame(
        {
            "repeat": 0,
            "fold": 0,
            "part": groups.map(part_of),
            "id": synapses["id"].astype(str),
            "group": groups,
        }
    ).reset_index(drop=True)
    if table["part"].isna().any():
        row = synapses.reset_index(drop=True)[table["part"].isna().to_numpy()].iloc[0]
        raise SplitError(
            f"synapse {row['id']}", f"its class is {row['label']}.", f"Known are {list(CLASSES)}."
        )
    protocol = "grouped: 70/15/15 of the presynaptic neurons of each class, whole neurons"
    return Split(table, protocol, seed)


def quality_table(folder: str | os.PathLike) -> pd.DataFrame:
    """One row per class and one for all: synapses, neurons, zero fraction (mean, largest),
    continuity (median, lowest).

    Continuity is the mean correlation of neighbouring sections of a cube; NaN where there are only
    patches.
    """
    table = load(folder).synapses
    rows = []
    for name, part in [*table.groupby("label", sort=True), ("all", table)]:
        rows.append(
            {
                "class": name,
                "synapses": len(part),
                "neurons": part["group"].nunique(),
                "zero fraction, mean": part["zero_fraction"].mean(),
                "zero fraction, largest": part["zero_fraction"].max(),
                "continuity, median": part["continuity"].median(),
                "continuity, lowest": part["continuity"].min(),
            }
        )
    return pd.DataFrame(rows)


def export_tiffs(folder: str | os.PathLike, out: str | os.PathLike) -> pd.DataFrame:
    """Write every patch as an OME-TIFF of its own, ``out/<class>/<id>.ome.tif``, and
    ``out/labels.csv``. Returns what labels.csv holds: path, label, group, id.
    """
    data = load(folder)
    out = Path(out)
    voxel_nm = data.about["patches"]["voxel_nm"]
    table = data.synapses[["label", "group", "id"]].copy()
    table.insert(0, "path", table["label"] + "/" + table["id"] + ".ome.tif")
    with _disk(out, "the images"):
        for path, image in zip(table["path"], data.pixels("patches"), strict=True):
            write_stack(out / path, image, voxel_nm)  # (1, y, x): a stack of one
        write_csv(out / "labels.csv", table)
    return table


def _asked(
    synapses: pd.DataFrame, cutout: Cutout, origin: Origin
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The checked table, and what of a request is known before the volume is opened."""
    table = _checked_table(synapses, CENTRES[cutout.centre])
    return table, plain(
        {
            "format": DATASET_FORMAT,
            "order": ORDER,
            "name": origin.name,
            "source": origin.source,
            "synthetic": bool(origin.synthetic),
            "classes": CLASSES,
            "about": dict(origin.about),
            "shapes": cutout.shapes,
            "centre": cutout.centre,
            "blank_section": BLANK_SECTION,
            "max_blank_sections": 0,
            "max_zero_fraction": MAX_ZERO_FRACTION,
            "synapses": _hash_of_table(table),
        }
    )


def _checked_table(synapses: pd.DataFrame, prefix: str) -> pd.DataFrame:
    """The table sorted by id, with id, label and group as text; what cannot be used is named."""
    positions = [f"{prefix}{axis}_nm" for axis in "xyz"]
    check_columns("synapses", synapses, [*NEEDED, *positions], DatasetError)
    clash = [column for column in (*MEASURED, "left_out") if column in synapses.columns]
    if clash:
        raise DatasetError(
            "synapses",
            f"the column {clash[0]} is there already, and would be written here.",
            "Rename it.",
        )
    table = synapses.reset_index(drop=True)
    for column in ("label", "group"):
        if table[column].isna().any():
            raise DatasetError(
                f"synapses, row {int(np.flatnonzero(table[column].isna())[0])}",
                f"it has no {column}.",
                "Leave unlabelled synapses out of the table.",
            )
    table = table.assign(
        **{column: table[column].astype(str) for column in ("id", "label", "group")}
    )
    unknown = set(table["label"]) - set(CLASSES)
    if unknown:
        raise DatasetError(
            "synapses",
            f"the labels {sorted(unknown)} are not among the classes.",
            f"The classes are {list(CLASSES)}.",
        )
    if table["id"].duplicated().any():
        raise DatasetError(
            "synapses",
            f"the id {table.loc[table['id'].duplicated(), 'id'].iloc[0]} stands there twice.",
            "Every synapse needs its own id.",
        )
    odd = [value for value in table["id"] if Path(value).name != value]
    if odd:
        raise DatasetError(
            "synapses", f"the id {odd[0]!r} cannot be a file name.", "Use ids without / in them."
        )
    return table.sort_values("id", kind="stable", ignore_index=True)


def _planned(
    table: pd.DataFrame, volume: Volume, shapes: Mapping[str, Any], centre: str
) -> tuple[np.ndarray, np.ndarray]:
    """Why each row cannot be cut out ("" where it can), and the rows that can, in the order of
    work.
    """
    plans = _plans(table, volume, shapes, centre)
    why = plans[-1].why.copy()  # of the cubes where there are any: they reach further
    for plan in plans[:-1]:
        why = np.where(why == "", plan.why, why)
    return why, np.array([row for row in plans[-1].order if why[row] == ""], dtype=np.int64)


def _plans(table: pd.DataFrame, volume: Volume, shapes: Mapping[str, Any], centre: str) -> list:
    points = Points.from_table(table, CENTRES[centre])
    return [volume.plan(points, shapes[kind]) for kind in KINDS if shapes[kind]]


def _make_stack(
    folder: Path, request: dict, volume: Volume, stack: int, rows: pd.DataFrame
) -> dict:
    """Read, check and write one stack; its note comes last, and says that it is finished."""
    kinds = [kind for kind in KINDS if request["shapes"][kind]]
    cut = volume.cut(
        _plans(rows, volume, request["shapes"], request["centre"]), np.arange(len(rows))
    )
    left_out = [
        {"id": rows["id"].iat[row], "why": why, "fix": fix} for row, why, fix in cut.left_out
    ]
    zeros = [zero_fraction(pixels) for pixels in cut.pixels]
    constant = [constant_sections(pixels) for pixels in cut.pixels]
    keep = np.ones(len(cut.rows), bool)
    for at, row in enumerate(cut.rows):
        why = ""
        for kind, part, even in zip(kinds, zeros, constant, strict=True):
            blank = (part[at] >= BLANK_SECTION) | even[at]
            share = part[at].mean()
            if blank.any():
                why = f"{blank.sum()} of the {len(blank)} sections of its {NAMES[kind]} are blank."
            elif share > MAX_ZERO_FRACTION:
                why = why or f"{100 * share:.1f} % of the pixels of its {NAMES[kind]} are 0."
        if why:
            fix = "Tissue or sections are missing there: do without it."
            left_out.append({"id": rows["id"].iat[row], "why": why, "fix": fix})
            keep[at] = False
    pixels = cut.pixels if keep.all() else [part[keep] for part in cut.pixels]
    kept = (
        rows.iloc[cut.rows[keep]]
        .drop(columns="left_out")
        .assign(
            zero_fraction=zeros[-1][keep].mean(axis=1),
            continuity=continuity(pixels[-1]) if request["shapes"]["cubes"] else np.nan,
            source_hash=[
                _hash_of_pixels(part[at] for part in pixels) for at in range(int(keep.sum()))
            ],
        )
    )
    note = {"request": request["hash"], "rows": len(kept), "stacks": {}, "left_out": left_out}
    with _disk(folder, f"stack {stack + 1} of {_stack_count(request)}"):
        for kind, part in zip(kinds, pixels, strict=True):
            if len(part):
                file = f"{kind}/{stack:05}.ome.tif"
                digest = write_stack(
                    folder / file, part[:, 0] if kind == "patches" else part, request["voxel_nm"]
                )
                note["stacks"][kind] = {
                    "file": file,
                    "rows": len(part),
                    "sha256": digest,
                    "bytes": (folder / file).stat().st_size,
                }
        path = _note_path(folder, stack)
        _write_parquet(kept, path.with_suffix(".parquet"))
        write_json(path, {**note, "table": sha256_of_file(path.with_suffix(".parquet"))})
    return note


def _rows_of(folder: Path, request: dict, stack: int) -> pd.DataFrame:
    """The rows of one stack alone: a table of a million synapses does not stay in memory beside the
    pixels.
    """
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(folder / "work" / "synapses.parquet") as file:
        rows = file.read_row_group(stack).to_pandas()
    return rows.iloc[
        : request["rows"] - stack * request["stack_rows"]
    ]  # behind the last one stand those left out


def _give_memory_back() -> None:
    """Chunks and cutouts come and go in many sizes, and glibc would keep the gaps between them:
    without this, the memory of a process creeps up for the first tens of stacks."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)


def _note_path(folder: Path, stack: int) -> Path:
    return folder / "work" / f"{stack:05}.json"


def _note_of(folder: Path, request: dict, stack: int) -> dict | None:
    """The note of a finished stack of this request, whose files are there in full;
    None otherwise."""
    path = _note_path(folder, stack)
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        whole = (
            note["request"] == request["hash"]
            and sha256_of_file(path.with_suffix(".parquet")) == note["table"]
            and all(
                (folder / kind["file"]).stat().st_size == kind["bytes"]
                for kind in note["stacks"].values()
            )
        )
    except (OSError, ValueError, KeyError):
        return None
    return note if whole else None


def _stack_count(request: dict) -> int:
    return -(-request["rows"] // request["stack_rows"])


def _about(
    folder: Path, request: dict, notes: list[dict], synapses: pd.DataFrame, left_out: pd.DataFrame
) -> dict:
    """The content of dataset.json."""
    kinds = {}
    for kind in KINDS:
        shape = request["shapes"][kind]
        kinds[kind] = shape and {
            "shape_px": shape,
            "voxel_nm": request["voxel_nm"],
            "mip": request["mip"],
            "dtype": request["dtype"],
            "stacks": [
                {name: note["stacks"][kind][name] for name in ("file", "rows", "sha256")}
                for note in notes
                if kind in note["stacks"]
            ],
        }
    about = dict(request["about"])
    return {
        **{
            key: request[key]
            for key in (
                "format",
                "name",
                "source",
                "synthetic",
                "classes",
                "centre",
                "volume",
                "volume_info",
                "blank_section",
                "max_blank_sections",
                "max_zero_fraction",
            )
        },
        **{key: about.pop(key, None) for key in FROM_ABOUT},
        "about": about,
        **kinds,
        "synapses": len(synapses),
        "neurons": int(synapses["group"].nunique()),
        "left_out": len(left_out),
        "per_class": synapses["label"]
        .value_counts()
        .reindex(request["classes"], fill_value=0)
        .to_dict(),
        "tables": {
            file: sha256_of_file(folder / file) for file in ("synapses.parquet", "left_out.csv")
        },
        "request_hash": request["hash"],
    }


def _finished(
    folder: Path, asked: dict[str, Any], mip: int, opened: Volume | None, stack_rows: int | None
) -> Extracted | None:
    """The data set that was asked for, when it was merged and each of its stacks is still what was
    written.

    ``opened`` is the volume, None where it was not opened. A stack that is damaged is forgotten
    here, so that it is made again.
    """
    try:
        request = _read_json(folder / "work" / "request.json")
        found = load(folder)
        known = {key: value for key, value in request.items() if key not in ("hash", "volume")}
        if (
            found.about["request_hash"] != request["hash"]
            or sha256_of(known) != request["hash"]
            or {key: value for key, value in request.items() if key not in OF_THE_VOLUME} != asked
            or request["mip"] != (opened.scale.mip if opened else mip)
            or (opened and request["volume_info"] != opened.identity)
            or (stack_rows and request["stack_rows"] != stack_rows)
        ):
            return None
        whole = True
        for kind in KINDS:
            for stack in found.about[kind]["stacks"] if found.about[kind] else ():
                file = folder / stack["file"]
                if not file.is_file() or sha256_of_file(file) != stack["sha256"]:
                    _note_path(folder, int(file.name[:5])).unlink(missing_ok=True)
                    whole = False
        return found if whole else None
    except (InputError, OSError, KeyError, TypeError, ValueError):
        return None


def _refuse_another(folder: Path, there: dict, asked: dict) -> None:
    differ = sorted(
        key
        for key in (set(there) | set(asked)) - {"hash", "volume"}
        if there.get(key) != asked.get(key)
    )
    if differ:
        shown = "; ".join(
            f"{key} {_short(there.get(key))} there, {_short(asked.get(key))} now"
            for key in differ[:3]
        )
        raise DatasetError(
            folder.name,
            f"the folder holds another data set ({shown}).",
            "Give another folder, or delete this one.",
        )


def _short(value: object) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else text[:57] + "..."


def _public_address(url: str) -> str:
    """The volume's address without what is only true on this machine: ports of a loopback server,
    local folders.
    """
    parts = urlsplit(url.removeprefix("precomputed://"))
    if parts.hostname in ("127.0.0.1", "localhost", "::1"):
        return "a loopback server"
    return (
        "a local folder"
        if parts.scheme == "file"
        else f"precomputed://{parts.scheme}://{parts.hostname}{parts.path}"
    )


def _hash_of_table(table: pd.DataFrame) -> str:
    """SHA-256 of columns and values, the same whichever file they came from."""
    digest = hashlib.sha256(repr(list(table.columns)).encode())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of objects that sort differently; nothing is sorted here
        digest.update(pd.util.hash_pandas_object(table, index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _hash_of_pixels(parts: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()


def _write_parquet(table: pd.DataFrame, path: Path, rows_at_a_time: int | None = None) -> None:
    with whole_file(path) as temporary:
        table.reset_index(drop=True).to_parquet(
            temporary, index=False, row_group_size=rows_at_a_time
        )


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            path,
            f"it cannot be read ({type(error).__name__}).",
            "Run notebook 01 again: finished stacks are kept.",
        ) from None


@contextmanager
def _disk(folder: Path, what: str):
    """Failures to write, in words; whatever was finished before is whole, as files are put in place
    in one step.
    """
    try:
        yield
    except OSError as error:
        if _is_full(folder, error):
            raise DatasetError(
                folder.name,
                f"the disk is full: {what} could not be written.",
                "Free some space and run again: what is finished is kept.",
            ) from None
        raise DatasetError(
            folder.name,
            f"{what} could not be written ({error.strerror or error}).",
            "Check that you may write there, and run again: what is finished is kept.",
        ) from None


def _is_full(folder: Path, error: OSError) -> bool:
    """NumPy, with which tifffile writes, gives no number: it says how much of what it had to write
    it wrote.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if error.errno is None and re.search(
        r"\d+ requested and \d+ written|No space left", str(error)
    ):
        return True
    try:
        return shutil.disk_usage(folder).free < 2**16
    except OSError:
        return False


FAILED = "This job failed: "


def main(arguments: Sequence[str] | None = None) -> int:
    """One shard, or the merge, of a request that :func:`prepare` or :func:`extract` wrote."""
    parser = argparse.ArgumentParser(
        prog="python -m nbhelpers.microns.dataset", description=main.__doc__
    )
    parser.add_argument("--request", type=Path, required=True, help="FOLDER/work/request.json")
    parser.add_argument("--shard", type=int, default=0, help="number of this shard, from 0")
    parser.add_argument("--shards", type=int, default=1, help="how many shards there are")
    parser.add_argument(
        "--merge", action="store_true", help="put the finished stacks of all shards together"
    )
    asked = parser.parse_args(arguments)
    folder = asked.request.resolve().parent.parent
    try:
        if asked.merge:
            done = merge(folder)
            print(f"{len(done.synapses)} synapses, {len(done.left_out)} left out: {folder.name}")
        else:
            _read_json(asked.request)
            settings = _read_json(folder / "work" / "volume.json")
            run_shard(
                folder, Volume.open(settings.pop("url"), **settings), asked.shard, asked.shards
            )
    except InputError as error:
        print(f"{FAILED}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
