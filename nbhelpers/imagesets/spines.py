"""Binary masks of dendritic spines: phantoms, the public set of Ghani et al. 2017, or the user's
own.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from nbhelpers.core.errors import ParameterError, TableError, UnreadableImageError
from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets import downloads, folder
from nbhelpers.imagesets.packed import NoUsableImageError, pack_images

CLASSES = ("Mushroom", "Stubby", "Thin")
FEWEST_PX = 10  # of foreground
WINDOW_PX = 160  # around the foreground, for the honest protocol; all 456 public masks fit
FRAME_PX = 250  # the published masks are 250 x 250 px
GHANI_SOURCE = (
    "456 two-photon dendritic spine masks with expert labels, Ghani et al. 2017 (J. Neurosci. "
    "Methods), "
    f"MIT licence, commit {downloads.GHANI_COMMIT[:12]}"
)


def binarise(pixels: np.ndarray, path: object) -> np.ndarray:
    """Foreground of a mask file: (channel, y, x) uint8 or uint16 to (y, x) bool.

    A pixel is foreground when it exceeds half of the brightest value of its own image, so that a
    mask gives the same result stored with 1, 8 or 16 bit, as 0/1 or 0/255. The published set mixes
    1-bit and 8-bit files, and which one it is says something about the class: nothing but the shape
    may pass.

    Raises UnreadableImageError for colour images, constant images, label images (0, 1, 2 ... for
    several objects) and inverted masks.
    """
    if len(pixels) > 1 and not (pixels == pixels[:1]).all():
        raise UnreadableImageError(
            path,
            "the image is in colour, but a mask is black and white.",
            "Give the segmented spine: white on black.",
        )
    mask = pixels[0]
    if mask.min() == mask.max():
        raise UnreadableImageError(
            path,
            f"the image is constant (every pixel is {mask.max()}).",
            "Segment the spine again, or leave the file out.",
        )
    if _has_flat_areas_between(mask):
        raise UnreadableImageError(
            path,
            "it holds areas of a value between the darkest and the brightest: labels of "
            "several objects, not one mask.",
            "Save one object per file, 0 outside and 255 inside.",
        )
    mask = mask > mask.max() / 2
    if mask.sum() < FEWEST_PX:
        raise UnreadableImageError(
            path,
            f"only {int(mask.sum())} px are white, too few for a spine.",
            "Segment the spine again, or leave the file out.",
        )
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    if border.mean() > 0.5:
        raise UnreadableImageError(
            path,
            "the background is white and the spine black.",
            "Invert it (in Fiji: Edit > Invert).",
        )
    return mask


def _has_flat_areas_between(values: np.ndarray) -> bool:
    """Whether (y, x) values that are neither darkest nor brightest form areas: they do in label
    images.

    A smooth edge is a slope: next to none of its pixels has eight equal neighbours (in the
    published set none has), and with few grey levels it is only one or two pixels wide. With up to
    16 levels one such pixel is enough; with more, as in a blurred or JPEG mask, they must make up 5
    % of what is not background.
    """
    low = int(values.min())
    high = int(values.max())
    near = (high - low) // 32  # the ripple of JPEG in black and white areas
    between = (values > low + near) & (values < high - near)
    if not between.any():
        return False
    across = values[:, 1:] == values[:, :-1]
    down = values[1:] == values[:-1]
    row = across[:, 1:] & across[:, :-1]
    flat = row[:-2] & row[1:-1] & row[2:] & down[1:, 1:-1] & down[:-1, 1:-1] & between[1:-1, 1:-1]
    if not flat.any():
        return False
    return len(np.unique(values)) <= 16 or flat.sum() > 0.05 * (values > low + near).sum()


def fit_frame(mask: np.ndarray, size_px: int) -> np.ndarray:
    """Put a (y, x) bool mask of any size into a (size_px, size_px) frame: uint8, 0 and 255.

    A mask of that size stays as it is. Otherwise the foreground is centred; the scale is kept, as
    size tells the classes apart, unless the foreground does not fit: then it is shrunk just enough.
    """
    if mask.shape == (size_px, size_px):
        return mask.astype(np.uint8) * 255
    return centre_foreground(mask, size_px)


def centre_foreground(mask: np.ndarray, size_px: int) -> np.ndarray:
    """Centre the foreground of a (y, x) bool mask in a (size_px, size_px) frame:
    uint8, 0 and 255."""
    rows = np.flatnonzero(mask.any(1))
    columns = np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    if max(box.shape) > size_px:
        from PIL import Image

        scale = size_px / max(box.shape)
        shape = [max(1, min(size_px, round(side * scale))) for side in box.shape]
        small = Image.fromarray(box.astype(np.uint8) * 255).resize(
            shape[::-1], Image.Resampling.BOX
        )
        box = np.asarray(small) > 127
        box = box if box.any() else np.ones(shape, bool)
    frame = np.zeros((size_px, size_px), np.uint8)
    top = (size_px - box.shape[0]) // 2
    left = (size_px - box.shape[1]) // 2
    frame[top : top + box.shape[0], left : left + box.shape[1]] = box * np.uint8(255)
    return frame


def _prepare(pixels: np.ndarray, path: Path) -> np.ndarray:
    return fit_frame(binarise(pixels, path), FRAME_PX)[None]


def centred(images: ImageSet, window_px: int, soften_px: float = 0.0) -> ImageSet:
    """The same set with every foreground centred in a window of ``window_px`` (all 456 public masks
    fit in 160).

    ``soften_px`` smooths the edges once, by a Gaussian of that width (standard deviation), so that
    an image sampled at full pixels and one sampled between them look alike: without it a network
    trained on turned masks loses about four points of accuracy on masks that are not turned. Other
    pixels are another ``content_hash``.
    """
    from scipy.ndimage import gaussian_filter

    pixels = np.empty((len(images), 1, window_px, window_px), np.uint8)
    for image, window in zip(images.pixels, pixels, strict=True):
        window[0] = centre_foreground(image[0] > 127, window_px)
        if soften_px:
            window[0] = gaussian_filter(window[0], soften_px, mode="constant")
    return replace(
        images,
        pixels=pixels,
        content_hash=sha256_of([images.content_hash, "window", window_px, soften_px]),
    )


def windows(images: ImageSet, protocol: str, input_px: int) -> ImageSet:
    """What is trained on: the whole frame as published, or a window around the foreground with
    softened edges.
    """
    if protocol == "published":
        return images
    return centred(images, WINDOW_PX, soften_px=0.5 * WINDOW_PX / input_px)


def load_phantom_spines(
    count: int, seed: int, *, difficulty: float = 0.5, confound: str | None = None
) -> ImageSet:
    """Synthetic spine masks, 250 x 250 px, with injected truth (see
    :mod:`nbhelpers.phantoms.spine`).
    """
    from nbhelpers.phantoms.spine import make_spine_phantoms

    masks, table = make_spine_phantoms(
        count, seed, size_px=FRAME_PX, difficulty=difficulty, confound=confound
    )
    return ImageSet(
        name="spine phantoms",
        table=table,
        pixels=masks[:, None],
        classes=CLASSES,
        synthetic=True,
        source=f"{count} synthetic spine masks drawn by nbhelpers.phantoms.spine, seed {seed}",
        channels=("mask",),
    )


def load_ghani_spines(
    data_folder: str | Path, *, given_folder: str | Path | None = None
) -> ImageSet:
    """The 456 public masks (288 Mushroom, 113 Stubby, 55 Thin), 250 x 250 px; no pixel size is
    published.

    Downloaded once into ``data_folder`` and checked by sha256, or read from ``given_folder`` where
    the two published files already lie. The set names no neuron or animal, so each spine is its own
    group (equal masks share one). Raises DownloadError, TableError.
    """
    data_folder = Path(data_folder)
    files = downloads.fetch("spines_ghani", data_folder / "downloads", given_folder=given_folder)
    labels = pd.read_excel(files["Dataset_Labels.xlsx"], sheet_name=0, usecols=[0, 1], dtype=str)
    labels.columns = ["file", "label"]
    masks = downloads.unpack_zip(
        files["Dataset_Annotations.zip"],
        data_folder / "unpacked" / f"spines_ghani-{downloads.GHANI_COMMIT[:12]}",
    )
    by_name = {path.name: path for path in folder.find_images(masks)}
    labels["label"] = labels["label"].str.strip()
    missing = sorted(set(labels["file"]) - set(by_name)) + sorted(
        set(by_name) - set(labels["file"])
    )
    if missing:
        raise TableError(
            "Dataset_Labels.xlsx",
            f"labels and masks do not match, e.g. {missing[0]}.",
            "Delete the folders data/unpacked and data/downloads and run again.",
        )
    table = pd.DataFrame(
        {
            "path": [by_name[name] for name in labels["file"]],
            "label": labels["label"],
            "id": labels["file"],
        }
    )
    return from_files(
        table, data_folder, name="spines of Ghani et al. 2017", source=GHANI_SOURCE, classes=CLASSES
    )


def load_own_spines(path: str | Path, data_folder: str | Path) -> ImageSet:
    """The user's masks: a folder with one folder per class, or a CSV with path, label and perhaps
    group.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        table, left_out = folder.read_label_table(path)
    else:
        table = folder.read_class_folders(path)
        left_out = None
    images = from_files(
        table,
        data_folder,
        name="your spines",
        source="your own images",
        classes=tuple(sorted(table["label"].unique())),
    )
    if left_out is not None and len(left_out):
        images = replace(images, failures=pd.concat([left_out, images.failures], ignore_index=True))
    return images


def load_unlabelled_spines(
    path: str | Path, data_folder: str | Path, classes: tuple[str, ...]
) -> ImageSet:
    """Every image below a folder, without labels, for prediction. Unreadable ones are listed in
    ``failures``.

    When none can be used, the set is empty and lists them all. Raises InputError for a folder
    without images.
    """
    found = folder.find_images(path)
    if not found:
        raise TableError(
            path, "there are no images in this folder.", "PNG, TIFF and JPEG files are read."
        )
    table = pd.DataFrame(
        {"path": found, "label": None, "id": [item.relative_to(path).as_posix() for item in found]}
    )
    about = {"name": "images to predict", "source": "your own images", "classes": classes}
    try:
        return from_files(table, data_folder, **about)
    except NoUsableImageError as error:
        error.failures["file"] = table["id"]
        return ImageSet(
            table=table[:0].assign(group="").drop(columns="path"),
            synthetic=False,
            channels=("mask",),
            pixels=np.zeros((0, 1, FRAME_PX, FRAME_PX), np.uint8),
            failures=error.failures,
            **about,
        )


def from_files(table: pd.DataFrame, data_folder: str | Path, **about) -> ImageSet:
    """Read the mask files of a table with path, label, id and perhaps group; equal masks share a
    group without one.

    Failures are named by the ids, as a report names no folder of the user's machine; ``about`` goes
    to ImageSet. Copies of one mask under different labels are left out and listed. Raises
    InputError when no file of a class can be used.
    """
    pixels, kept, failures, _ = pack_images(
        table["path"].tolist(),
        _prepare,
        prepare_name=f"spine mask in a {FRAME_PX} px frame, 2",
        cache_folder=Path(data_folder) / "packed",
    )
    failures["file"] = failures["file"].map(
        dict(zip(map(str, map(Path, table["path"])), table["id"], strict=True))
    )
    kept_table = table.iloc[kept].drop(columns="path").reset_index(drop=True)
    folder.check_every_class(table, kept_table, failures)
    shapes = pd.Series(
        [
            "mask-"
            + hashlib.sha256(centre_foreground(mask[0] > 127, FRAME_PX).tobytes()).hexdigest()[:16]
            for mask in pixels
        ],
        dtype=str,
    )
    several = kept_table.groupby(shapes)["label"].transform("nunique").to_numpy() > 1
    if several.any():
        failures = folder.with_copies(
            failures, kept_table["id"][several], "the same mask stands under another label too."
        )
        kept_table = kept_table[~several].reset_index(drop=True)
        shapes = shapes[~several]
        pixels = pixels[~several]
    if "group" not in kept_table:  # equal masks must not be trained on and tested on
        kept_table["group"] = shapes.to_numpy()
    kept_table["foreground_px"] = [int(np.count_nonzero(mask)) for mask in pixels]
    return ImageSet(
        table=kept_table,
        pixels=pixels,
        synthetic=False,
        channels=("mask",),
        failures=failures,
        **about,
    )


def load_spines(
    data: str, *, data_folder: str | Path, data_dir: str = "", phantoms: int = 456, seed: int = 0
) -> ImageSet:
    """The spines of notebook 04 by the name of their source: "phantom", "ghani" or "folder".

    ``data_dir`` is the folder or CSV of "folder"; for "ghani" it may name a folder that already
    holds the two published files. Raises ParameterError when "folder" has no ``data_dir``.
    """
    if data == "phantom":
        return load_phantom_spines(phantoms, seed)
    if data == "ghani":
        return load_ghani_spines(data_folder, given_folder=data_dir or None)
    if not data_dir:
        raise ParameterError(
            "parameter data_dir",
            "it is empty, but data is 'folder'.",
            "Give the folder that holds one folder per class, or a CSV with path and label.",
        )
    return load_own_spines(data_dir, data_folder)


def write_example_masks(folder_path: str | Path, count: int, seed: int) -> Path:
    """Write ``count`` fresh phantom masks as PNG, and two files that cannot be used, to try a
    prediction on.
    """
    from PIL import Image

    folder_path = Path(folder_path)
    folder_path.mkdir(parents=True, exist_ok=True)
    for index, mask in enumerate(load_phantom_spines(count, seed).pixels[:, 0]):
        Image.fromarray(mask).save(folder_path / f"spine_{index + 1:02d}.png")
    Image.new("L", (FRAME_PX, FRAME_PX)).save(folder_path / "all_black.png")
    (folder_path / "cut_short.png").write_bytes((folder_path / "spine_01.png").read_bytes()[:200])
    return folder_path
