"""Binary masks of dendritic spines: phantoms, the public set of Ghani et al. 2017, or the user's
own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from nbhelpers.core.files import sha256_of
from nbhelpers.core.imageset import ImageSet
from nbhelpers.imagesets.folder import read_labelled, read_unlabelled
from nbhelpers.imagesets.from_files import write_examples
from nbhelpers.imagesets.masks import FRAME_PX, centre_foreground, from_files
from nbhelpers.imagesets.sources import NONE, load_source, loader

SOURCES = {
    "phantom": "nbhelpers.phantoms.spine:load_phantom_spines",
    "ghani": "nbhelpers.imagesets.ghani:load_ghani_spines",
    "folder": "nbhelpers.imagesets.spines:load_own_spines",
}
WINDOW_PX = 160  # around the foreground, for the grouped protocol; all 456 public masks fit


def load_spines(
    data: str,
    *,
    data_folder: str | Path,
    data_dir: str = "",
    seed: int = 0,
    phantom: Mapping[str, object] = NONE,
) -> ImageSet:
    """Masks by the name of their source, (n, 1, 250, 250): "phantom", "ghani" or "folder".

    ``data_dir`` is the folder or CSV of "folder"; for "ghani" it may name a folder that already
    holds the two published files. ``phantom`` says the ``count`` of phantoms. Raises ParameterError
    when "folder" has no ``data_dir``.
    """
    return load_source(
        SOURCES,
        data,
        data_folder=data_folder,
        data_dir=data_dir,
        phantom={"seed": seed, **phantom},
        hint="Give the folder that holds one folder per class, or a CSV with path and label.",
    )


def load_own_spines(path: str | Path, data_folder: str | Path) -> ImageSet:
    """The user's masks: a folder with one folder per class, or a CSV with path, label and perhaps
    group.
    """
    listed = read_labelled(path)
    classes = tuple(sorted(listed.table["label"].unique()))
    return from_files(
        listed, data_folder, name="your spines", source="your own images", classes=classes
    )


def load_unlabelled_spines(
    path: str | Path, data_folder: str | Path, classes: tuple[str, ...]
) -> ImageSet:
    """Every mask below a folder, or of a CSV with the column path, for prediction. Unreadable ones
    are listed in ``failures``; when none can be used, the set is empty and lists them all.

    Raises InputError for a folder without images.
    """
    listed = read_unlabelled(path)
    return from_files(
        listed, data_folder, name="images to predict", source="your own images", classes=classes
    )


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


def write_example_masks(path: str | Path, count: int, seed: int) -> Path:
    """Write ``count`` fresh phantom masks as PNG, and two files that cannot be used, to try a
    prediction on.
    """
    masks = loader(SOURCES, "phantom")(count, seed).pixels[:, 0]
    unusable = {"all_black": np.zeros((FRAME_PX, FRAME_PX), np.uint8)}
    return write_examples(path, "spine", masks, unusable)
