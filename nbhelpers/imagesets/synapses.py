"""Synapse patches: phantoms, the MICrONS data set of notebook 01, real EM of a nerve cord, or the
user's own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import (
    InputError,
    ParameterError,
    SplitError,
    TableError,
    UnreadableImageError,
)
from nbhelpers.core.files import sha256_of, sha256_of_file, whole_file
from nbhelpers.core.imageset import ImageSet
from nbhelpers.core.splits import Split
from nbhelpers.imagesets import folder
from nbhelpers.imagesets.packed import NoUsableImageError, pack_images
from nbhelpers.imagesets.polarity import inverted, membrane_contrast

CLASSES = ("excitatory", "inhibitory")
SOURCES = ("phantom", "microns", "vnc_synapse", "vnc_mitochondrion", "folder")
PIXEL_NM = 8.0  # of phantoms and of MICrONS at mip 0 of the cutouts
CONFOUND_GREY = 22.0  # grey levels of 255, plus and minus, at strength 1: as in the phantom
# percentiles of a 16-bit set that become 0 and 255
DARKEST = 0.1
BRIGHTEST = 99.9


@dataclass(frozen=True)
class PatchReference:
    """What training patches look like, small enough for a checkpoint's card: new patches are
    compared with it.

    ``membrane_contrast``: median, its sign is the polarity. ``dark``, ``bright``: the 1st and the
    99th percentile of the grey values, 0 to 255. ``pixel_nm`` is None where unknown.
    """

    size_px: int
    membrane_contrast: float
    dark: float
    bright: float
    pixel_nm: float | None = PIXEL_NM

    @classmethod
    def of(cls, images: ImageSet, most: int = 200) -> PatchReference:
        """From up to ``most`` images, spread evenly over the set. Raises InputError when the set is
        empty.
        """
        if not len(images):
            raise InputError(
                images.name, "it holds no image to describe.", "Give the training images."
            )
        rows = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).astype(int))
        pixels = np.asarray(images.pixels[rows])
        scale = 255 / np.iinfo(pixels.dtype).max
        dark, bright = np.percentile(pixels, [1, 99]) * scale
        size = images.pixel_size_nm
        return cls(
            int(pixels.shape[-1]),
            float(np.median(membrane_contrast(pixels))),
            float(dark),
            float(bright),
            float(size[-1]) if size else None,
        )

    def as_dict(self) -> dict:
        """For the card of a checkpoint; ``PatchReference(**card)`` makes it again."""
        return asdict(self)


def load_synapses(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    size_px: int = 128,
    phantoms: int = 1500,
    neurons: int = 24,
    seed: int = 0,
    confound: float = 0.0,
    difficulty: float = 1.0,
    crop: bool = False,
    pixel_nm: float | None = None,
    polarity: str = "check",
) -> ImageSet:
    """The patches of notebooks 02 and 03 by the name of their source; group is the presynaptic
    neuron.

    Parameters
    ----------
    data : "phantom"; "microns" (the folder that notebook 01 wrote: ``data_dir``, or ``microns`` in
        the data folder); "vnc_synapse" or "vnc_mitochondrion" (real EM, an object against none,
        group is a spatial block); "folder" (class folders, or a CSV of path, label and perhaps
        group: ``data_dir``).
    size_px : of the patch, in y and in x.
    phantoms, neurons, difficulty, confound : of "phantom" only. ``confound`` 0 to 1 shifts the
        brightness by class in ALL neurons; for a shortcut that only training neurons have, see
        :func:`with_training_confound`.
    crop, pixel_nm, polarity : of "folder" only, see :func:`load_own_synapses`.

    Raises ParameterError, and the InputErrors of the source.
    """
    if data not in SOURCES:
        raise ParameterError(
            "parameter data", f"{data!r} is unknown.", f"Known are {', '.join(SOURCES)}."
        )
    if confound and data != "phantom":
        raise ParameterError(
            "parameter confound",
            "only phantoms can be drawn with it.",
            "Set it to 0, or use with_training_confound after the split.",
        )
    if data == "phantom":
        return load_phantom_synapses(
            phantoms,
            data_folder,
            neurons=neurons,
            size_px=size_px,
            seed=seed,
            difficulty=difficulty,
            confound=confound,
        )
    if data == "microns":
        return load_microns_synapses(
            data_dir or Path(data_folder) / "microns", data_folder, size_px=size_px
        )
    if data.startswith("vnc_"):
        from nbhelpers.imagesets.vnc import load_vnc

        return load_vnc(
            data.removeprefix("vnc_"),
            data_folder=data_folder,
            data_dir=data_dir,
            size_px=size_px,
            seed=seed,
        )
    if not data_dir:
        raise ParameterError(
            "parameter data_dir",
            "it is empty, but data is 'folder'.",
            "Give the folder that holds one folder per class, or a CSV with path and label.",
        )
    return load_own_synapses(
        data_dir, data_folder, size_px=size_px, crop=crop, pixel_nm=pixel_nm, polarity=polarity
    )


# Phantoms


def load_phantom_synapses(
    count: int,
    data_folder: str | Path,
    *,
    neurons: int = 24,
    size_px: int = 128,
    seed: int = 0,
    difficulty: float = 1.0,
    confound: float = 0.0,
) -> ImageSet:
    """Synthetic synapses with injected truth (see :mod:`nbhelpers.phantoms.synapse`), drawn once and
    kept.

    (n, 1, size_px, size_px) uint8, memory-mapped. The kept file is found again by the parameters
    and by the source text of the phantom, so that another way of drawing is another file.
    """
    kept = _kept_phantoms(
        count,
        data_folder,
        neurons=neurons,
        size_px=size_px,
        seed=seed,
        difficulty=difficulty,
        confound=confound,
    )
    shortcut = f", brightness shifted by class (strength {confound:g})" if confound else ""
    return ImageSet(
        name="synapse phantoms",
        table=pd.read_parquet(kept / "table.parquet"),
        synthetic=True,
        classes=CLASSES,
        pixels=np.load(kept / "pixels.npy", mmap_mode="r"),
        channels=("EM",),
        pixel_size_nm=(PIXEL_NM, PIXEL_NM),
        source=f"{count} synthetic synapses of {neurons} neurons drawn by "
        f"nbhelpers.phantoms.synapse, seed {seed}, "
        f"difficulty {difficulty:g}{shortcut}",
    )


def phantom_causes(count: int, data_folder: str | Path, **parameters) -> np.ndarray:
    """(n, size_px, size_px) bool, memory-mapped: the injected cause in each image of
    :func:`load_phantom_synapses`.

    Takes the same parameters; the rows stand in the same order.
    """
    return np.load(_kept_phantoms(count, data_folder, **parameters) / "cause.npy", mmap_mode="r")


def _kept_phantoms(count: int, data_folder: str | Path, **parameters) -> Path:
    """The folder with pixels.npy, cause.npy and table.parquet, which is written last."""
    from nbhelpers.phantoms import synapse

    defaults = {"neurons": 24, "size_px": 128, "seed": 0, "difficulty": 1.0, "confound": 0.0}
    unknown = set(parameters) - set(defaults)
    if unknown:
        raise TypeError(f"unknown parameters {sorted(unknown)}")
    parameters = defaults | parameters
    drawn_by = [
        hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(synapse.__file__).parent.glob("synapse*.py"))
    ]
    kept = (
        Path(data_folder)
        / "phantoms"
        / f"synapses-{sha256_of([1, drawn_by, count, parameters])[:32]}"
    )
    if not (kept / "table.parquet").is_file():
        made = synapse.make_synapse_patches(count, pixel_nm=PIXEL_NM, **parameters)
        for name, array in (("pixels", made.pixels), ("cause", made.cause)):
            _write_array(kept / f"{name}.npy", array)
        with whole_file(kept / "table.parquet") as temporary:
            made.table.to_parquet(temporary, index=False)
    return kept


def _write_array(path: Path, array: np.ndarray) -> None:
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def with_training_confound(
    images: ImageSet,
    split: Split,
    strength: float = 1.0,
    parts: tuple[str, ...] = ("train", "validation"),
) -> ImageSet:
    """The same images with a injected shortcut: in these parts of a hold-out split, brightness tells
    the class.

    At ``strength`` 1 the first class is 22 of 255 grey levels brighter and the last one 22 darker;
    test images stay as they are, so that a model that takes the shortcut fails on them. All pixels
    are held in memory. ``table`` gains ``injected_shift`` (float64, grey levels of 255). Raises
    SplitError for a split with several folds, ParameterError for a strength outside 0 to 5.
    """
    if not 0 <= strength <= 5:
        raise ParameterError(
            "parameter strength",
            f"{strength} is out of range.",
            "Give 0 to 5; 1 is 22 grey levels.",
        )
    if len(split.folds()) != 1:
        raise SplitError(
            "split",
            f"it has {len(split.folds())} folds, so every image is a test image once.",
            "Set confound to 0, or take data that is split once (phantom, microns).",
        )
    ((repeat, fold),) = split.folds()
    rows = images.positions(split.ids(repeat, fold, *parts))
    place = np.linspace(1, -1, len(images.classes))
    shift = np.zeros(len(images))
    labelled = rows[images.labels[rows] >= 0]
    shift[labelled] = strength * CONFOUND_GREY * place[images.labels[labelled]]
    limit = np.iinfo(images.pixels.dtype).max
    pixels = np.array(images.pixels)
    for row in np.flatnonzero(shift):
        pixels[row] = np.clip(np.rint(pixels[row] + shift[row] * limit / 255), 0, limit).astype(
            pixels.dtype
        )
    return replace(
        images,
        pixels=pixels,
        content_hash="",
        table=images.table.assign(injected_shift=shift),
        source=f"{images.source}; brightness shifted by class in {' and '.join(parts)} (strength "
        f"{strength:g})",
    )


# The data set of notebook 01


def load_microns_synapses(
    path: str | Path, data_folder: str | Path, *, size_px: int | None = 128, kind: str = "patches"
) -> ImageSet:
    """The patches (or ``kind`` "cubes") that notebook 01 wrote to the folder ``path``; nothing is
    read until used.

    Larger patches are cropped at their centre, once, into ``data_folder``; None keeps the stored
    size. Group is the presynaptic neuron. Raises InputError when there is no data set, it is
    damaged, or its patches are smaller.
    """
    from nbhelpers.imagesets.stacks import open_stacks

    path = Path(path)
    about = _about(path)
    stored = about.get(kind)
    if not stored:
        raise InputError(
            path.name, f"the data set holds no {kind}.", f"Run notebook 01 again with {kind}."
        )
    try:
        table = pd.read_parquet(path / "synapses.parquet")
        left_out = pd.read_csv(path / "left_out.csv", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(
            path.name,
            f"a table of the data set cannot be read ({error}).",
            "Run notebook 01 again; it goes on where it stopped.",
        ) from None
    for file, digest in about.get("tables", {}).items():
        if sha256_of_file(path / file) != digest:
            raise InputError(
                f"{path.name}/{file}",
                "the table was changed after notebook 01 wrote it.",
                "Delete dataset.json and run notebook 01 again: the stacks are kept.",
            )
    pixels = open_stacks(path, kind)
    if len(pixels) != len(table):
        raise InputError(
            path.name,
            f"{len(table)} rows in synapses.parquet but {len(pixels)} {kind}.",
            "Run notebook 01 again; it goes on where it stopped.",
        )
    content = sha256_of(
        [
            table[["id", "label", "group"]].astype(str).values.tolist(),
            [stack["sha256"] for stack in stored["stacks"]],
            size_px,
        ]
    )
    sides = stored["shape_px"][-2:]
    source = about["source"]
    if size_px is not None and min(sides) < size_px:
        raise InputError(
            path.name,
            f"its {kind} are {sides[1]} x {sides[0]} px, smaller than the {size_px} px asked for.",
            f"Set size_px to {min(sides)}, or run notebook 01 with larger {kind}.",
        )
    if size_px is not None and max(sides) > size_px:
        whole = pixels
        pixels = _kept_array(
            Path(data_folder) / "packed" / f"{content[:32]}.npy",
            (*whole.shape[:-2], size_px, size_px),
            whole.dtype,
            lambda start, stop: _centre(np.asarray(whole[start:stop]), size_px),
        )
        source += f"; the central {size_px} of {sides[1]} x {sides[0]} px"
    return ImageSet(
        name=about["name"],
        table=table.assign(id=table["id"].astype(str), group=table["group"].astype(str)),
        pixels=pixels,
        classes=tuple(about["classes"]),
        source=source,
        synthetic=bool(about["synthetic"]),
        content_hash=content,
        channels=("EM",),
        pixel_size_nm=tuple(stored["voxel_nm"][-(2 if kind == "patches" else 3) :]),
        failures=left_out.rename(columns={"id": "file"})[["file", "why", "fix"]],
    )


def _about(path: Path) -> dict:
    try:
        about = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            path.name,
            "there is no data set of notebook 01 in this folder (no dataset.json).",
            "Run notebook 01_extract_microns_patches first, or give the folder that it wrote as "
            "data_dir; "
            "without either, set data to 'phantom'.",
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.name}/dataset.json", f"it cannot be read ({error}).", "Run notebook 01 again."
        ) from None
    if about.get("format") != 1:
        raise InputError(
            f"{path.name}/dataset.json",
            f"its format is {about.get('format')}, and 1 can be read.",
            "Run notebook 01 of this version again.",
        )
    return about


def load_stored_split(path: str | Path) -> Split:
    """The split by presynaptic neuron that notebook 01 stored in its data set folder; its hash is
    checked.

    Raises InputError when there is no data set, SplitError when the split is absent or was changed.
    Introduced in notebook 02.
    """
    _about(Path(path))
    return Split.load(Path(path) / "split.csv")


def _kept_array(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, make: Callable[[int, int], np.ndarray]
) -> np.ndarray:
    """A memory map of ``path``, filled piece by piece by ``make(start, stop)`` where it does not
    exist yet.
    """
    if not path.is_file():
        with whole_file(path) as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            for start in range(0, shape[0], 512):
                array[start : start + 512] = make(start, min(start + 512, shape[0]))
            array.flush()
            del array
    return np.load(path, mmap_mode="r")


def _centre(pixels: np.ndarray, size_px: int) -> np.ndarray:
    top = (pixels.shape[-2] - size_px) // 2
    left = (pixels.shape[-1] - size_px) // 2
    return pixels[..., top : top + size_px, left : left + size_px]


# The user's own patches


def prepare_patch(
    pixels: np.ndarray,
    path: object,
    *,
    size_px: int,
    crop: bool = False,
    pixel_nm: float | None = None,
    wanted_nm: float = PIXEL_NM,
) -> np.ndarray:
    """(channel, y, x) as read to (1, size_px, size_px), same type: grey, of the wanted pixel size,
    not padded.

    With ``pixel_nm`` the image is resampled to ``wanted_nm`` a pixel (smoothed before it is made
    smaller). A larger image is cropped at its centre where ``crop`` says so. Raises
    UnreadableImageError, with the fix, for colour, constant, larger (without ``crop``) and smaller
    images.
    """
    if len(pixels) == 3 and np.ptp(pixels.astype(np.int32), axis=0).max() <= 2:
        pixels = pixels[:1]  # grey stored as RGB
    if len(pixels) > 1:
        raise UnreadableImageError(
            path,
            f"the image has {len(pixels)} colour channels, and electron micrographs are grey.",
            "Save the EM channel by itself as 8- or 16-bit grey.",
        )
    image = pixels[0]
    if image.min() == image.max():
        raise UnreadableImageError(
            path,
            f"the image is constant (every pixel is {image.max()}).",
            "Cut the patch out again, or leave the file out.",
        )
    height, width = image.shape
    told = f"{width} x {height} px"
    if pixel_nm is not None and abs(pixel_nm / wanted_nm - 1) > 1e-6:
        from skimage.transform import rescale

        image = rescale(
            image,
            pixel_nm / wanted_nm,
            order=1,
            anti_aliasing=pixel_nm < wanted_nm,
            preserve_range=True,
        )
        image = np.clip(np.rint(image), 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
        height, width = image.shape
        told += f" of {pixel_nm:g} nm, which is {width} x {height} px of {wanted_nm:g} nm"
    if min(image.shape) < size_px:
        needed = size_px if pixel_nm is None else int(np.ceil(size_px * wanted_nm / pixel_nm))
        raise UnreadableImageError(
            path,
            f"the patch is {told}: too small, {size_px} x {size_px} px are needed.",
            f"Cut a patch of {needed} x {needed} px around the synapse from the original section; "
            "do not enlarge this one.",
        )
    if max(image.shape) > size_px and not crop:
        raise UnreadableImageError(
            path,
            f"the patch is {told}, and {size_px} x {size_px} px are wanted.",
            "Give its pixel size (pixel_nm) if it is another, or set crop to use its centre.",
        )
    return np.ascontiguousarray(_centre(image[None], size_px))


def load_own_synapses(
    path: str | Path,
    data_folder: str | Path,
    *,
    size_px: int = 128,
    crop: bool = False,
    pixel_nm: float | None = None,
    polarity: str = "check",
) -> ImageSet:
    """The user's patches: a folder with one folder per class, or a CSV with path, label and perhaps
    group.

    Where every image lies in a folder below its class folder (``excitatory/neuron 7/a.png``), that
    is the neuron. Without a neuron each image is its own group (equal pixels share one), and the
    source says so. 8- and 16-bit grey is read; 16-bit values are scaled to 8 bit once for the whole
    set, its 0.1th to 99.9th percentile to 0 to 255.

    Parameters
    ----------
    crop : use the centre of patches that are larger than ``size_px``; else they are left out and
        listed.
    pixel_nm : size of a pixel of the images; given, they are resampled to 8 nm.
    polarity : "check" refuses a set of inverted grey (bright membranes) and leaves single inverted
        images out; "as given" takes all as they are.

    Raises TableError, InputError. Nothing is inverted or enlarged in silence.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        table, left_out = folder.read_label_table(path)
    else:
        table = _with_neuron_folders(folder.read_class_folders(path))
        left_out = None
    images = _from_files(
        table,
        data_folder,
        name="your synapses",
        source="your own images",
        size_px=size_px,
        crop=crop,
        classes=tuple(sorted(table["label"].unique())),
        pixel_nm=pixel_nm,
        polarity=polarity,
    )
    if left_out is not None and len(left_out):
        images = replace(images, failures=pd.concat([left_out, images.failures], ignore_index=True))
    return images


def _with_neuron_folders(table: pd.DataFrame) -> pd.DataFrame:
    parts = [Path(name).parts for name in table["id"]]
    if all(len(one) > 2 for one in parts):
        return table.assign(group=["/".join(one[:-1]) for one in parts])
    return table


def load_unlabelled_synapses(
    path: str | Path,
    data_folder: str | Path,
    classes: tuple[str, ...],
    size_px: int = 128,
    reference: PatchReference | None = None,
    *,
    crop: bool = False,
    pixel_nm: float | None = None,
    polarity: str = "check",
) -> ImageSet:
    """Every image below a folder, or of a CSV with the column path, for prediction; labels are not
    used.

    ``reference`` is what the training patches look like: polarity and, for 16-bit images, the grey
    range are compared with it, and with ``pixel_nm`` its pixel size is the one wanted. Images that
    cannot be used are listed in ``failures``; when none can, the set is empty and lists them all.
    Raises TableError for a folder without images or a CSV without the column.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        table = _unlabelled_table(path)
    else:
        found = folder.find_images(path)
        if not found:
            raise TableError(
                path, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
            )
        table = pd.DataFrame(
            {
                "path": found,
                "label": None,
                "id": [item.relative_to(path).as_posix() for item in found],
            }
        )
    about = {"name": "images to predict", "source": "your own images", "classes": classes}
    try:
        return _from_files(
            table,
            data_folder,
            size_px=size_px,
            crop=crop,
            pixel_nm=pixel_nm,
            polarity=polarity,
            reference=reference,
            **about,
        )
    except NoUsableImageError as error:
        return ImageSet(
            table=table[:0].assign(group="").drop(columns="path"),
            synthetic=False,
            channels=("EM",),
            pixels=np.zeros((0, 1, size_px, size_px), np.uint8),
            failures=error.failures,
            **about,
        )


def _unlabelled_table(csv: Path) -> pd.DataFrame:
    try:
        with open(csv, encoding="utf-8-sig") as file:
            header = file.readline()
        table = pd.read_csv(
            csv,
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
            sep=max(",;\t", key=header.count),
        )
    except (OSError, ValueError) as error:
        raise TableError(
            csv,
            f"the table cannot be read ({error}).",
            "Save it as CSV in UTF-8 with the column path.",
        ) from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    if "path" not in table.columns or table.empty:
        raise TableError(
            csv,
            f"it has no rows with the column path; there is {list(table.columns)}.",
            "The first line must hold the word path.",
        )
    written = table["path"].str.strip().drop_duplicates().tolist()
    names = [Path(name).name if os.path.isabs(name) else Path(name).as_posix() for name in written]
    if len(set(names)) < len(names):
        raise TableError(
            csv, "two absolute paths end in the same file name.", "Give paths relative to the CSV."
        )
    return pd.DataFrame(
        {"path": [csv.parent / name for name in written], "label": None, "id": names}
    )


def _from_files(
    table: pd.DataFrame,
    data_folder: str | Path,
    *,
    size_px: int,
    crop: bool,
    pixel_nm: float | None,
    polarity: str,
    reference: PatchReference | None = None,
    **about,
) -> ImageSet:
    """Read the files of a table with path, label, id and perhaps group; failures are named by the
    ids.
    """
    if polarity not in ("check", "as given"):
        raise ParameterError(
            "parameter polarity", f"{polarity!r} is unknown.", "Give 'check' or 'as given'."
        )
    if pixel_nm is not None and not 0.5 <= pixel_nm <= 200:
        raise ParameterError(
            "parameter pixel_nm",
            f"{pixel_nm} is out of range.",
            "Give nanometres per pixel, 0.5 to 200.",
        )
    wanted_nm = (reference.pixel_nm if reference else None) or PIXEL_NM
    cache = Path(data_folder) / "packed"
    settings = {"size_px": size_px, "crop": crop, "pixel_nm": pixel_nm, "wanted_nm": wanted_nm}
    names = dict(zip(map(str, map(Path, table["path"])), table["id"], strict=True))
    try:
        pixels, kept, failures, key = pack_images(
            table["path"].tolist(),
            lambda image, path: prepare_patch(image, path, **settings),
            prepare_name=f"synapse patch, 1, {sha256_of(settings)}",
            cache_folder=cache,
        )
    except NoUsableImageError as error:
        error.failures["file"] = error.failures["file"].map(names)
        raise
    key = sha256_of(
        [key, kept.tolist()]
    )  # a file that failed this time only may be there the next time
    failures["file"] = failures["file"].map(names)
    rows = table.iloc[kept].drop(columns="path").reset_index(drop=True)
    notes = []
    whole = pixels
    if crop:
        notes.append(f"patches larger than {size_px} px are cropped at their centre")
    if pixel_nm is not None and pixel_nm != wanted_nm:
        notes.append(f"resampled from {pixel_nm:g} to {wanted_nm:g} nm a pixel")
    if pixels.dtype == np.uint16:
        pixels, said = _to_8_bit(pixels, cache, key, reference)
        notes.append(said)
    if polarity == "check":
        contrast = _kept_array(
            cache / f"{sha256_of([key, 'membrane contrast', 1])[:32]}.npy",
            (len(pixels),),
            np.dtype(np.float64),
            lambda start, stop: membrane_contrast(whole[start:stop]),
        )
        pixels, rows, failures = _without_inverted(pixels, rows, failures, contrast, reference)
    folder.check_every_class(table, rows, failures)
    prints = np.array(
        [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in pixels], dtype=object
    )
    if rows["label"].notna().all() and len(rows):
        several = (rows.groupby(prints)["label"].transform("nunique") > 1).to_numpy()
        if several.any():
            failures = folder.with_copies(
                failures, rows["id"][several], "the same pixels stand under another label too."
            )
            pixels = pixels[~several]
            rows = rows[~several].reset_index(drop=True)
            prints = prints[~several]
        if "group" in rows:
            copied = (rows.groupby(prints)["group"].transform("nunique") > 1).to_numpy()
            if copied.any():  # one copy would train, the other test
                failures = folder.with_copies(
                    failures,
                    rows["id"][copied],
                    "the same pixels stand in another group too.",
                    right="neuron",
                )
                pixels = pixels[~copied]
                rows = rows[~copied].reset_index(drop=True)
                prints = prints[~copied]
        if "group" not in rows:
            notes.append(
                "no neuron is named, so each patch is its own group: synapses of one neuron may "
                "stand in training "
                "and test, and the score may be too high for new neurons"
            )
    if "group" not in rows:
        rows["group"] = ["patch-" + one for one in prints]
    size = (wanted_nm, wanted_nm) if pixel_nm is not None else None
    return ImageSet(
        table=rows,
        pixels=pixels,
        synthetic=False,
        channels=("EM",),
        failures=failures,
        pixel_size_nm=size,
        **about | {"source": "; ".join([about["source"], *notes])},
    )


def _to_8_bit(
    pixels: np.ndarray, cache: Path, key: str, reference: PatchReference | None
) -> tuple[np.ndarray, str]:
    """16-bit patches as uint8: one straight line for the whole set, its percentiles to those of the
    reference.
    """
    rows = np.unique(np.linspace(0, len(pixels) - 1, min(1000, len(pixels))).astype(int))
    ends = (1, 99) if reference else (DARKEST, BRIGHTEST)
    low, high = np.percentile(pixels[rows], ends)
    dark, bright = (reference.dark, reference.bright) if reference else (0.0, 255.0)
    scale = (bright - dark) / max(high - low, 1.0)
    path = cache / f"{sha256_of([key, 'to 8 bit', dark, bright, ends])[:32]}.npy"
    made = _kept_array(
        path,
        pixels.shape,
        np.dtype(np.uint8),
        lambda start, stop: np.clip(
            np.rint((pixels[start:stop].astype(np.float32) - low) * scale + dark), 0, 255
        ).astype(np.uint8),
    )
    like = ", as in the training images" if reference else ""
    return made, (
        f"16-bit values scaled to 8 bit for the whole set, {low:.0f} to {dark:.0f} and {high:.0f} "
        f"to "
        f"{bright:.0f}{like}"
    )


def _without_inverted(
    pixels: np.ndarray,
    rows: pd.DataFrame,
    failures: pd.DataFrame,
    contrast: np.ndarray,
    reference: PatchReference | None,
) -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """Inverted patches are listed and left out, never turned round. Raises NoUsableImageError when
    none is left.
    """
    usual = reference.membrane_contrast if reference else 1.0
    wrong = inverted(contrast, usual)
    if not wrong.any():
        return pixels, rows, failures
    bright, dark = ("bright", "dark") if usual >= 0 else ("dark", "bright")
    others = "the training images" if reference else "transmission EM"
    why = f"the grey values are inverted: membranes are {bright}, and in {others} they are {dark}."
    fix = (
        "Invert it (in Fiji: Edit > Invert, then save), or set polarity to 'as given' if that "
        "is meant."
    )
    failures = pd.concat(
        [failures, pd.DataFrame({"file": rows["id"][wrong], "why": why, "fix": fix})],
        ignore_index=True,
    )
    if wrong.all():
        raise NoUsableImageError("images", f"in all {len(rows)} patches {why}", fix, failures)
    if wrong.mean() > 0.5 and rows["label"].notna().all():
        raise InputError(
            f"{rows['id'][wrong].iloc[0]} and {int(wrong.sum()) - 1} more of {len(rows)} patches",
            why,
            fix,
        )
    return np.asarray(pixels)[~wrong], rows[~wrong].reset_index(drop=True), failures


def write_example_patches(
    path: str | Path, data_folder: str | Path, count: int, seed: int, size_px: int = 128
) -> Path:
    """Write ``count`` fresh phantom patches as PNG, and three files that cannot be used, to try a
    prediction on.

    The three: too small, cut short, and inverted grey.
    """
    from PIL import Image

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    images = load_phantom_synapses(
        count, data_folder, neurons=max(2, min(12, count)), size_px=size_px, seed=seed
    )
    for index, image in enumerate(images.pixels[:, 0]):
        Image.fromarray(np.array(image)).save(path / f"synapse_{index + 1:02d}.png")
    first = np.array(images.pixels[0, 0])
    Image.fromarray(255 - first).save(path / "inverted.png")
    Image.fromarray(_centre(first[None], size_px // 2)[0]).save(path / "too_small.png")
    (path / "cut_short.png").write_bytes((path / "synapse_01.png").read_bytes()[:200])
    return path
