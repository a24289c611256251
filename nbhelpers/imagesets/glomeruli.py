"""Glomeruli in stained sections: phantoms, the public patches of Bueno et al. 2020, or the user's
own.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, TableError, UnreadableImageError
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets import downloads, folder
from nbhelpers.imagesets.packed import NoUsableImageError, pack_images
from nbhelpers.imagesets.reader import stored_size

CLASSES = (
    "nonGS",
    "GS",
)  # not globally sclerosed, globally sclerosed; the order of the published LABELS
SIZE_PX = 224  # the published input, and the size of the public patches
CHANNELS = ("red", "green", "blue")
LARGEST_PX = 4096  # a longer side is a slide or a large part of one, not one glomerulus
SMALLEST_PX = 32
LONGEST_ASPECT = 4.0
UNKNOWN_SLIDES = (
    "no slide is named, so each image is its own group: glomeruli of one slide may stand in "
    "training and "
    "test both, and the scores come out too high"
)
LABEL_TABLES = ("public.csv", "labels.csv")
BUENO_SOURCE = (
    "PAS-stained glomeruli of Bueno et al. 2020 (Data in Brief), patches of Weishaupt et al. 2025, "
    f"CC BY-NC-SA 4.0, commit {downloads.BUENO_COMMIT[:12]}"
)
_BUENO_NAME = re.compile(
    r"(?P<centre>[A-Z]+)_(?P<slide>\d+)(?:_(?P<section>\d+))?-(?P<number>\d+)\.png"
)


def prepare_glomerulus(pixels: np.ndarray, path: object, size_px: int = SIZE_PX) -> np.ndarray:
    """One glomerulus, (3, y, x) uint8 or full-range uint16 of any size, to (3, size_px, size_px)
    uint8.

    An image that is no square is first continued to one by reflection at its edges, so that no
    shape changes; then it is resized with an antialiased bicubic filter. Raises
    UnreadableImageError for grey images (the stain is part of what is seen), images of one colour,
    whole slides, strips, very small images, and 16-bit images that do not use their range.
    """
    height, width = pixels.shape[1:]
    if max(height, width) > LARGEST_PX:
        raise UnreadableImageError(
            path,
            f"the image is {width} x {height} px, a whole slide perhaps.",
            "Cut out the single glomeruli first, for example in QuPath, and give those.",
        )
    if min(height, width) < SMALLEST_PX:
        raise UnreadableImageError(
            path,
            f"the image is only {width} x {height} px.",
            f"A glomerulus needs {SMALLEST_PX} px or more to each side.",
        )
    if max(height, width) > LONGEST_ASPECT * min(height, width):
        raise UnreadableImageError(
            path,
            f"the image is a strip of {width} x {height} px.",
            "Cut out the glomerulus as about a square.",
        )
    if len(pixels) == 1 or (len(pixels) == 3 and (pixels == pixels[:1]).all()):
        if pixels.min() == pixels.max():
            raise UnreadableImageError(
                path, "the image is of one colour.", "Leave it out, or export it again."
            )
        raise UnreadableImageError(
            path,
            "the image is grey, but the colours of the stain are needed.",
            "Export the image of the stained section in colour.",
        )
    if len(pixels) != 3:
        raise UnreadableImageError(
            path, f"the image has {len(pixels)} channels.", "Save it as RGB."
        )
    if all(channel.min() == channel.max() for channel in pixels):
        raise UnreadableImageError(
            path, "the image is of one colour.", "Leave it out, or export it again."
        )
    if pixels.dtype == np.uint16:
        if pixels.max() < 2**14:
            raise UnreadableImageError(
                path,
                f"it has 16 bit, but its brightest value is {pixels.max()}: which value is "
                "white cannot be known.",
                "Save it as RGB with 8 bit.",
            )
        pixels = (pixels >> 8).astype(np.uint8)
    return _square(pixels, size_px)


def _square(pixels: np.ndarray, size_px: int) -> np.ndarray:
    from PIL import Image

    height, width = pixels.shape[1:]
    side = max(height, width)
    if height != width:
        margins = [
            ((side - length) // 2, side - length - (side - length) // 2)
            for length in (height, width)
        ]
        pixels = np.pad(pixels, [(0, 0), *margins], mode="symmetric")
    if side == size_px:
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    return np.ascontiguousarray(
        np.moveaxis(np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC)), -1, 0)
    )


def load_bueno_glomeruli(
    data_folder: str | Path, *, given_folder: str | Path | None = None
) -> ImageSet:
    """The public patches: 946 of 31 slides from 3 centres, 224 x 224 px RGB, 209 GS and 737 nonGS.

    Downloaded once into ``data_folder`` and checked by sha256, or read from ``given_folder``, which
    may hold only a part of them: then ``source`` says how many, and ``failures`` lists per centre
    how many are missing. The table has ``centre`` and ``slide`` from the file name; groups are
    slides. The patches are cut to the glomerulus and scaled to one size, so the magnification
    differs between them and no pixel size is known. Raises DownloadError, TableError.
    """
    data_folder = Path(data_folder)
    files = downloads.fetch(
        "glomeruli_bueno",
        data_folder / "downloads",
        given_folder=given_folder,
        partial=given_folder is not None,
    )
    known = [file.name for file in downloads.files_of("glomeruli_bueno")]
    table = _bueno_table(known)
    missing = table[~table["id"].isin(files)]
    table = table[table["id"].isin(files)].reset_index(drop=True)
    table["path"] = table["id"].map(files)
    table["id"] = [
        f"{label}/{Path(name).name}"
        for label, name in zip(table["label"], table["id"], strict=True)
    ]
    count = (
        f"{len(table)} of {len(known)} patches, centres {', '.join(sorted(set(table['centre'])))}; "
    )
    images = from_files(
        table,
        data_folder,
        name="glomeruli of Bueno et al. 2020",
        classes=CLASSES,
        source=(count if len(missing) else "") + BUENO_SOURCE,
    )
    if len(missing):
        absent = pd.DataFrame(
            [
                {
                    "file": f"{len(rows)} patches of the centre {centre}",
                    "why": "the folder given does not hold them.",
                    "fix": "Leave data_dir empty to download all, or carry on without them.",
                }
                for centre, rows in missing.groupby("centre")
            ]
        )
        images = replace(images, failures=pd.concat([absent, images.failures], ignore_index=True))
    return images


def _bueno_table(names: Sequence[str]) -> pd.DataFrame:
    """id (path in the repository), label, centre, slide, group of the published file names."""
    rows = []
    for name in names:
        found = _BUENO_NAME.fullmatch(Path(name).name)
        if not found:
            raise TableError(
                name,
                "the file name does not read CENTRE_slide_section-number.png.",
                "The list of published files was changed.",
            )
        slide = f"{found['centre']}_{found['slide']}"
        rows.append(
            {
                "id": name,
                "label": Path(name).parent.name,
                "centre": found["centre"],
                "slide": slide,
                "group": slide,
            }
        )
    return pd.DataFrame(rows)


def load_phantom_glomeruli(
    count: int,
    seed: int,
    *,
    size_px: int = SIZE_PX,
    centres: int = 2,
    slides: int = 10,
    difficulty: float = 0.5,
) -> ImageSet:
    """Synthetic glomeruli with injected truth (see :mod:`nbhelpers.phantoms.glomerulus`)."""
    from nbhelpers.phantoms.glomerulus import make_glomerulus_phantoms

    phantoms = make_glomerulus_phantoms(
        count, seed=seed, size_px=size_px, centres=centres, slides=slides, difficulty=difficulty
    )
    return ImageSet(
        name="glomerulus phantoms",
        table=phantoms.table,
        pixels=phantoms.pixels,
        classes=CLASSES,
        synthetic=True,
        channels=CHANNELS,
        source=f"{count} synthetic glomeruli drawn by nbhelpers.phantoms.glomerulus, seed {seed}",
    )


def load_own_glomeruli(
    path: str | Path,
    data_folder: str | Path,
    *,
    classes: Sequence[str] = (),
    size_px: int = SIZE_PX,
) -> ImageSet:
    """The user's images: a folder with one folder per class, or a CSV with path, label and perhaps
    group and centre.

    ``classes`` names the classes that are expected, the positive one last; empty: the names of the
    folders, sorted. A folder with class folders may hold ``public.csv`` or ``labels.csv`` with the
    columns ``name`` and ``ground truth`` (class names, or 0 and 1) as the published project has it;
    it must agree with the folders. Without a group column every image is its own group, but copies
    of one image share it, and the source says that slides are unknown. Raises TableError for class
    folders that are named wrongly, labels that contradict the folder, other than two classes, and
    classes without a usable image.
    """
    path = Path(path)
    left_out = None
    if path.suffix.lower() == ".csv":
        table, left_out = folder.read_label_table(path)
        _check_labels_against_folders(path, table)
    else:
        _check_class_folders(path, classes)
        table = folder.read_class_folders(path)
        for name in LABEL_TABLES:
            if (path / name).is_file():
                check_public_table(path / name, table)
    found = sorted(table["label"].unique())
    if classes and set(found) != set(classes):
        raise TableError(path, f"the labels are {found}.", f"Expected {list(classes)}.")
    if len(found) != 2:
        raise TableError(
            path,
            f"there are {len(found)} classes: {', '.join(found)}.",
            "Two are told apart here, as one "
            "threshold between them is chosen: put several into one, or leave some out.",
        )
    images = from_files(
        table,
        data_folder,
        name="your glomeruli",
        size_px=size_px,
        source="your own images" + ("" if "group" in table else f"; {UNKNOWN_SLIDES}"),
        classes=tuple(classes) or tuple(found),
    )
    if left_out is not None and len(left_out):
        images = replace(images, failures=pd.concat([left_out, images.failures], ignore_index=True))
    return images


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _check_class_folders(path: Path, classes: Sequence[str]) -> None:
    """Whether the class folders have the names that are expected, and no two names that read the
    same.
    """
    if not path.is_dir():
        return  # read_class_folders says so
    names = sorted(
        entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    for unexpected in [name for name in names if classes and name not in classes]:
        close = difflib.get_close_matches(
            unexpected, [name for name in classes if name not in names], 1, 0
        )
        raise TableError(
            path / unexpected,
            f"this class folder is not among the classes {list(classes)}.",
            f"Rename it to {close[0]}." if close else "Move it out of the folder.",
        )
    for absent in [name for name in classes if name not in names]:
        raise TableError(
            path,
            f"there is no folder for the class {absent}; there are {names}.",
            "Add it, or correct the list of classes.",
        )
    by_plain: dict[str, str] = {}
    for name in names:
        other = by_plain.setdefault(_plain(name), name)
        if other != name:
            raise TableError(
                path / name,
                f"the class folders {other} and {name} differ only in spelling.",
                "Put the images of one class into one folder.",
            )


def _check_labels_against_folders(csv: Path, table: pd.DataFrame) -> None:
    """Whether a label table gives an image another class than the folder it lies in."""
    classes = {_plain(name): name for name in table["label"].unique()}
    for row, (path, label, name) in enumerate(
        zip(table["path"], table["label"], table["id"], strict=True)
    ):
        folder_class = classes.get(_plain(Path(path).parent.name))
        if folder_class is not None and folder_class != label:
            raise TableError(
                f"{csv.name}: {name}",
                f"the table says {label}, but the image lies in the folder "
                f"{Path(path).parent.name}.",
                "Decide which one is right, and move the image or change "
                f"the label (entry {row + 1} of the table).",
            )


def check_public_table(csv: str | Path, table: pd.DataFrame) -> None:
    """Whether a published label table (``name``, ``ground truth``) agrees with the class folders.

    ``table`` has ``label`` and ``id`` as ``read_class_folders`` gives them. Labels are class names
    or 0 and 1; which of the two classes 1 is, is whatever fits the folders best. Raises TableError
    at the first contradiction, naming the row, and for names that lie in no class folder.
    """
    csv = Path(csv)
    try:
        given = pd.read_csv(csv, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError, OSError) as error:
        raise TableError(
            csv, f"the label table cannot be read ({error}).", "Save it as CSV in UTF-8."
        ) from None
    given.columns = [re.sub(r"[ _]+", "_", str(name).strip().lower()) for name in given.columns]
    labels = next((name for name in ("ground_truth", "label") if name in given.columns), None)
    if "name" not in given.columns or labels is None:
        raise TableError(
            csv, f"its columns are {list(given.columns)}.", "Expected name and ground truth."
        )
    by_name: dict[str, set[str]] = {}
    for name, label in zip(table["id"], table["label"], strict=True):
        for key in (name, Path(name).name):
            by_name.setdefault(key, set()).add(label)
    classes = sorted(table["label"].unique())
    values = given[labels].str.strip()
    ways = [{name: name for name in classes}]
    if set(values) <= {"0", "1"} and len(classes) == 2:
        ways = [dict(zip("01", order, strict=True)) for order in (classes, classes[::-1])]
    best: list[tuple[int, str, str, set[str]]] | None = None
    for way in ways:
        wrong = [
            (row, name, value, by_name.get(name.strip(), set()))
            for row, (name, value) in enumerate(zip(given["name"], values, strict=True), start=2)
            if way.get(value) not in by_name.get(name.strip(), set())
        ]
        best = wrong if best is None or len(wrong) < len(best) else best
    if best:
        row, name, value, lies_in = best[0]
        where = (
            f"lies in the folder {' and '.join(sorted(lies_in))}"
            if lies_in
            else "lies in no class folder"
        )
        raise TableError(
            f"{csv.name}, row {row}",
            f"the label of {name} is {value}, but the image {where} ({len(best)} such rows).",
            "Decide which one is right, and move the image or change the row.",
        )


def load_unlabelled_glomeruli(
    path: str | Path, data_folder: str | Path, classes: Sequence[str], *, size_px: int = SIZE_PX
) -> ImageSet:
    """Every image below a folder, without labels, for prediction. Unreadable ones are listed in
    ``failures``.

    When none can be used, the set is empty and lists them all. Raises InputError for a folder
    without images. For folders too large for a report see :mod:`nbhelpers.studies.predict_folder`.
    """
    found = folder.find_images(path)
    if not found:
        raise TableError(
            path, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
        )
    table = pd.DataFrame(
        {"path": found, "label": None, "id": [folder.id_of(item, Path(path)) for item in found]}
    )
    about = {"name": "images to predict", "source": "your own images", "classes": tuple(classes)}
    try:
        return from_files(table, data_folder, size_px=size_px, **about)
    except NoUsableImageError as error:
        error.failures["file"] = table["id"]
        return ImageSet(
            table=table[:0].assign(group="").drop(columns="path"),
            synthetic=False,
            channels=CHANNELS,
            pixels=np.zeros((0, 3, size_px, size_px), np.uint8),
            failures=error.failures,
            **about,
        )


def from_files(
    table: pd.DataFrame, data_folder: str | Path, *, size_px: int = SIZE_PX, **about
) -> ImageSet:
    """Read the image files of a table with path, label, id and perhaps group; copies share a group
    without one.

    Copies of one image under different labels are left out and listed; copies under one label stay
    and are named in the column ``copy_of`` (the id of the first). ``width_px`` and ``height_px``
    are those of the file. Failures are named by the ids. Raises InputError when no file of a class
    can be used.
    """
    pixels, kept, failures, _ = pack_images(
        table["path"].tolist(),
        lambda image, path: prepare_glomerulus(image, path, size_px),
        prepare_name=f"glomerulus {size_px} px, 1",
        cache_folder=Path(data_folder) / "packed",
        longest_px=LARGEST_PX,
    )
    failures["file"] = failures["file"].map(
        dict(zip(map(str, map(Path, table["path"])), table["id"], strict=True))
    )
    kept_table = table.iloc[kept].reset_index(drop=True)
    sizes = [stored_size(Path(path)) or (np.nan, np.nan) for path in kept_table.pop("path")]
    kept_table[["width_px", "height_px"]] = np.array(sizes, dtype=np.float64).reshape(-1, 2)
    folder.check_every_class(table, kept_table, failures)
    content = pd.Series(
        [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in pixels], dtype=str
    )
    several = kept_table.groupby(content)["label"].transform("nunique").to_numpy() > 1
    if several.any():
        failures = folder.with_copies(
            failures, kept_table["id"][several], "the same image stands under another label too."
        )
        kept_table = kept_table[~several].reset_index(drop=True)
        pixels = pixels[~several]
        content = content[~several].reset_index(drop=True)
    first_of = kept_table.groupby(content)["id"].transform("first")
    kept_table["copy_of"] = np.where(first_of == kept_table["id"], "", first_of)
    if "group" not in kept_table:  # copies must not be trained on and tested on
        kept_table["group"] = "image-" + content
    return ImageSet(
        table=kept_table,
        pixels=pixels,
        synthetic=False,
        channels=CHANNELS,
        failures=failures,
        **about,
    )


def load_glomeruli(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    phantoms: int = 240,
    seed: int = 0,
    phantom_px: int = SIZE_PX,
) -> ImageSet:
    """The glomeruli of notebook 07 by the name of their source: "phantom", "bueno" or "folder".

    ``data_dir`` is the folder or CSV of "folder"; for "bueno" it may name a folder that already
    holds the published patches, or some of them. Raises ParameterError when "folder" has no
    ``data_dir``.
    """
    if data == "phantom":
        return load_phantom_glomeruli(phantoms, seed, size_px=phantom_px, difficulty=0.8)
    if data == "bueno":
        return load_bueno_glomeruli(data_folder, given_folder=data_dir or None)
    if not data_dir:
        raise ParameterError(
            "parameter data_dir",
            "it is empty, but data is 'folder'.",
            "Give the folder that holds one folder per class, or a CSV with path, label and group.",
        )
    return load_own_glomeruli(data_dir, data_folder)


def _span(values: pd.Series) -> str:
    low = values.min()
    high = values.max()
    return (
        "unknown" if pd.isna(low) else f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"
    )


def intensity_table(images: ImageSet) -> pd.DataFrame:
    """Per class (and centre, where known): images, groups, copies, the smallest and largest width
    and height of the files in pixels, and mean and standard deviation of each channel.

    For the data look of a notebook; channel values are 0 to 255.
    """
    keys = ["label"] + (["centre"] if "centre" in images.table else [])
    means = np.array([image.mean(axis=(1, 2)) for image in images.pixels]).reshape(len(images), -1)
    work = images.table[[*keys, "group"]].copy()
    work["copies"] = images.table["copy_of"] != "" if "copy_of" in images.table else False
    for name, values in zip(images.channels, means.T, strict=True):
        work[name] = values
    grouped = work.groupby(keys, sort=True)
    found = pd.DataFrame(
        {
            "images": grouped.size(),
            "groups": grouped["group"].nunique(),
            "copies": grouped["copies"].sum(),
        }
    )
    for name, axis in (("width_px", -1), ("height_px", -2)):
        work[name] = images.table[name] if name in images.table else images.pixels.shape[axis]
        found[name.replace("_", ", ")] = work.groupby(keys)[name].agg(_span)
    for name in images.channels:
        found[f"{name} mean"] = grouped[name].mean()
        found[f"{name} sd"] = grouped[name].std()
    return found.reset_index()
