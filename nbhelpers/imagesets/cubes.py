"""Cubes of electron microscopy: phantoms, the cubes of notebook 01, real EM of a nerve cord, or the
user's stacks.

And their health: cubes whose sections do not follow one another are found before anything is
trained on them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import InputError, ParameterError, TableError, UnreadableImageError
from nbhelpers.core.files import sha256_of, whole_file
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.seeds import derive_seed
from nbhelpers.imagesets import folder
from nbhelpers.imagesets.stacks import ChosenPixels
from nbhelpers.imagesets.synapses import BRIGHTEST, CLASSES, DARKEST, SOURCES

LEAST_CONTINUITY = 0.1  # by which neighbouring sections must be more alike than unrelated sections
MOST_BLACK = 0.25  # of a cube: what has more black pixels is left out
MEASURED = 500  # cubes, drawn at random, that tell the continuity of a set
_NM = {
    "nm": 1.0,
    "nanometer": 1.0,
    "µm": 1e3,
    "um": 1e3,
    "micron": 1e3,
    "micrometer": 1e3,
    "\\u00b5m": 1e3,
    "mm": 1e6,
    "cm": 1e7,
}


def load_cubes(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    sections: int = 12,
    size_px: int = 48,
    section_nm: float = 40.0,
    pixel_nm: float = 10.0,
    phantoms: int = 480,
    neurons: int = 48,
    cue: str = "3d",
    difficulty: float = 1.0,
    seed: int = 0,
) -> ImageSet:
    """The cubes of notebook 05 by the name of their source: (n, 1, sections, size_px, size_px).

    Parameters
    ----------
    data : "phantom"; "microns" (the folder that notebook 01 wrote: ``data_dir``, or ``microns`` in
        the data folder); "vnc_synapse" or "vnc_mitochondrion" (real EM, an object against none,
        group is a spatial block); "folder" (``data_dir``: a CSV of path, label and perhaps group;
        the files are TIFF stacks).
    sections, size_px : larger cubes of "microns" and "folder" are cropped at their centre, smaller
        ones refused.
    section_nm, pixel_nm : thickness of a section and size of a pixel of phantoms, and of stacks
        that do not say theirs.
    phantoms, neurons, cue, difficulty : of "phantom" only, see
        :func:`nbhelpers.phantoms.synapse.make_synapse_cubes`.

    Raises ParameterError, and the InputErrors of the source.
    """
    if data not in SOURCES:
        raise ParameterError(
            "parameter data", f"{data!r} is unknown.", f"Known are {', '.join(SOURCES)}."
        )
    shape = (sections, size_px, size_px)
    voxel_nm = (section_nm, pixel_nm, pixel_nm)
    if data == "phantom":
        return load_phantom_cubes(
            phantoms,
            data_folder,
            neurons=neurons,
            shape_px=shape,
            voxel_nm=voxel_nm,
            cue=cue,
            difficulty=difficulty,
            seed=seed,
        )
    if data.startswith("vnc_"):
        from nbhelpers.imagesets.vnc import load_vnc_cubes

        return load_vnc_cubes(
            data.removeprefix("vnc_"),
            data_folder=data_folder,
            data_dir=data_dir,
            shape_px=shape,
            sections=8,
            others=2,
            seed=seed,
        )  # objects are few: more views of each, more of the rest
    if data == "microns":
        from nbhelpers.imagesets.synapses import load_microns_synapses

        images = load_microns_synapses(
            data_dir or Path(data_folder) / "microns", data_folder, size_px=None, kind="cubes"
        )
        return central(images, shape, data_folder)
    if not data_dir:
        raise ParameterError(
            "parameter data_dir",
            "it is empty, but data is 'folder'.",
            "Give a CSV with path, label and group of your TIFF stacks.",
        )
    return central(load_own_cubes(data_dir, voxel_nm=voxel_nm), shape, data_folder)


def load_phantom_cubes(
    count: int,
    data_folder: str | Path,
    *,
    neurons: int = 48,
    shape_px: Sequence[int] = (12, 48, 48),
    voxel_nm: Sequence[float] = (40.0, 10.0, 10.0),
    cue: str = "3d",
    difficulty: float = 1.0,
    seed: int = 0,
) -> ImageSet:
    """Synthetic cubes with injected truth (see :mod:`nbhelpers.phantoms.synapse`), drawn once and
    kept.

    (n, 1, z, y, x) uint8, memory-mapped. The kept file is found again by the parameters and by the
    source text of the phantom, so that another way of drawing is another file.
    """
    from nbhelpers.phantoms import synapse

    settings = {
        "neurons": neurons,
        "shape_px": tuple(shape_px),
        "voxel_nm": tuple(voxel_nm),
        "cue": cue,
        "difficulty": difficulty,
        "seed": seed,
    }
    drawn_by = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(synapse.__file__).parent.glob("synapse*.py"))
    ]
    kept = (
        Path(data_folder) / "phantoms" / f"cubes-{sha256_of([1, drawn_by, count, settings])[:32]}"
    )
    if not (kept / "table.parquet").is_file():
        made = synapse.make_synapse_cubes(count, **settings)
        with whole_file(kept / "pixels.npy") as temporary, open(temporary, "wb") as file:
            np.save(file, made.pixels)
        with whole_file(kept / "table.parquet") as temporary:
            made.table.to_parquet(temporary, index=False)
    where = "in the order of the sections only" if cue == "3d" else "in every section"
    return ImageSet(
        name="synapse phantoms in 3D",
        table=pd.read_parquet(kept / "table.parquet"),
        synthetic=True,
        classes=CLASSES,
        pixels=np.load(kept / "pixels.npy", mmap_mode="r"),
        channels=("EM",),
        pixel_size_nm=tuple(map(float, voxel_nm)),
        source=f"{count} synthetic synapses of {neurons} neurons drawn by "
        f"nbhelpers.phantoms.synapse, seed {seed}, "
        f"difficulty {difficulty:g}, the class lies {where}",
    )


def central(images: ImageSet, shape_px: Sequence[int], data_folder: str | Path) -> ImageSet:
    """The middle of every cube, (z, y, x) pixels, kept on disk; the set itself where its cubes have
    that shape.

    Raises InputError for cubes that are smaller, along any axis.
    """
    stored = tuple(images.pixels.shape[2:])
    wanted = tuple(int(side) for side in shape_px)
    if stored == wanted:
        return images
    if any(have < want for have, want in zip(stored, wanted, strict=True)):
        raise InputError(
            images.name,
            f"its cubes are {_px(stored)}, smaller than the {_px(wanted)} asked for.",
            f"Set sections to {stored[0]} or less and size_px to {min(stored[1:])} or less, or cut "
            f"larger "
            "cubes.",
        )
    first = [(have - want) // 2 for have, want in zip(stored, wanted, strict=True)]
    middle = tuple(slice(start, start + side) for start, side in zip(first, wanted, strict=True))
    content = sha256_of([images.content_hash, "central", wanted])
    path = Path(data_folder) / "packed" / f"{content[:32]}.npy"
    if not path.is_file():
        with whole_file(path) as temporary:
            kept = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=images.pixels.dtype, shape=(len(images), 1, *wanted)
            )
            for row in range(len(images)):
                kept[row, 0] = images.pixels[row][(0, *middle)]
            kept.flush()
    return replace(
        images,
        pixels=np.load(path, mmap_mode="r"),
        content_hash=content,
        source=f"{images.source}; the central {_px(wanted)} of {_px(stored)}",
    )


def chosen(images: ImageSet, rows: np.ndarray) -> ImageSet:
    """The cubes at these row numbers, in that order, left where they lie until they are used."""
    return replace(
        images,
        table=images.table.iloc[rows].reset_index(drop=True),
        pixels=ChosenPixels(images.pixels, rows),
        content_hash=sha256_of([images.content_hash, "chosen", images.ids[rows].tolist()]),
    )


def _px(shape: Sequence[int]) -> str:
    return f"{shape[0]} sections of {shape[1]} x {shape[2]} px"


# The user's own stacks


def read_cube(path: str | Path) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """(z, y, x) uint8 or uint16 of a TIFF stack, and its voxel (z, y, x) in nm, or None where the
    file does not say.

    The size of a voxel is read from OME and from ImageJ (Fiji) files. Raises UnreadableImageError
    for what is no grey stack, is cut or damaged, is all black, or holds NaN or floating point
    values.
    """
    import tifffile

    from nbhelpers.imagesets.reader import _as_unsigned, check_pages

    try:
        with open(path, "rb") as file:
            check_pages(path, file)
        with tifffile.TiffFile(path) as tiff:
            if len(tiff.series) != 1:
                raise UnreadableImageError(
                    path,
                    f"{len(tiff.series)} images are found in it.",
                    "Save one stack per file, or copy it again if it is damaged.",
                )
            series = tiff.series[0]
            # tifffile fills what is missing from a cut file with zeros
            ends = [
                at + size
                for page in series.pages
                if page is not None
                for at, size in zip(page.dataoffsets, page.databytecounts, strict=False)
            ]
            if (
                series.dataoffset is not None
            ):  # one block without gaps, of which pages may be missing
                ends.append(series.dataoffset + series.nbytes)
            if not ends or max(ends) > Path(path).stat().st_size:
                raise UnreadableImageError(
                    path,
                    "the TIFF is cut: it ends before its last section.",
                    "Copy it again from its source.",
                )
            pixels = series.asarray()
            axes = series.axes
            voxel_nm = _voxel_of(tiff)
    except UnreadableImageError:
        raise
    except (
        Exception
    ) as error:  # decoders raise many types on damaged files; the file's name must not be lost
        raise UnreadableImageError(
            path,
            f"it cannot be read as a TIFF stack ({type(error).__name__}: {error}).",
            "Save it as an uncompressed grey TIFF stack, or copy it again.",
        ) from None
    colours = any(size > 1 for axis, size in zip(axes, series.shape, strict=False) if axis in "CS")
    pixels = np.squeeze(pixels)
    if pixels.ndim != 3 or colours or not axes.rstrip("S").endswith("YX"):
        raise UnreadableImageError(
            path,
            f"the TIFF has the axes {axes} {series.shape}, and a grey stack is (z, y, x).",
            "Save one grey channel as a stack of sections; if the sections are taken for channels, "
            "in Fiji: Image > Hyperstacks > Re-order Hyperstack.",
        )
    pixels = _as_unsigned(Path(path), pixels)
    if pixels.max() == pixels.min():
        what = (
            "all black (every pixel is 0)"
            if pixels.max() == 0
            else f"constant (every pixel is {pixels.max()})"
        )
        raise UnreadableImageError(
            path,
            f"the cube is {what}.",
            "Nothing was imaged or read there: cut it out again, or leave the file out.",
        )
    return pixels, voxel_nm


def _voxel_of(tiff) -> tuple[float, float, float] | None:
    """(z, y, x) in nm from the metadata of OME or ImageJ."""
    import tifffile

    if tiff.is_ome:
        found = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        about = (found[0] if isinstance(found, list) else found)["Pixels"]
        sizes = [
            about.get(f"PhysicalSize{axis}", 0)
            * _NM.get(about.get(f"PhysicalSize{axis}Unit", "µm"), 0)
            for axis in "ZYX"
        ]
    elif tiff.is_imagej and "spacing" in tiff.imagej_metadata:
        unit = _NM.get(str(tiff.imagej_metadata.get("unit", "")), 0)
        tags = tiff.pages.first.tags
        per_px = [
            tags[name].value[0] / max(1, tags[name].value[1]) if name in tags else 0
            for name in ("YResolution", "XResolution")
        ]
        sizes = [
            tiff.imagej_metadata["spacing"] * unit,
            *(unit / value if value else 0 for value in per_px),
        ]
    else:
        return None
    return tuple(float(f"{size:.6g}") for size in sizes) if min(sizes) > 0 else None


def load_own_cubes(csv: str | Path, *, voxel_nm: Sequence[float] | None = None) -> ImageSet:
    """The user's TIFF stacks from a CSV with path, label and perhaps group (the neuron), all held
    in memory as uint8.

    ``voxel_nm`` (z, y, x) is that of files that do not say theirs. 16-bit values are scaled to 8
    bit once for the whole set, as in 2D. Files that cannot be used, and equal cubes under two
    labels or groups, are listed in ``failures``. Where no group is given each cube is its own
    (equal ones share one), and the source says so. Raises TableError, and InputError for cubes of
    different shapes, types or voxel sizes: a network would learn the difference.
    """
    if Path(csv).suffix.lower() != ".csv":
        raise TableError(
            csv,
            "cubes are named by a table.",
            "Give a CSV with path, label and group of each TIFF stack.",
        )
    table, failures = folder.read_label_table(csv)
    cubes = []
    voxels = []
    rows = []
    bad = []
    for row in table.itertuples():
        try:
            pixels, voxel = read_cube(row.path)
        except UnreadableImageError as error:
            bad.append({"file": row.id, "why": error.what, "fix": error.fix})
            continue
        cubes.append(pixels)
        voxels.append(voxel or (tuple(map(float, voxel_nm)) if voxel_nm else None))
        rows.append(row.Index)
    failures = pd.concat([failures, pd.DataFrame(bad, columns=failures.columns)], ignore_index=True)
    kept = table.loc[rows].drop(columns="path").reset_index(drop=True)
    prints = np.array(
        [hashlib.sha256(cube.tobytes()).hexdigest()[:16] for cube in cubes], dtype=object
    )
    wrong = np.zeros(len(kept), bool)
    for column, where, right in (
        ("label", "under another label", "label"),
        ("group", "in another group", "neuron"),
    ):
        if column in kept:  # one copy would train, the other test
            several = (kept.groupby(prints)[column].transform("nunique") > 1).to_numpy() & ~wrong
            failures = folder.with_copies(
                failures, kept["id"][several], f"the same pixels stand {where} too.", right=right
            )
            wrong |= several
    cubes, voxels = (
        [one for one, bad in zip(some, wrong, strict=True) if not bad] for some in (cubes, voxels)
    )
    kept = kept[~wrong].reset_index(drop=True)
    prints = prints[~wrong]
    folder.check_every_class(table, kept, failures)
    ids = kept["id"].tolist()
    _same(
        ids,
        [f"{_px(cube.shape)}, {cube.dtype}" for cube in cubes],
        "shape",
        "Crop them to one shape.",
    )
    _same(
        ids,
        [
            f"{' x '.join(f'{side:g}' for side in voxel)} nm" if voxel else "unknown"
            for voxel in voxels
        ],
        "voxel size (z, y, x)",
        "Resample them to one voxel size, or make two sets.",
    )
    note = ""
    if cubes[0].dtype == np.uint16:
        cubes, note = _to_8_bit(cubes)
    if "group" not in kept:
        kept["group"] = kept.groupby(prints)["id"].transform("first")
        note += (
            "; no neuron is named, so each cube is its own group: synapses of one neuron may stand "
            "in training and "
            "test, and the score may be too high for new neurons"
        )
    return ImageSet(
        name="your cubes",
        table=kept,
        pixels=np.stack(cubes)[:, None],
        synthetic=False,
        channels=("EM",),
        classes=tuple(sorted(kept["label"].unique())),
        failures=failures,
        pixel_size_nm=voxels[0],
        source=f"your own stacks{note}",
    )


def _to_8_bit(cubes: Sequence[np.ndarray]) -> tuple[list[np.ndarray], str]:
    """uint16 cubes as uint8, by one straight line for all of them, and how; 0, where nothing was
    imaged, stays 0 alone.

    Cameras fill a part of 16 bit only: with 12 of them, all greys would lie below 0.06 of the
    range.
    """
    some = np.concatenate(
        [cube[:: max(1, len(cube) // 4)].ravel() for cube in cubes[:: max(1, len(cubes) // 200)]]
    )
    low, high = np.percentile(some[some > 0], (DARKEST, BRIGHTEST))
    scale = 255 / max(high - low, 1)
    return (
        [
            np.where(cube > 0, np.clip((cube.astype(np.float32) - low) * scale, 1, 255), 0).astype(
                np.uint8
            )
            for cube in cubes
        ],
        f"; 16-bit values scaled to 8 bit for the whole set, {low:.0f} to 0 and {high:.0f} to 255",
    )


def _same(ids: Sequence[str], values: Sequence[str], what: str, fix: str) -> None:
    """Raise InputError that names the commonest value and the first cube with another one."""
    usual = Counter(values).most_common(1)[0][0]
    others = [(name, value) for name, value in zip(ids, values, strict=True) if value != usual]
    if others:
        raise InputError(
            others[0][0],
            f"its {what} is {others[0][1]}, and most cubes have {usual} ({len(others)} of "
            f"{len(values)} differ).",
            fix,
        )


# Health


def health(images: ImageSet) -> pd.DataFrame:
    """One row per cube: id, label, ``black`` (share of pixels that are 0), ``continuity`` (mean
    correlation of neighbouring sections; see :func:`nbhelpers.imagesets.sections.continuity`).

    What notebook 01 measured when it cut the cubes is taken from its table. Raises InputError for
    images that are no cubes of two sections or more.
    """
    from nbhelpers.imagesets.sections import continuity

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
    from nbhelpers.imagesets.sections import continuity

    draw = np.random.default_rng(derive_seed(seed, "unlike places"))
    rows = np.sort(draw.permutation(len(images))[:MEASURED])
    taken = rows[
        np.stack([draw.permutation(len(rows)) for _ in range(images.pixels.shape[2])], axis=1)
    ]
    return float(
        np.median(
            [
                continuity(
                    np.stack([images.pixels[row][0, at] for at, row in enumerate(cube)])[None]
                )[0]
                for cube in taken
            ]
        )
    )  # never all of them in memory


def healthy(images: ImageSet, *, seed: int = 0) -> tuple[ImageSet, pd.DataFrame]:
    """The cubes that may be trained on, and a table of the health of each class: before any
    training.

    Cubes with more than a quarter of black pixels are left out and listed in ``failures``. Raises
    InputError for a set with a class whose neighbouring sections are no more alike than sections of
    unlike places, with the usual reason; for one without a usable cube of two classes.
    """
    found = health(images)
    black = (found["black"] > MOST_BLACK).to_numpy()
    if black.any():
        why = [
            f"{share:.0%} of its pixels are black." if share < 1 else "the cube is all black."
            for share in found["black"][black]
        ]
        bad = pd.DataFrame(
            {
                "file": images.ids[black],
                "why": why,
                "fix": "Nothing was imaged or read there: cut it out "
                "again, or leave it out. A failed read must not become a black cube.",
            }
        )
        failures = pd.concat([images.failures, bad], ignore_index=True)
        images = replace(chosen(images, np.flatnonzero(~black)), failures=failures)
        found = found[~black].reset_index(drop=True)
    counts = images.counts()
    if sum(count > 0 for count in counts.values()) < 2:
        there = next((name for name, count in counts.items() if count), None)
        left_out = f", after {int(black.sum())} black ones were left out" if black.any() else ""
        raise InputError(
            images.name,
            (f"every cube is of the class {there}" if there else "there is no cube")
            + left_out
            + ".",
            "To tell classes apart, cubes of at least two are needed.",
        )
    floor = continuity_floor(images, seed)
    medians = found.groupby("label")["continuity"].median()
    # by class, or it could be told by the mistake
    worst = medians.idxmin()
    middle = float(medians.min())
    if not middle >= floor + LEAST_CONTINUITY:
        raise InputError(
            images.name,
            f"neighbouring sections of class {worst} do not look alike: their correlation is "
            f"{middle:.2f} "
            f"(median), and {floor:.2f} for unrelated sections. Each plane of these cubes "
            f"seems to step many "
            "sections, as when positions in voxels of 4 x 4 x 40 nm are taken for nm: then each "
            "plane steps 40 sections, "
            "and one plane of a cube shows the synapse.",
            "Cut the cubes out again with notebook 01, whose positions carry "
            "their unit; or bring the sections into their order.",
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


def health_sentence(images: ImageSet, table: pd.DataFrame) -> str:
    """What :func:`healthy` found, in words."""
    whole = table[table["class"] == "all"].iloc[0]
    floor = table.iloc[-1]["continuity, median"]
    voxel = (
        f"voxels of {' x '.join(f'{side:g}' for side in images.pixel_size_nm)} nm"
        if images.pixel_size_nm
        else ("voxels of unknown size")
    )
    return (
        f"{int(whole['cubes'])} cubes of {_px(images.pixels.shape[2:])}, {voxel}. Neighbouring "
        f"sections correlate with "
        f"{whole['continuity, median']:.2f} (median); unrelated sections with {floor:.2f}."
    )
