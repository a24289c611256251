"""Cubes of electron microscopy: phantoms, the cubes of notebook 01, real EM of a nerve cord, or the
user's stacks; and their quality control, by which cubes whose sections do not follow one another
are found before anything is trained on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, UnreadableImageError
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import generator_for
from nbhelpers.imagesets.sections import central, continuity, shape_text, voxel_text
from nbhelpers.imagesets.sources import NONE, load_source, loader
from nbhelpers.imagesets.stacks import ChosenPixels, write_stack

SOURCES = {
    "phantom": "nbhelpers.phantoms.synapse:load_phantom_cubes",
    "microns": "nbhelpers.imagesets.microns_sets:load_microns_cubes",
    "vnc_synapse": "nbhelpers.imagesets.vnc:load_vnc_cubes",
    "vnc_mitochondrion": "nbhelpers.imagesets.vnc:load_vnc_cubes",
    "folder": "nbhelpers.imagesets.own_cubes:load_own_cubes",
}
UNLABELLED = {"folder": "nbhelpers.imagesets.own_cubes:load_unlabelled_cubes"}
LEAST_CONTINUITY = 0.1  # by which neighbouring sections must be more alike than unrelated sections
MOST_BLACK = 0.25  # of a cube: what has more black pixels is left out
BLACK_FIX = (
    "Nothing was imaged or read there: cut it out again, or leave it out. A failed read must not "
    "become a black cube."
)
MEASURED = 500  # cubes, drawn at random, from which the continuity of a set is measured


def load_cubes(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    shape_px: Sequence[int] = (12, 48, 48),
    voxel_nm: Sequence[float] = (40.0, 10.0, 10.0),
    seed: int = 0,
    phantom: Mapping[str, object] = NONE,
) -> ImageSet:
    """Cubes by the name of their source: (n, 1, z, y, x); group is the presynaptic neuron.

    Parameters
    ----------
    data : "phantom"; "microns" (the folder that notebook 01 wrote: ``data_dir``, or ``microns`` in
        the data folder); "vnc_synapse" or "vnc_mitochondrion" (real EM, an object against none,
        group is a spatial block); "folder" (``data_dir``: a CSV of path, label and perhaps group;
        the files are TIFF stacks).
    shape_px : (z, y, x); larger cubes of "microns" and "folder" are cropped at their centre,
        smaller ones refused.
    voxel_nm : (z, y, x) of phantoms, and of stacks that do not say theirs.
    phantom : of "phantom" only: ``count``, and perhaps ``neurons``, ``cue`` and ``difficulty``, see
        :func:`nbhelpers.phantoms.synapse.make_synapse_cubes`.

    Raises ParameterError, and the InputErrors of the source.
    """
    shape_px = tuple(int(side) for side in shape_px)
    images = load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=data_dir,
        shape_px=shape_px,
        voxel_nm=voxel_nm,
        seed=seed,
        phantom={"seed": seed, **phantom},
        hint="Give a CSV with path, label and group of your TIFF stacks.",
    )
    return central(images, shape_px, data_folder)


def load_unlabelled_cubes(
    path: str | Path, known: ImageSet, quality: pd.DataFrame, **about: object
) -> ImageSet:
    """Stacks without labels, a folder or a CSV with the column path, for prediction by a network
    that was trained on ``known``: of its shape and voxels, see
    :func:`nbhelpers.imagesets.own_cubes.load_unlabelled_cubes`.

    ``quality`` is the table that :func:`quality_control` gave for ``known``. Stacks with as much
    black as is left out there, and such whose neighbouring sections are less alike than in any
    cube of ``known`` and hardly more than unrelated ones, are listed in ``failures`` too.
    ``about`` are its other options, ``voxel_nm`` and ``polarity``.
    """
    unrelated = quality.iloc[-1]["continuity, median"]
    lowest = quality["continuity, lowest"].min()

    def check(path: Path, pixels: np.ndarray) -> None:
        share = float((pixels == 0).mean())
        if share > MOST_BLACK:
            raise UnreadableImageError(path, _black(share), BLACK_FIX)
        alike = float(continuity(pixels[None])[0])
        if alike < min(lowest, unrelated + LEAST_CONTINUITY):
            raise UnreadableImageError(
                path,
                f"its neighbouring sections do not look alike: their correlation is {alike:.2f}, "
                f"in the training cubes {lowest:.2f} or more, of unrelated sections "
                f"{unrelated:.2f}.",
                "Bring the sections into their order, or cut the cube out again: each plane must "
                "be the section next to the last.",
            )

    return loader(UNLABELLED, "folder")(path, known, check, **about)


def write_example_cubes(path: str | Path, images: ImageSet) -> Path:
    """Write cubes as TIFF stacks that say the size of their voxels, and three that cannot be used:
    all black, with too few sections, and cut short. Something to try a prediction on.
    """
    path = Path(path)
    first = np.asarray(images.pixels[0])
    examples = {f"cube_{at:02d}": cube for at, cube in enumerate(images.pixels, 1)}
    examples |= {"all_black": np.zeros_like(first), "too_few_sections": first[:, 1:]}
    for name, cube in examples.items():
        write_stack(path / f"{name}.tif", cube, images.pixel_size_nm)
    (path / "cut_short.tif").write_bytes((path / "cube_01.tif").read_bytes()[:200])
    return path


def _black(share: float) -> str:
    return "the cube is all black." if share == 1 else f"{share:.0%} of its pixels are black."


def chosen(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """The cubes at these row numbers, in that order, left where they lie until they are used."""
    return replace(
        images,
        table=images.table.iloc[rows].reset_index(drop=True),
        pixels=ChosenPixels(images.pixels, rows),
        content_hash=sha256_of([images.content_hash, "chosen", images.ids[rows].tolist()]),
    )


# Quality control


def measure_quality(images: ImageSet) -> pd.DataFrame:
    """One row per cube: id, label, ``black`` (share of pixels that are 0), ``continuity`` (mean
    correlation of neighbouring sections; see :func:`nbhelpers.imagesets.sections.continuity`).

    What notebook 01 measured when it cut the cubes is taken from its table. Raises InputError for
    images that are no cubes of two sections or more.
    """
    if images.pixels.ndim != 5 or images.pixels.shape[2] < 2:
        raise InputError(
            images.name,
            f"its images have the shape {tuple(images.pixels.shape[1:])}.",
            "Give cubes of two sections or more.",
        )
    table = images.table
    if {"zero_fraction", "continuity"} <= set(table):
        black = table["zero_fraction"].to_numpy(float)
        alike = table["continuity"].to_numpy(float)
    else:
        black = np.array([float((np.asarray(cube) == 0).mean()) for cube in images.pixels])
        alike = np.array([continuity(np.asarray(cube))[0] for cube in images.pixels])
    return pd.DataFrame(
        {"id": images.ids, "label": table["label"], "black": black, "continuity": alike}
    )


def continuity_floor(images: ImageSet, seed: int = 0) -> float:
    """What unrelated sections give: the median continuity of up to 500 cubes, each of whose
    sections was replaced by one of another cube."""
    draw = generator_for(seed, "unlike places")
    rows = np.sort(draw.permutation(len(images))[:MEASURED])
    order = [draw.permutation(len(rows)) for _ in range(images.pixels.shape[2])]
    measured = []
    for taken in rows[np.stack(order, axis=1)]:  # one at a time: never all of them in memory
        cube = np.stack([images.pixels[row][0, at] for at, row in enumerate(taken)])
        measured.append(continuity(cube[None])[0])
    return float(np.median(measured))


def quality_control(images: ImageSet, *, seed: int = 0) -> tuple[ImageSet, pd.DataFrame]:
    """The cubes that may be trained on, and a table of the quality of each class: before any
    training.

    Cubes with more than a quarter of black pixels are left out and listed in ``failures``. Raises
    InputError for a set with a class whose neighbouring sections are no more alike than unrelated
    sections, with the usual reason; for one without a usable cube of two classes.
    """
    found = measure_quality(images)
    black = (found["black"] > MOST_BLACK).to_numpy()
    if black.any():
        why = found["black"][black].map(_black)
        bad = pd.DataFrame({"file": images.ids[black], "why": why, "fix": BLACK_FIX})
        failures = pd.concat([images.failures, bad], ignore_index=True)
        images = replace(chosen(images, np.flatnonzero(~black)), failures=failures)
        found = found[~black].reset_index(drop=True)
    counts = images.counts()
    if sum(count > 0 for count in counts.values()) < 2:
        there = [f"every cube is of the class {name}" for name, count in counts.items() if count]
        left_out = f", after {int(black.sum())} black ones were left out" if black.any() else ""
        raise InputError(
            images.name,
            f"{(there or ['there is no cube'])[0]}{left_out}.",
            "To tell classes apart, cubes of at least two are needed.",
        )
    floor = continuity_floor(images, seed)
    medians = found.groupby("label")["continuity"].median()
    # by class: a network could tell one with the mistake from one without it
    worst = medians.idxmin()
    middle = float(medians.min())
    if not middle >= floor + LEAST_CONTINUITY:
        raise InputError(
            images.name,
            f"neighbouring sections of class {worst} do not look alike: their correlation is "
            f"{middle:.2f} (median), and {floor:.2f} for unrelated sections. Each plane of these "
            "cubes seems to step many sections, as when positions in voxels of 4 x 4 x 40 nm are "
            "taken for nm: then each plane steps 40 sections, and one plane of a cube shows the "
            "synapse.",
            "Cut the cubes out again with notebook 01, whose positions carry their unit; or bring "
            "the sections into their order.",
        )
    rows = [
        {
            "class": name,
            "cubes": len(part),
            "black, mean": part["black"].mean(),
            "black, largest": part["black"].max(),
            "continuity, median": part["continuity"].median(),
            "continuity, lowest": part["continuity"].min(),
        }
        for name, part in [*found.groupby("label", sort=False), ("all", found)]
    ]
    return images, pd.DataFrame(
        [*rows, {"class": "unrelated sections", "continuity, median": floor}]
    )


def quality_sentence(images: ImageSet, table: pd.DataFrame) -> str:
    """What :func:`quality_control` found, in words."""
    whole = table[table["class"] == "all"].iloc[0]
    floor = table.iloc[-1]["continuity, median"]
    return (
        f"{int(whole['cubes'])} cubes of {shape_text(images.pixels.shape[2:])}, voxels of "
        f"{voxel_text(images.pixel_size_nm)}. "
        f"Neighbouring sections correlate with {whole['continuity, median']:.2f} (median); "
        f"unrelated sections with {floor:.2f}."
    )
